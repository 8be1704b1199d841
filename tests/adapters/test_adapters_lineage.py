"""Derived adapters: merges that lose nothing, and pay that reaches the first generation's contributors."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from adapter_folders import BASE, card_of, tensors, write_adapter
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.adapters.card import AdapterCard, load_card, save_card
from openledger.adapters.checks import AdapterLimits, BaseShapes, read_adapter, shapes_of
from openledger.adapters.lineage import (
    Generation,
    Lineage,
    contributor_shares,
    contributor_shares_ppb,
    generation_shares,
    merge_lora,
    parent_gains,
)
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, TooLarge
from openledger.core.values import UNATTRIBUTED

WHOLE = 10**9


def _card(digest: str, *parents: str, base: str = "base") -> AdapterCard:
    weights = tuple((parent, str(Fraction(1, len(parents)))) for parent in parents)
    return AdapterCard(
        name=digest, digest=digest, base_model="b", base_digest=base, datanet="d", datanet_version=1, row_root="00",
        rows_trained=(), contributors={}, recipe={}, environment={}, code_version="0", initial_a="", final_loss=1.0,
        parents=weights,
    )  # fmt: skip


def _trained(gain_nano: int, by: str, **parents: int) -> Generation:
    """An adapter whose own rows are one contributor's; a tenth of what they brought is too weakly measured."""
    return Generation(
        gain_nano=gain_nano, parent_gains_nano=parents, own_shares_ppb={by: 9 * WHOLE // 10, UNATTRIBUTED: WHOLE // 10}
    )


class TestRule:
    LINE = (_card("one"), _card("two", "one"), _card("three", "two"))

    def test_three_generations_are_paid_for_what_each_added(self) -> None:
        measured = {
            "one": _trained(600, "ada"),
            "two": _trained(900, "bob", one=600),
            "three": _trained(1000, "cyd", two=900),
        }
        assert contributor_shares(Lineage(self.LINE), "three", measured) == {
            "ada": Fraction(54, 100), "bob": Fraction(27, 100), "cyd": Fraction(9, 100), UNATTRIBUTED: Fraction(1, 10)
        }  # fmt: skip

    def test_a_generation_that_added_nothing_gets_nothing_and_takes_nothing(self) -> None:
        measured = {
            "one": _trained(600, "ada"),
            "two": _trained(600, "bob", one=600),
            "three": _trained(500, "cyd", two=600),
        }
        shares = generation_shares(Lineage(self.LINE), "three", measured)
        assert shares == {"one": 1, "two": 0, "three": 0, UNATTRIBUTED: 0}

    def test_a_parent_that_did_harm_gets_nothing(self) -> None:
        measured = {"one": _trained(-100, "ada"), "two": _trained(300, "bob", one=-100)}
        assert generation_shares(Lineage(self.LINE), "two", measured) == {"one": 0, "two": 1, UNATTRIBUTED: 0}

    def test_where_nothing_was_gained_nobody_is_paid(self) -> None:
        measured = {"one": _trained(-100, "ada"), "two": _trained(-300, "bob", one=-100)}
        assert contributor_shares_ppb(Lineage(self.LINE), "two", measured) == {
            "ada": 0, "bob": 0, UNATTRIBUTED: WHOLE
        }  # fmt: skip

    def test_a_grandparent_is_paid_through_both_of_its_children(self) -> None:
        cards = [_card("root"), _card("left", "root"), _card("right", "root"), _card("merge", "left", "right")]
        measured = {
            "root": _trained(300, "ada"),
            "left": _trained(400, "bob", root=300),
            "right": _trained(600, "ada", root=300),
            "merge": Generation(gain_nano=800, parent_gains_nano={"left": 300, "right": 500}, own_shares_ppb={}),
        }
        assert generation_shares(Lineage(cards), "merge", measured) == {
            "merge": 0, "left": Fraction(3, 32), "right": Fraction(10, 32), "root": Fraction(19, 32), UNATTRIBUTED: 0
        }  # fmt: skip
        assert contributor_shares(Lineage(cards), "merge", measured)["ada"] == Fraction(29, 32) * Fraction(9, 10)

    def test_what_a_merge_gained_beyond_its_parents_parts_is_nobodys(self) -> None:
        measured = {
            "one": _trained(600, "ada"),
            "two": Generation(gain_nano=900, parent_gains_nano={"one": 600}, own_shares_ppb={}),
        }
        assert contributor_shares(Lineage(self.LINE), "two", measured)[UNATTRIBUTED] == Fraction(1, 3) + Fraction(2, 30)

    @given(st.data())
    def test_parts_sum_exactly_and_are_never_negative(self, data: st.DataObject) -> None:
        amounts = st.integers(-(10**12), 10**12)
        cards, measured = [], {}
        for number in range(data.draw(st.integers(1, 6))):
            parents = [f"a{n}" for n in range(number) if data.draw(st.booleans())]
            cards.append(_card(f"a{number}", *parents))
            gains = {parent: Fraction(data.draw(amounts), data.draw(st.integers(1, 8))) for parent in parents}
            part = data.draw(st.integers(0, WHOLE))
            measured[f"a{number}"] = Generation(
                gain_nano=data.draw(amounts),
                parent_gains_nano=gains,
                own_shares_ppb={f"ctr_{number % 3}": part, UNATTRIBUTED: WHOLE - part}
                if data.draw(st.booleans())
                else {},
            )
        shares = contributor_shares(Lineage(cards), cards[-1].digest, measured)
        assert sum(shares.values()) == 1
        assert min(shares.values()) >= 0
        in_ppb = contributor_shares_ppb(Lineage(cards), cards[-1].digest, measured)
        assert sum(in_ppb.values()) == WHOLE
        assert all(abs(in_ppb[name] - share * WHOLE) <= 1 for name, share in shares.items())

    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"one": None}, "unmeasured_generation"),
            ({"two": _trained(900, "bob", other=600)}, "invalid_generation"),
            (
                {"two": Generation(gain_nano=9, parent_gains_nano={"one": 6}, own_shares_ppb={"bob": 5})},
                "invalid_generation",
            ),
        ],
    )
    def test_measures_that_do_not_fit_the_cards_are_refused(
        self, changed: dict[str, Generation | None], code: str
    ) -> None:
        measured = {"one": _trained(600, "ada"), "two": _trained(900, "bob", one=600), **changed}
        with pytest.raises((NotFound, InvalidInput)) as caught:
            contributor_shares(Lineage(self.LINE), "two", {k: v for k, v in measured.items() if v is not None})
        assert caught.value.code == code


class TestGraph:
    def test_generations_come_before_their_parents(self) -> None:
        lineage = Lineage([_card("other"), _card("one"), _card("three", "two", "one"), _card("two", "one")])
        assert lineage.generations("three") == ("three", "two", "one")

    @pytest.mark.parametrize(
        ("cards", "code"),
        [
            ([_card("one"), _card("two", "gone")], "missing_parent"),
            ([_card("one", "three"), _card("two", "one"), _card("three", "two")], "lineage_cycle"),
            ([_card("one", "one")], "lineage_cycle"),
            ([_card("one", base="x"), _card("two", "one")], "lineage_base"),
            ([_card("one"), _card("two", "one", "one")], "lineage_parents"),
            ([_card("one"), _card("two"), _card("two", "one")], "lineage_conflict"),
        ],
    )
    def test_what_is_no_lineage_is_refused(self, cards: list[AdapterCard], code: str) -> None:
        with pytest.raises((NotFound, InvalidInput, Conflict)) as caught:
            Lineage(cards)
        assert caught.value.code == code

    def test_a_line_of_a_thousand_generations_is_walked(self) -> None:
        cards = [_card("a0"), *(_card(f"a{n}", f"a{n - 1}") for n in range(1, 1000))]
        measured = {
            "a0": _trained(1, "ada"),
            **{f"a{n}": _trained(n + 1, "bob", **{f"a{n - 1}": n}) for n in range(1, 1000)},
        }
        assert contributor_shares(Lineage(cards), "a999", measured)["ada"] == Fraction(9, 10_000)


class TestParentGains:
    @staticmethod
    def _gain(told: dict[str, Fraction], strength: dict[str, int]) -> int:
        """A gain that grows ever more slowly: what two equal parents bring is less than twice what one brings."""
        total = float(sum(told[name] * strength[name] for name in told))
        return round(1e9 * total / (1 + total))

    def test_parts_sum_exactly_to_the_whole(self) -> None:
        strength = {"a": 3, "b": 1, "c": -1}
        gains = parent_gains(list(strength), lambda told: self._gain(told, strength))
        assert sum(gains.values()) == self._gain(dict.fromkeys(strength, Fraction(1)), strength)
        assert gains["a"] > gains["b"] > 0 > gains["c"]

    def test_naming_a_parent_as_two_halves_changes_nothing(self) -> None:
        whole = parent_gains(["a", "b"], lambda told: self._gain(told, {"a": 2, "b": 2}))
        halves = parent_gains(["a", "b1", "b2"], lambda told: self._gain(told, {"a": 2, "b1": 1, "b2": 1}))
        assert float(halves["b1"] + halves["b2"]) == pytest.approx(float(whole["b"]), rel=0.01)

    def test_equal_parents_get_equal_parts_whoever_is_named_first(self) -> None:
        gains = parent_gains(["a", "b"], lambda told: self._gain(told, {"a": 2, "b": 2}))
        assert gains["a"] == gains["b"]

    def test_a_parent_that_changes_nothing_gets_nothing(self) -> None:
        assert parent_gains(["a", "idle"], lambda told: self._gain(told, {"a": 2, "idle": 0}))["idle"] == 0

    def test_no_parents_are_refused(self) -> None:
        with pytest.raises(InvalidInput):
            parent_gains([], lambda told: 0)


def _delta(folder: Path, module: str) -> torch.Tensor:
    a, b, scale = read_adapter(folder, BASE, AdapterLimits()).factors[module]
    return scale * b.double() @ a.double()


class TestMerge:
    def _two(self, folder: Path) -> list[Path]:
        other = {name: tensor.flip(0) + 0.5 for name, tensor in tensors(rank=3).items()}
        return [
            write_adapter(folder / "one", card=True),
            write_adapter(folder / "two", other, card=True, r=3, lora_alpha=5, use_rslora=True),
        ]

    def test_the_change_of_every_matrix_is_the_weighted_sum(self, tmp_path: Path) -> None:
        folders = self._two(tmp_path)
        merge_lora(folders, ["0.3", -2], tmp_path / "merge", base=BASE)
        for module in BASE.modules:
            wanted = 0.3 * _delta(folders[0], module) - 2 * _delta(folders[1], module)
            assert torch.allclose(_delta(tmp_path / "merge", module), wanted, rtol=1e-5, atol=1e-6)

    def test_a_module_that_one_parent_lacks_keeps_the_others_rank(self, tmp_path: Path) -> None:
        one = write_adapter(tmp_path / "one")
        two = write_adapter(tmp_path / "two", {k: v * 2 for k, v in tensors(up_proj_A=None, up_proj_B=None).items()})
        merge_lora([one, two], [1, 1], tmp_path / "merge", base=BASE)
        ranks = read_adapter(tmp_path / "merge", BASE).description.ranks
        assert ranks == {"model.layers.0.q_proj": 4, "model.layers.0.up_proj": 2}
        assert torch.allclose(
            _delta(tmp_path / "merge", "model.layers.0.up_proj"), _delta(one, "model.layers.0.up_proj"), atol=1e-6
        )

    def test_the_card_names_the_parents_and_their_weights(self, tmp_path: Path) -> None:
        folders = self._two(tmp_path)
        digest = merge_lora(folders, [0.5, "1/3"], tmp_path / "merge", base=BASE)
        card = load_card(tmp_path / "merge")
        assert card.digest == digest
        assert card.parents == ((load_card(folders[0]).digest, "1/2"), (load_card(folders[1]).digest, "1/3"))
        assert Lineage([card, *map(load_card, folders)]).generations(digest)[0] == digest

    @pytest.mark.parametrize(
        ("weights", "error", "code"),
        [
            ([1], InvalidInput, "invalid_merge"),
            ([1, 0], InvalidInput, "invalid_merge"),
            ([1, float("nan")], InvalidInput, "invalid_merge"),
        ],
    )
    def test_weights_that_make_no_sum_are_refused(
        self, tmp_path: Path, weights: list[float], error: type[Exception], code: str
    ) -> None:
        with pytest.raises(error) as caught:
            merge_lora(self._two(tmp_path), weights, tmp_path / "merge", base=BASE)
        assert caught.value.code == code
        assert not (tmp_path / "merge").exists()

    def test_one_adapter_twice_too_high_a_rank_and_a_full_folder_are_refused(self, tmp_path: Path) -> None:
        folders = self._two(tmp_path)
        with pytest.raises(InvalidInput, match="twice"):
            merge_lora([folders[0], folders[0]], [1, 1], tmp_path / "merge", base=BASE)
        with pytest.raises(TooLarge):
            merge_lora(folders, [1, 1], tmp_path / "merge", base=BASE, limits=AdapterLimits(max_rank=4))
        with pytest.raises(Conflict):
            merge_lora(folders, [1, 1], folders[0], base=BASE)


class TestCards:
    def test_a_card_written_before_there_were_parents_loads(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "a", card=True)
        told = json.loads((folder / "card.json").read_text())
        del told["parents"]
        (folder / "card.json").write_text(json.dumps(told))
        assert load_card(folder).parents == ()

    def test_parents_come_back_as_they_were_saved(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "a")
        save_card(folder, replace(card_of(folder), parents=(("d1", "1/3"), ("d2", "-1"))))
        assert load_card(folder).parents == (("d1", "1/3"), ("d2", "-1"))

    @pytest.mark.parametrize("parents", [[["d1", "much"]], [["d1"]], 7, [["d1", "1/0"]], [["d1", "1e4000"]]])
    def test_parents_that_can_not_be_read_are_refused(self, tmp_path: Path, parents: object) -> None:
        folder = write_adapter(tmp_path / "a", card=True)
        told = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**told, "parents": parents}))
        with pytest.raises(Corrupt):
            load_card(folder)


def test_peft_reads_a_merge_as_the_sum_of_what_it_reads_of_the_parents(tmp_path: Path) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    world = _World(make_tiny_base(tmp_path / "base"), tmp_path)
    folders = [world.train("one", ["alpha joins beta"], None), world.train("two", ["gamma joins delta"], None)]
    merge_lora(folders, ["0.3", "0.7"], tmp_path / "merge", base=world.shapes)

    def deltas(folder: Path) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(load_model(world.base), folder)
        return {
            name: layer.get_delta_weight("default")
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }

    one, two, merged = deltas(folders[0]), deltas(folders[1]), deltas(tmp_path / "merge")
    assert set(merged) == set(one)
    assert max(float(delta.abs().max()) for delta in merged.values()) > 1e-3
    for name, delta in merged.items():
        assert torch.allclose(delta, 0.3 * one[name] + 0.7 * two[name], atol=1e-7)


class TestThreeTrainedGenerations:
    """Real adapters: ada's rows train the first, bob's go on from it, cyd's from a merge of that with dan's."""

    def test_the_first_generations_contributor_is_paid_for_the_last_ones_answers(self, tmp_path: Path) -> None:
        torch.set_num_threads(1)
        base = make_tiny_base(tmp_path / "base")
        rows = {
            name: [r for r in tiny_rows() if r.contributor_id == f"ctr_{n}"]
            for n, name in enumerate(("ada", "bob", "cyd", "dan"))
        }
        texts = {name: [f"{row.prompt} {row.completion}" for row in own] for name, own in rows.items()}
        world = _World(base, tmp_path)
        one = world.train("one", texts["ada"], None)
        two = world.train("two", texts["bob"], one)
        side = world.train("side", texts["dan"], None)
        merge_lora([two, side], [1, "1/2"], tmp_path / "merge", base=world.shapes)
        world.train("three", texts["cyd"], tmp_path / "merge")
        cards = {name: load_card(tmp_path / name) for name in ("one", "two", "side", "merge", "three")}
        answers = texts["ada"] + texts["bob"] + texts["cyd"] + texts["dan"]

        gains = {cards[name].digest: world.gain_nano(tmp_path / name, answers) for name in cards}
        weights = {cards["two"].digest: (two, Fraction(1)), cards["side"].digest: (side, Fraction(1, 2))}

        def merged_gain(factors: dict[str, Fraction]) -> int:
            kept = [(*weights[digest], factor) for digest, factor in factors.items() if factor]
            out = world.fresh_folder()
            merge_lora([f for f, _, _ in kept], [w * factor for _, w, factor in kept], out, base=world.shapes)
            return world.gain_nano(out, answers)

        parents = {
            "one": {},
            "side": {},
            "two": {cards["one"].digest: gains[cards["one"].digest]},
            "merge": parent_gains(list(weights), merged_gain, steps=2),
            "three": {cards["merge"].digest: gains[cards["merge"].digest]},
        }
        owners = {"one": "ada", "two": "bob", "side": "dan", "three": "cyd"}
        measured = {
            card.digest: Generation(
                gain_nano=gains[card.digest],
                parent_gains_nano=parents[name],
                own_shares_ppb={owners[name]: WHOLE} if name in owners else {},
            )
            for name, card in cards.items()
        }
        shares = contributor_shares(Lineage(cards.values()), cards["three"].digest, measured)
        assert sum(shares.values()) == 1
        assert min(shares[name] for name in ("ada", "bob", "cyd", "dan")) > Fraction(1, 50)
        assert shares[UNATTRIBUTED] == 0
        without = contributor_shares(
            Lineage(cards.values()),
            cards["three"].digest,
            {
                **measured,
                cards["one"].digest: replace(measured[cards["one"].digest], own_shares_ppb={UNATTRIBUTED: WHOLE}),
            },
        )
        assert "ada" not in without
        assert without["bob"] == shares["bob"]


class _World:
    """Trains and scores PEFT adapters over one tiny base, with PEFT itself as the reader of every folder."""

    def __init__(self, base: BaseModel, folder: Path):
        self.base, self._folder, self._count = base, folder, 0
        self._tokenizer = load_tokenizer(base)
        model = load_model(base)
        self.shapes: BaseShapes = shapes_of(model, base.digest)

    def fresh_folder(self) -> Path:
        self._count += 1
        return self._folder / f"path{self._count}"

    def train(self, name: str, texts: list[str], parent: Path | None) -> Path:
        from peft import LoraConfig, PeftModel, get_peft_model

        from openledger.adapters.card import adapter_digest

        torch.manual_seed(1)
        model = load_model(self.base)
        if parent is None:
            model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]))
        else:
            model = PeftModel.from_pretrained(model, parent, is_trainable=True)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        for _ in range(25):
            optimizer.zero_grad()
            (-self._likelihood(model, texts)).backward()
            optimizer.step()
        folder = self._folder / name
        model.save_pretrained(folder)
        card = replace(
            _card(adapter_digest(folder), base=self.base.digest),
            name=name,
            parents=() if parent is None else ((load_card(parent).digest, "1"),),
        )
        save_card(folder, card)
        return folder

    def gain_nano(self, folder: Path, texts: list[str]) -> int:
        from peft import PeftModel

        with torch.no_grad():
            base = float(self._likelihood(load_model(self.base), texts))
            tuned = float(self._likelihood(PeftModel.from_pretrained(load_model(self.base), folder).eval(), texts))
        return round(1e9 * (tuned - base))

    def _likelihood(self, model: torch.nn.Module, texts: list[str]) -> torch.Tensor:
        encoded = self._tokenizer(texts, return_tensors="pt", padding=True)
        ids_BT, mask_BT = encoded["input_ids"], encoded["attention_mask"]
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1]
        picked_BT = logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
        return (picked_BT * mask_BT[:, 1:]).sum() / mask_BT[:, 1:].sum()

"""Real generations, trained one from another, sold, measured by the real instruments, settled and proved."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_base, tiny_rows
from trained_world import OWNER, PRICES, RECIPE, Remote, World, paid_nano, rows_of

from openledger.adapters.card import adapter_digest, load_card, save_card
from openledger.attribution.generations import GenerationScores, combined
from openledger.attribution.index import GradientIndex
from openledger.attribution.likeness import load_repeats
from openledger.attribution.period import BANK_METHOD
from openledger.attribution.recompute import agreement, recompute
from openledger.attribution.views import load_views
from openledger.core.errors import Corrupt, InsufficientFunds, InvalidInput, NotFound
from openledger.core.values import DatanetVersion
from openledger.ledger import encode_proof, verify_proof
from openledger.platform import pipeline
from openledger.platform.generations import _held_out, built_views, find_ancestry
from openledger.training.examples import encode_answer

DATANETS = {"one": ("ctr_0", "ctr_1"), "two": ("ctr_2",), "three": ("ctr_3",), "side": ("ctr_2", "ctr_3")}
PARENTS = {"two": "one", "three": "two"}


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    """Three generations, of which the first has a bank, and an adapter of the same base beside them."""
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    jobs = {name: world.train(name, rows_of(*people), PARENTS.get(name))[0] for name, people in DATANETS.items()}
    world.bank(jobs["one"])
    return world


def best(settlement, person):
    """The account of `person` that got most."""
    names = [name for name in settlement.payouts_nano if name.startswith(person)]
    return "contributor:" + max(names, key=lambda name: settlement.payouts_nano[name])


def digests(world, *names):
    return [world.registry.get(name).digest for name in names]


def settle(market, world, name, rows):
    pool = market.sell(world.registry.get(name).terms, rows)
    found = world.attribute(pool)
    return found, pipeline.settle(Remote(market.economy), found)


def test_the_first_generations_contributors_are_paid_for_the_third_ones_answers(world, market):
    found, settlement = settle(market, world, "three", tiny_rows()[::4] + tiny_rows()[1::4] + tiny_rows()[2::4])
    for name in ("use", "improvement"):
        part = settlement.parts[name]
        assert part.measured
        assert part.method == f"{BANK_METHOD}+index/ekfac-3 through lineage/1"
        assert sum(part.payouts_nano.values()) == part.pool_nano
    assert paid_nano(settlement, "ctr_0") > 0
    assert sum(settlement.payouts_nano.values()) == settlement.pool_nano
    assert found.scores.quality["generations"] == "3"
    assert [found.scores.quality[f"{place}.method"] for place in range(3)] == ["index/ekfac-3"] * 2 + [BANK_METHOD]
    own = load_card(Path(world.registry.get("three").folder))
    assert set(own.contributors) == {"ctr_3a", "ctr_3b"}  # only an ancestor was trained on ctr_0's rows


def test_the_proof_of_an_ancestors_payout_names_every_generation_and_holds_offline(world, market):
    _, settlement = settle(market, world, "three", rows_of("ctr_0", "ctr_1"))
    transfer = settlement.transfer_ids[best(settlement, "ctr_0")]
    proof = verify_proof(encode_proof(market.ledger.proof(transfer)), market.ledger.verification_key())
    lines = {line["adapter_digest"]: line for line in proof.statement["lineage"]}
    assert lines.keys() == set(digests(world, "one", "two", "three"))
    (first,) = digests(world, "one")
    assert lines[first] == {
        "adapter_digest": first, "datanet": "one", "datanet_version": 2, "row_root": "o" * 64
    }  # fmt: skip
    assert any(f"adapter {first} from one version 2" in line for line in proof.lines)
    assert any("through lineage/1" in line for line in proof.lines)
    market.ledger.audit()


def test_settling_again_after_a_crash_pays_nobody_twice(world, market):
    pool = market.sell(world.registry.get("three").terms, rows_of("ctr_0"))
    before = world.attribute(pool)
    market.close()  # attributed, and not settled
    market.open()
    found = world.attribute(market.economy.pool("three", pool.period))
    assert found.scores == before.scores
    settlement = pipeline.settle(Remote(market.economy), found)
    market.close()
    market.open()
    again = pipeline.settle(Remote(market.economy), found)
    assert again.replayed
    assert again.payouts_nano == settlement.payouts_nano
    for name, amount in settlement.payouts_nano.items():
        if name.startswith("ctr_") and amount:
            assert market.economy.balance(f"contributor:{name}").available_nano == amount
    market.ledger.audit()


def test_a_second_scorer_comes_to_the_scores_and_ceilings_of_a_derived_adapter(world, market):
    world.train("child", rows_of("ctr_1"), "side")
    pool = market.sell(world.registry.get("child").terms, rows_of("ctr_2")[::3] + rows_of("ctr_1")[::3])
    first = world.attribute(pool).scores
    ancestry, gain_nano, measured = find_ancestry(world.registry, digests(world, "child")[0]), 0, {}
    for digest, began_from in zip(reversed(ancestry.adapters), ("", *reversed(ancestry.adapters)), strict=False):
        folder = pipeline.index_folder(world.indexes, digest)
        module, views = load_views(world.base, built_views(ancestry.adapters[digest].folder, folder))
        held_out = [encode_answer(answer) for answer in _held_out(pool, ancestry)]
        own = recompute(
            "child", pool.period, pool.answers, held_out, module, GradientIndex.open(folder, digest), world,
            views=views, answered_by=ancestry.served.digest, began_from=began_from, repeats=load_repeats(folder).own,
        ).use()  # fmt: skip
        parents = {began_from: gain_nano} if began_from else {}
        gain_nano += own.gain_nano
        measured[digest] = GenerationScores(gain_nano=gain_nano, parent_gains_nano=parents, scores=own)
    second = combined(ancestry.lineage, ancestry.served.digest, measured)
    assert first.ceilings[0][0] > 0
    assert second.ceilings == first.ceilings
    assert second.gain_nano == pytest.approx(first.gain_nano, abs=2)  # each generation's is rounded
    assert agreement(first, second, 1000).agrees


def test_each_generations_gain_is_measured_on_the_same_answers_and_its_own_index(world, market):
    found, _ = settle(market, world, "three", rows_of("ctr_0", "ctr_2"))
    quality = found.scores.quality
    gains = [int(quality[f"{place}.gain_nano"]) for place in (2, 1, 0)]
    added = [int(quality[f"{place}.added_nano"]) for place in (2, 1, 0)]
    assert added == [gains[0], gains[1] - gains[0], gains[2] - gains[1]]
    assert found.scores.gain_nano == gains[2] > 0
    assert (quality["2.trained_rows"], quality["1.trained_rows"]) == ("20", "10")


def test_a_generation_that_added_nothing_gets_nothing_and_the_first_ones_are_still_paid(world, market):
    """Its rows say what no answer says: on the answers sold it only takes away."""
    noise = [replace(row, completion="theta theta theta omega kappa.") for row in rows_of("ctr_3")]
    world.train("noise", noise, "one")
    found, settlement = settle(market, world, "noise", rows_of("ctr_0", "ctr_1"))
    assert int(found.scores.quality["0.added_nano"]) < 0
    assert paid_nano(settlement.parts["use"], "ctr_3") == 0
    assert paid_nano(settlement.parts["use"], "ctr_0") > 0


def test_rows_that_an_ancestor_knows_by_heart_are_neither_held_out_nor_decoys(world):
    job, decoys = pipeline.plan_training(
        world.base,
        DatanetVersion(datanet="one", number=3, row_root="aa", num_rows=48, gate_version="g/1", published_ms=1),
        tiny_rows(), RECIPE, world.adapters,
        parent=pipeline.find_parent(world.registry, "one", world.base, RECIPE),
    )  # fmt: skip
    known = set(load_card(Path(world.registry.get("one").folder)).rows_trained)
    assert known & {row.row_id for row in job.rows}
    assert not known & {row.row_id for row in (*job.held_out, *decoys)}
    assert job.held_out


def _gain(world, answer, digest):
    under = world.score(answer.prompt_ids, answer.completion_ids, [digest, ""])
    return float(under[0].mean() - under[1].mean())


class TestMerges:
    @pytest.fixture
    def merged(self, world):
        return pipeline.merge(
            world.registry,
            world.adapters,
            world.base,
            {"one": "1", "side": "1/2"},
            "both",
            OWNER,
            PRICES,
            str,
            world.economy,
        )

    def test_both_lines_are_paid_and_the_statement_names_them(self, world, market, merged):
        found, settlement = settle(market, world, "both", tiny_rows())
        assert paid_nano(settlement.parts["use"], "ctr_0") > 0
        assert paid_nano(settlement.parts["use"], "ctr_2") > 0
        assert sum(settlement.payouts_nano.values()) == settlement.pool_nano
        assert settlement.parts["improvement"].measured  # on the rows that its parents held out
        (part,) = found.parts
        assert part.measured is None
        assert {line["adapter_digest"] for line in part.lineage} == set(digests(world, "both", "one", "side"))
        proof = market.ledger.proof(settlement.transfer_ids[best(settlement, "ctr_2")])
        lines = verify_proof(encode_proof(proof), market.ledger.verification_key()).lines
        assert any(f"{merged.adapter_digest} from a merge of adapters" in line for line in lines)

    def test_the_engine_serves_what_its_parents_make(self, world, market, merged):
        """Its gain by the engine that sells it, and by merging its parents again."""
        pool = market.sell(merged, rows_of("ctr_0"))
        held_out = _held_out(pool, find_ancestry(world.registry, merged.adapter_digest))
        gains = [_gain(world, answer, merged.adapter_digest) for answer in (*pool.answers, *held_out)]
        ceiling = sum(gains[len(pool.answers) :]) / len(held_out)
        whole = sum(a.fee_nano * min(gain, ceiling) for a, gain in zip(pool.answers, gains, strict=False))
        found = world.attribute(market.economy.pool("both", pool.period))
        assert found.scores.gain_nano == pytest.approx(whole, rel=1e-3)  # weights are rounded to nano-OPEN
        ((_, fees_nano),) = found.scores.ceilings
        assert (ceiling > 0, fees_nano) == (True, sum(answer.fee_nano for answer in pool.answers))

    def test_an_adapter_trained_from_a_merge_pays_its_parents_lines(self, world, market):
        merged = pipeline.merge(
            world.registry,
            world.adapters,
            world.base,
            {"two": "1", "side": "1"},
            "both",
            OWNER,
            PRICES,
            str,
            world.economy,
        )
        world.train("last", rows_of("ctr_3"), "both", replace(RECIPE, rank=8, alpha=8))
        found, settlement = settle(market, world, "last", tiny_rows())
        assert found.scores.quality["generations"] == "5"
        assert paid_nano(settlement.parts["use"], "ctr_0") > 0
        assert [
            line["datanet"] for line in found.parts[0].lineage if line["adapter_digest"] == merged.adapter_digest
        ] == [""]

    def test_merging_again_finds_the_merge_and_what_a_crash_left_is_made_anew(self, world, merged):
        folder = Path(world.registry.get("both").folder)
        before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
        again = {"registry": world.registry, "adapters": world.adapters, "base": world.base, "name": "both"}
        again |= {"parts": {"one": "1", "side": "1/2"}, "owner": OWNER, "prices": PRICES, "charge": str}
        again |= {"economy": world.economy}
        assert pipeline.merge(**again) == merged
        assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before
        (folder / "card.json").unlink()
        assert pipeline.merge(**again) == merged
        assert load_card(folder).parents == tuple(zip(digests(world, "one", "side"), ("1", "1/2"), strict=True))

    def test_what_deploying_costs_is_taken_before_the_merge_is_offered(self, world):
        def refuse(digest):
            charged.append(digest)
            raise InsufficientFunds("nothing there", param="account")

        parts, charged = {"one": "2", "side": "1/2"}, []
        with pytest.raises(InsufficientFunds):
            pipeline.merge(
                world.registry, world.adapters, world.base, parts, "dear", OWNER, PRICES, refuse, world.economy
            )
        with pytest.raises(NotFound):
            world.registry.get("dear")
        pipeline.merge(
            world.registry, world.adapters, world.base, parts, "dear", OWNER, PRICES, charged.append, world.economy
        )
        assert charged == digests(world, "dear") * 2

    def test_a_card_that_names_other_parents_pays_nobody(self, world, market, merged):
        folder = Path(world.registry.get("both").folder)
        (two,) = digests(world, "two")
        card = load_card(folder)
        save_card(folder, replace(card, parents=((card.parents[0][0], "1"), (two, "1/2"))))
        pool = market.sell(merged, rows_of("ctr_0"))
        before = market.ledger.checkpoint()
        with pytest.raises(Corrupt) as caught:
            world.attribute(pool)
        assert caught.value.code == "wrong_merge"
        assert market.ledger.checkpoint() == before


class TestMissingAncestors:
    @pytest.mark.parametrize("gone", ["entry", "card", "index", "weights"])
    def test_what_is_missing_is_named_nothing_is_paid_and_restoring_it_mends_it(self, world, market, gone, tmp_path):
        pool = market.sell(world.registry.get("three").terms, rows_of("ctr_0"))
        one = world.registry.get("one")
        spoilt = {
            "card": Path(one.folder) / "card.json",
            "index": pipeline.index_folder(world.indexes, one.digest) / "index.json",
            "weights": Path(one.folder) / "adapter_model.safetensors",
        }.get(gone)
        if spoilt is None:
            world.registry.remove("one")
        else:
            shutil.copy(spoilt, tmp_path / "kept")
            spoilt.unlink()
        before = market.ledger.checkpoint()
        with pytest.raises((NotFound, Corrupt)) as caught:
            world.attribute(pool)
        codes = {"index": "missing_index", "weights": "corrupt_adapter"}
        assert caught.value.code == codes.get(gone, "missing_parent")
        assert caught.value.fix
        assert market.ledger.checkpoint() == before
        if spoilt is None:
            world.registry.register("one.again", Path(one.folder), one.digest)
        else:
            shutil.copy(tmp_path / "kept", spoilt)
        assert paid_nano(pipeline.settle(Remote(market.economy), world.attribute(pool)), "ctr_0") > 0

    def test_an_ancestor_that_was_replaced_under_its_name_is_still_found_and_paid(self, world, market):
        first = world.registry.get("one")
        world.train("one", rows_of("ctr_3"))
        assert world.registry.get("one").digest != first.digest
        _, settlement = settle(market, world, "three", rows_of("ctr_0"))
        assert paid_nano(settlement, "ctr_0") > 0

    def test_the_same_weights_registered_again_from_a_bare_folder_shadow_nobodys_index(self, world, market, tmp_path):
        one, bare = world.registry.get("one"), world.adapters / "bare"
        bare.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "card.json"):
            shutil.copy(Path(one.folder) / name, bare / name)
        world.registry.register("a.copy", bare, one.digest)
        assert world.registry.find_digest(one.digest).name == "a.copy"
        assert find_ancestry(world.registry, one.digest).served.folder == one.folder
        _, settlement = settle(market, world, "one", rows_of("ctr_0"))
        assert paid_nano(settlement, "ctr_0") > 0

    def test_where_only_a_bare_folder_is_left_it_is_said_what_its_index_lacks(self, world, market):
        one = world.registry.get("one")
        shutil.rmtree(Path(one.folder) / "checkpoints")
        pool = market.sell(one.terms, rows_of("ctr_0"))
        with pytest.raises(NotFound) as caught:
            world.attribute(pool)
        assert (caught.value.code, caught.value.param) == ("missing_index", one.digest)
        index = pipeline.index_folder(world.indexes, one.digest)
        with pytest.raises(NotFound) as asked:
            world.host.score.remote([f"{one.folder}/checkpoints/epoch-1"], one.digest, str(index), pool.answers)
        assert asked.value.code == "missing_index"

    def test_an_adapter_of_a_lost_line_is_not_built_on(self, world):
        world.registry.remove("one")
        with pytest.raises(NotFound) as caught:
            pipeline.find_parent(world.registry, "three", world.base, RECIPE)
        assert caught.value.code == "missing_parent"

    def test_a_cycle_of_cards_is_refused(self, world):
        one, two = (world.registry.get(name) for name in ("one", "two"))
        save_card(Path(one.folder), replace(load_card(Path(one.folder)), parents=((two.digest, "1"),)))
        with pytest.raises(InvalidInput) as caught:
            find_ancestry(world.registry, two.digest)
        assert caught.value.code == "lineage_cycle"


def test_a_parent_is_found_by_name_digest_or_folder_and_an_unregistered_one_is_registered(world):
    two = world.registry.get("two")
    for named in ("two", two.digest, two.folder):
        assert pipeline.find_parent(world.registry, named, world.base, RECIPE).served.digest == two.digest
    world.registry.remove("two")
    pipeline.find_parent(world.registry, two.folder, world.base, RECIPE)
    assert world.registry.get(f"two.{two.digest[:12]}").digest == two.digest == adapter_digest(Path(two.folder))
    with pytest.raises(NotFound) as caught:
        pipeline.find_parent(world.registry, "nobody", world.base, RECIPE)
    assert (caught.value.code, caught.value.param) == ("unknown_adapter", "parent")


def test_scores_of_an_adapter_of_its_own_are_what_they_were_without_lineage(world, market):
    found, settlement = settle(market, world, "side", rows_of("ctr_2"))
    assert found.scores.method == "index/ekfac-3"
    assert "generations" not in found.scores.quality
    assert len(settlement.parts) == 2
    assert np.isfinite(found.parts[0].measured.scores).all()


def test_an_index_of_before_is_scored_under_its_own_method(world, market):
    folder = pipeline.index_folder(world.indexes, world.registry.get("side").digest)
    for path in (folder / "plan.json", folder / "index.json"):
        path.write_text(path.read_text().replace("index/ekfac-3", "index/ekfac-2"))
    found, _ = settle(market, world, "side", rows_of("ctr_2"))
    assert found.scores.method == "index/ekfac-2"


def test_an_index_is_measured_over_the_first_half_of_the_run_or_at_as_many_points_as_asked(world):
    folder = Path(world.registry.get("one").folder)

    def names(most=None):
        return [Path(path).stem for path in pipeline.index_views(str(folder), most)]

    assert names() == ["epoch-1", "epoch-2"]  # of four
    assert names(1) == ["epoch-2"]
    for epoch in range(5, 11):
        shutil.copy(
            folder / "checkpoints" / "epoch-1.safetensors", folder / "checkpoints" / f"epoch-{epoch}.safetensors"
        )
    assert names(2) == ["epoch-1", "epoch-5"]
    assert names(3) == ["epoch-1", "epoch-3", "epoch-5"]
    assert names(9) == ["epoch-1", "epoch-2", "epoch-3", "epoch-4", "epoch-5"]


def test_an_index_that_was_built_elsewhere_in_the_run_is_asked_where_it_was_built(world, market):
    """As indexes were built before: in the middle alone, from a PEFT folder."""
    side = world.registry.get("side")
    folder, index = Path(side.folder), pipeline.index_folder(world.indexes, side.digest)
    shutil.rmtree(index)
    (folder / "middle").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, folder / "middle" / name)
    own = set(load_card(folder).rows_trained)
    rows = [row for row in rows_of("ctr_2", "ctr_3") if row.row_id in own]
    world.host.build.remote([str(folder / "middle")], side.digest, rows, [], str(index))
    found, _ = settle(market, world, "side", rows_of("ctr_2"))
    assert len(found.parts[0].measured.entries) == len(rows)

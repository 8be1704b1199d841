"""Adapters added and removed while the service runs: who may, what is checked, and that a refusal leaves nothing."""

import asyncio
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nonce_values import draw_round
from safetensors.torch import save_file
from serving_stack import Local
from tiny_model import make_tiny_base

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, adapter_digest, load_card, save_card
from openledger.adapters.checks import read_shapes
from openledger.adapters.lineage import merge_lora
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.adapters.sources import SourceRules
from openledger.attribution import merges
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Forbidden, InsufficientFunds, InvalidInput, NotFound, OpenLedgerError
from openledger.core.signing import SigningKey
from openledger.core.values import RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.shard import ShardHost
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.platform.intake import Intake
from openledger.platform.point_of_sale import purpose_of
from openledger.platform.service import NewAdapter
from openledger.training.recipe import public_constant

OWNER = "user:owner"
NONCES = {OWNER: "0a" * 32, "user:witness": "0b" * 32}


class Till:
    """The economy's fee: who paid it for what; or that it can't be paid. What may be sold says a real one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.ledger = Ledger(folder / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
        self.economy = Economy(self.ledger, folder, ManualClock())
        for name in ("check_sale", "has_offers", "begin_offers", "missing_offers", "offer"):
            setattr(self, name, getattr(self.economy, name))
        self.paid: list[tuple[str, str]] = []
        self.short = False

    def charge_adapter(self, account: str, digest: str) -> str:
        if self.short:
            raise InsufficientFunds("0.1 OPEN are missing")
        self.paid.append((account, digest))
        return "fee"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def datanets(tmp_path: Path) -> Any:
    datanets = Datanets(tmp_path / "datanets", [ShardHost(tmp_path / "datanets" / "shard-0")], ManualClock())
    datanets.create("greek", "What letters do", OWNER)
    key = SigningKey(b"ada".ljust(32, b"."))
    datanets.register_contributor(key.public_key, "ada")
    text = "Open the archive and return its members in the order in which they were written."
    draft = RowDraft(prompt="What does archive.members do?", completion=text)
    datanets.contribute(sign_contribution(key, "greek", [draft], "1"))
    datanets.publish("greek")
    yield datanets
    datanets.close()


@pytest.fixture
def source(tmp_path: Path, base: BaseModel, datanets: Any, till: "Till") -> Path:
    """An adapter of the Datanet's first version, as it comes out of training by a round of nonces."""
    folder = tmp_path / "incoming" / "a"
    folder.mkdir(parents=True)
    _write(folder, base, seed=1)
    (version,) = datanets.versions("greek")
    nonces = draw_round(
        till.economy, till.ledger, "greek", version.number, purpose_of(version.row_root, base.digest, {}), NONCES
    )
    constant = public_constant(base.digest, "greek", version.number, nonces)
    card = AdapterCard(
        name="a", digest=adapter_digest(folder), base_model="b", base_digest=base.digest, datanet="greek",
        datanet_version=version.number, row_root=version.row_root, rows_trained=("row_1",), contributors={"ctr_1": 1},
        recipe={}, environment={}, code_version="0", initial_a=constant, initial_from="nonces",
        final_loss=1.0,
    )  # fmt: skip
    save_card(folder, card)
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "adapters")


@pytest.fixture
def till(tmp_path: Path) -> Any:
    till = Till(tmp_path / "books")
    yield till
    till.economy.close()
    till.ledger.close()


@pytest.fixture
def intake(tmp_path: Path, base: BaseModel, registry: AdapterRegistry, datanets: Any, till: "Till") -> Intake:
    rules = SourceRules(folders=(str(tmp_path / "incoming"),), schemes=("file",))
    return Intake([base], registry, Local(datanets), Local(till), rules)


def new(source: Path | str, **changed: Any) -> NewAdapter:
    values = {"name": "alpha", "source": str(source), "prompt_price_nano": 1, "completion_price_nano": 2}
    return NewAdapter(**{**values, **changed})


def left(registry: AdapterRegistry) -> list[str]:
    served = registry.root / "served"
    return [path.name for path in served.iterdir()] if served.exists() else []


async def refused(intake: Intake, registry: AdapterRegistry, account: str, adapter: NewAdapter) -> str:
    before = registry.list()
    with pytest.raises(OpenLedgerError) as caught:
        await intake.add(account, adapter)
    assert registry.list() == before
    return caught.value.code


class TestAdding:
    async def test_is_sold_under_its_lineage(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        added = await intake.add(OWNER, new(source))
        assert registry.get("alpha") == added
        assert added.terms is not None
        assert (added.digest, added.terms.datanet, added.terms.owner_account) == (
            adapter_digest(source),
            "greek",
            OWNER,
        )
        assert Path(added.folder).parent == registry.root / "served"
        assert left(registry) == [added.digest]

    async def test_the_same_again_changes_nothing(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        assert await intake.add(OWNER, new(source)) == await intake.add(OWNER, new(source))
        assert len(registry.list()) == 1

    async def test_another_price_counts_from_now_on(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        await intake.add(OWNER, new(source))
        await intake.add(OWNER, new(source, prompt_price_nano=9))
        told = registry.get("alpha").terms
        assert told is not None
        assert told.prompt_price_nano == 9

    async def test_another_content_under_the_name_must_be_asked_for(
        self, intake: Intake, registry: AdapterRegistry, source: Path, base: BaseModel
    ) -> None:
        first = await intake.add(OWNER, new(source))
        _rewrite(source, base, seed=2)
        with pytest.raises(Conflict):
            await intake.add(OWNER, new(source))
        second = await intake.add(OWNER, new(source, replace=True))
        assert registry.get("alpha").digest == second.digest != first.digest
        assert Path(first.folder).is_dir()  # what is being answered under it ends as it began
        assert registry.find_digest(first.digest).terms is None  # and what was sold is settled

    async def test_what_is_shared_is_kept_with_it(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        await intake.add(OWNER, new(source, shared_with=("user:bob",)))
        assert registry.get("alpha").shared_with == ("user:bob",)

    @pytest.mark.parametrize("again", [False, True])
    async def test_a_private_adapter_posted_again_stays_private_until_its_owner_says_otherwise(
        self, intake: Intake, registry: AdapterRegistry, source: Path, base: BaseModel, again: bool
    ) -> None:
        await intake.add(OWNER, new(source, shared_with=("user:bob",)))
        if again:
            _rewrite(source, base, seed=8)
        await intake.add(OWNER, new(source, replace=again))
        assert registry.get("alpha").shared_with == ("user:bob",)
        await intake.add(OWNER, new(source, shared_with=()))
        assert registry.get("alpha").shared_with == ()


class TestRefusing:
    async def test_who_does_not_own_the_datanet(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        assert await refused(intake, registry, "user:thief", new(source)) == "not_the_owner"

    async def test_who_does_not_own_the_name(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        await intake.add(OWNER, new(source))
        assert await refused(intake, registry, "user:thief", new(source, replace=True)) == "not_the_owner"

    async def test_a_version_that_was_not_published(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        card = load_card(source)
        for change in ({"row_root": "00"}, {"credit_root": "00"}, {"datanet_version": 9}):
            save_card(source, replace(card, **change))
            assert await refused(intake, registry, OWNER, new(source)) == "unknown_datanet_version"

    async def test_an_adapter_without_a_card(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        (source / "card.json").unlink()
        assert await refused(intake, registry, OWNER, new(source)) == "adapter_without_card"

    async def test_another_base(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        save_card(source, replace(load_card(source), base_digest="other"))
        assert await refused(intake, registry, OWNER, new(source)) == "wrong_base"

    async def test_a_folder_elsewhere(self, intake: Intake, registry: AdapterRegistry, tmp_path: Path) -> None:
        for place in ("/etc", str(tmp_path), "s3://bucket/a", "org/name"):
            assert await refused(intake, registry, OWNER, new(place)) == "adapter_source_forbidden"

    async def test_weights_that_were_cut_short(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        weights = source / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:200])
        assert await refused(intake, registry, OWNER, new(source)) == "corrupt_adapter"

    async def test_leaves_no_file(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        (source / "card.json").unlink()
        with pytest.raises(InvalidInput):
            await intake.add(OWNER, new(source))
        assert left(registry) == []


class TestConstants:
    @pytest.mark.parametrize("said", ["row_root", "nonces"])
    async def test_one_that_no_witness_gave_a_nonce_for_is_refused_whatever_its_card_says(
        self, intake: Intake, registry: AdapterRegistry, source: Path, till: "Till", said: str
    ) -> None:
        save_card(source, replace(load_card(source), initial_a="ab" * 32, initial_from=said))
        assert await refused(intake, registry, OWNER, new(source)) == "constant_unwitnessed"
        assert (left(registry), till.paid) == ([], [])

    async def test_what_was_on_sale_before_the_rule_stays_and_its_price_may_change_but_not_what_it_is(
        self, intake: Intake, registry: AdapterRegistry, source: Path, base: BaseModel
    ) -> None:
        added = await intake.add(OWNER, new(source))
        folder = Path(added.folder)
        save_card(folder, replace(load_card(folder), initial_a="ab" * 32, initial_from="row_root"))
        save_card(source, load_card(folder))
        again = await intake.add(OWNER, new(source, prompt_price_nano=9))
        assert again.terms is not None
        assert again.terms.prompt_price_nano == 9
        _rewrite(source, base, seed=2)
        assert await refused(intake, registry, OWNER, new(source, replace=True)) == "constant_unwitnessed"


class TestFee:
    async def test_is_the_accounts_that_adds(
        self, intake: Intake, registry: AdapterRegistry, source: Path, till: Till
    ) -> None:
        added = await intake.add(OWNER, new(source))
        assert till.paid == [(OWNER, added.digest)]

    async def test_is_not_taken_for_what_is_refused(
        self, intake: Intake, registry: AdapterRegistry, source: Path, till: Till
    ) -> None:
        await refused(intake, registry, "user:thief", new(source))
        await refused(intake, registry, OWNER, new(source, name="A bad name"))
        assert till.paid == []

    async def test_who_can_not_pay_adds_nothing(
        self, intake: Intake, registry: AdapterRegistry, source: Path, till: Till
    ) -> None:
        till.short = True
        assert await refused(intake, registry, OWNER, new(source)) == "insufficient_funds"
        assert left(registry) == []


class TestCards:
    async def test_a_refused_card_changes_none_that_is_here(
        self, intake: Intake, registry: AdapterRegistry, source: Path, datanets: Any
    ) -> None:
        added = await intake.add(OWNER, new(source))
        card = load_card(Path(added.folder))
        save_card(source, replace(card, contributors={"ctr_thief": 1}))
        assert await refused(intake, registry, "user:thief", new(source, name="mine")) == "not_the_owner"
        assert load_card(Path(added.folder)) == card

    async def test_another_card_of_the_same_weights_is_refused(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        added = await intake.add(OWNER, new(source))
        card = load_card(Path(added.folder))
        save_card(source, replace(card, contributors={"ctr_thief": 1}))
        assert await refused(intake, registry, OWNER, new(source)) == "card_conflict"
        assert load_card(Path(added.folder)) == card

    async def test_the_folder_that_is_registered_is_used_and_what_was_evaluated_stays(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        trained = registry.root / "trained"
        shutil.copytree(source, trained)
        save_card(trained, replace(load_card(trained), final_loss=math.nan, evaluation={"rouge": 0.5}))
        save_card(source, replace(load_card(source), final_loss=math.nan))
        registry.register("zeta", trained, adapter_digest(source))
        assert (await intake.add(OWNER, new(source))).folder == str(trained)
        assert load_card(trained).evaluation == {"rouge": 0.5}
        assert left(registry) == []

    async def test_a_parent_that_is_not_here_is_refused(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        save_card(source, replace(load_card(source), parents=(("ab" * 32, "1"),)))
        assert await refused(intake, registry, OWNER, new(source)) == "missing_parent"
        assert left(registry) == []

    async def test_a_parent_that_is_here_is_taken(
        self, intake: Intake, registry: AdapterRegistry, source: Path, base: BaseModel
    ) -> None:
        parent = await intake.add(OWNER, new(source))
        _rewrite(source, base, seed=2)
        save_card(source, replace(load_card(source), parents=((parent.digest, "1"),)))
        assert (await intake.add(OWNER, new(source, name="beta"))).digest == adapter_digest(source)


class TestMerges:
    """What was trained on no rows needs no witness; so it has to be the merge that its card says."""

    @pytest.fixture
    async def parents(self, intake: Intake, source: Path, base: BaseModel) -> list[RegisteredAdapter]:
        alpha = await intake.add(OWNER, new(source))
        _rewrite(source, base, seed=2)
        return [alpha, await intake.add(OWNER, new(source, name="beta"))]

    @pytest.fixture
    def merged(self, parents: list[RegisteredAdapter], source: Path, base: BaseModel) -> Path:
        """With a card that names the owner's Datanet, as one must to be taken."""
        out, of = source.parent / "merged", load_card(source)
        merge_lora([Path(each.folder) for each in parents], ["1", "1/3"], out, base=read_shapes(base))
        card = replace(load_card(out), datanet="greek", datanet_version=of.datanet_version, row_root=of.row_root)
        save_card(out, card)
        return out

    async def test_one_of_adapters_that_are_here_is_taken(
        self, intake: Intake, registry: AdapterRegistry, merged: Path
    ) -> None:
        assert (await intake.add(OWNER, new(merged, name="both"))).digest == adapter_digest(merged)

    async def test_one_by_other_weights_than_its_card_says_is_refused(
        self, intake: Intake, registry: AdapterRegistry, merged: Path
    ) -> None:
        card = load_card(merged)
        save_card(merged, replace(card, parents=(card.parents[0], (card.parents[1][0], "1/2"))))
        assert await refused(intake, registry, OWNER, new(merged, name="both")) == "invalid_merge"

    async def test_what_was_trained_by_a_constant_without_a_witness_is_not_sold_as_one(
        self,
        intake: Intake,
        registry: AdapterRegistry,
        source: Path,
        base: BaseModel,
        parents: list[RegisteredAdapter],
        till: Till,
    ) -> None:
        paid = list(till.paid)
        _rewrite(source, base, seed=3)
        claimed = replace(load_card(source), parents=((parents[0].digest, "1"),), rows_trained=(), initial_a="")
        save_card(source, claimed)
        assert await refused(intake, registry, OWNER, new(source, name="both")) == "invalid_merge"
        assert (till.paid, len(left(registry))) == (paid, 2)

    async def test_no_weights_are_read_of_parents_that_are_too_many_for_it(
        self,
        intake: Intake,
        registry: AdapterRegistry,
        source: Path,
        base: BaseModel,
        parents: list[RegisteredAdapter],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        read: list[Any] = []
        monkeypatch.setattr(merges, "merge_lora", lambda *given, **more: read.append(given))
        _rewrite(source, base, seed=3)
        named = tuple((each.digest, "1") for each in parents)
        save_card(source, replace(load_card(source), parents=named, rows_trained=(), initial_a=""))
        assert await refused(intake, registry, OWNER, new(source, name="both")) == "invalid_merge"
        assert read == []

    async def test_parents_of_one_adapter_at_a_time_are_read(
        self, intake: Intake, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, at_once = [0], []

        def check(card: AdapterCard, folder: Path) -> None:
            now[0] += 1
            at_once.append(now[0])
            time.sleep(0.1)
            now[0] -= 1

        monkeypatch.setattr(intake, "_check_parents", check)
        await asyncio.gather(*(intake.add(OWNER, new(source, name=name)) for name in ("a", "b", "c")))
        assert at_once == [1, 1, 1]


class TestRemoving:
    async def test_takes_the_name_and_leaves_the_files(
        self, intake: Intake, registry: AdapterRegistry, source: Path
    ) -> None:
        added = await intake.add(OWNER, new(source))
        await intake.remove(OWNER, "alpha")
        assert registry.page(account=OWNER) == ()
        with pytest.raises(NotFound):
            registry.get("alpha")
        assert Path(added.folder).is_dir()
        assert registry.find_digest(added.digest).folder == added.folder  # its pool is still to be settled

    async def test_is_the_owners(self, intake: Intake, registry: AdapterRegistry, source: Path) -> None:
        await intake.add(OWNER, new(source))
        with pytest.raises(Forbidden):
            await intake.remove("user:thief", "alpha")
        await intake.add(OWNER, new(source, name="secret", shared_with=("user:bob",)))
        with pytest.raises(NotFound):
            await intake.remove("user:thief", "secret")
        with pytest.raises(NotFound):
            await intake.remove(OWNER, "nobody")
        assert len(registry.list()) == 2


def _rewrite(folder: Path, base: BaseModel, seed: int) -> None:
    card = load_card(folder)
    _write(folder, base, seed)
    save_card(folder, replace(card, digest=adapter_digest(folder)))


def _write(folder: Path, base: BaseModel, seed: int) -> None:
    """Weights and configuration of a small adapter on the query projections."""
    generator = torch.Generator().manual_seed(seed)
    modules = {name: shape for name, shape in read_shapes(base).modules.items() if name.endswith("q_proj")}
    weights = {
        f"base_model.model.{name}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for name, (features_in, features_out) in modules.items()
        for side, shape in (("A", (2, features_in)), ("B", (features_out, 2)))
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))

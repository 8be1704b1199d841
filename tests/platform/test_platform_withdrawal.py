"""A contributor withdraws: the adapter without them is served at once, pays nobody for their rows, and is settled."""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_tiny_base
from trained_world import Remote, World, paid_nano, rows_of

from jobs import withdraw as job
from openledger.adapters import base_model
from openledger.adapters.base_model import load_tokenizer
from openledger.adapters.card import load_card
from openledger.attribution import actor
from openledger.attribution.bank import member_without, run_bank
from openledger.attribution.bank_folder import find_bank
from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.platform import actors, cluster, credit, pipeline, withdrawal
from openledger.platform.workdir import Workdir
from openledger.training.examples import encode_row
from openledger.training.record import load_held_out, load_run, load_weights

GONE = "ctr_0a"
ROWS = rows_of("ctr_0", "ctr_1")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    """An adapter whose bank knows it without ctr_0a, and one that came from it."""
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    job, _ = world.train("one", ROWS)
    world.bank(job, without=[GONE])
    world.train("two", rows_of("ctr_2"), "one")
    return world


def withdraw(world, rows=ROWS, contributor=GONE, **options):
    plan = withdrawal.plan_withdrawal(world.registry, "one", contributor)
    return withdrawal.withdraw(
        plan,
        world.registry,
        world.base,
        rows,
        lambda *asked: world.host.build.remote(*asked),
        world.adapters,
        world.indexes,
        economy=world.economy,
        **options,
    )


def test_the_member_that_never_saw_the_rows_takes_the_name_and_the_old_one_stays_findable(world):
    old = world.registry.get("one")
    kept = find_bank(Path(old.folder), old.digest)
    lines = []
    card = withdraw(world, tell=lines.append)
    new = world.registry.get("one")
    assert new.digest == card.digest != old.digest
    assert new.terms.owner_account == old.terms.owner_account
    assert new.terms.completion_price_nano == old.terms.completion_price_nano
    assert world.registry.find_digest(old.digest).folder == old.folder
    member = load_weights(kept.withouts[GONE])
    example = encode_row(load_tokenizer(world.base), ROWS[0])
    prompt, completion = example.ids[: example.num_prompt], example.ids[example.num_prompt :]
    served, before = world.score(prompt, completion, [new.digest, old.digest])
    assert not np.allclose(served, before, atol=1e-3)
    written = load_file(Path(new.folder) / "adapter_model.safetensors")
    assert all(torch.equal(written[name.replace(".default.", ".")], tensor) for name, tensor in member.items())
    assert any("from now on" in line for line in lines)


def test_the_card_and_what_is_measured_with_know_nothing_of_the_rows(world):
    old = load_card(Path(world.registry.get("one").folder))
    card = withdraw(world)
    theirs = {row.row_id for row in ROWS if row.contributor_id == GONE}
    assert theirs & set(old.rows_trained)
    assert not theirs & set(card.rows_trained)
    assert GONE not in card.contributors
    assert len(card.rows_trained) == sum(card.contributors.values())
    assert all(row.contributor_id != GONE for row in load_held_out(Path(world.registry.get("one").folder)))


def test_what_is_sold_from_then_on_pays_the_others_and_what_was_sold_before_is_still_theirs(world, market):
    before = market.sell(world.registry.get("one").terms, ROWS[:6])
    withdraw(world)
    pool = market.sell(world.registry.get("one").terms, ROWS[6:])
    assert pool.period == before.period
    found = world.attribute(pool)
    old, new = sorted(found.parts, key=lambda part: GONE not in part.scores.scores_nano)
    assert GONE in old.scores.scores_nano
    assert GONE not in new.scores.scores_nano
    assert new.scores.method == "index/ekfac-3"
    settlement = pipeline.settle(Remote(market.economy), found)
    assert sum(settlement.payouts_nano.values()) == settlement.pool_nano
    assert paid_nano(settlement, "ctr_1") > 0
    market.ledger.audit()


def test_rows_that_are_removed_already_are_not_needed_where_the_bank_has_the_member(world):
    left = [row for row in ROWS if row.contributor_id != GONE]
    card = withdraw(world, left)
    assert set(card.rows_trained) <= {row.row_id for row in left}
    index = pipeline.index_folder(world.indexes, card.digest) / "index.json"
    assert index.exists()


def test_rows_taken_back_keep_earning_from_what_the_adapter_that_knows_them_sold(world, market):
    pool = market.sell(world.registry.get("one").terms, ROWS[::2])
    withdraw(world, [row for row in ROWS if row.contributor_id != GONE])
    found = world.attribute(pool)
    assert found.scores.scores_nano[GONE] > 0
    assert "gone_rows" not in found.scores.quality


def test_what_rows_that_are_gone_have_taught_is_nobodys(world, market):
    """The adapter without ctr_0a was trained on two rows of ctr_1a that are gone too."""
    trained = load_card(Path(world.registry.get("one").folder)).rows_trained
    theirs = [row.row_id for row in ROWS if row.contributor_id == "ctr_1a" and row.row_id in trained][:2]
    card = withdraw(world, [row for row in ROWS if row.contributor_id != GONE and row.row_id not in theirs])
    pool = market.sell(world.registry.get("one").terms, ROWS[::2])
    use = world.attribute(pool).scores
    number = len(card.rows_trained)
    assert set(theirs) <= set(card.rows_trained)
    assert use.quality["gone_rows"] == "2"
    assert use.gain_nano > 0
    assert sum(use.scores_nano.values()) == pytest.approx(use.gain_nano * (number - 2) / number, rel=1e-3)


def test_without_a_member_it_is_trained_and_needs_all_rows(world, monkeypatch):
    asked = []

    def train_without(folder, base, rows, contributor, *, num_gpus=0):
        """As the trainer's, without Ray."""
        asked.append(contributor)
        examples = [encode_row(load_tokenizer(base), row) for row in rows]
        record = load_run(folder)
        member = member_without(record, examples, contributor)
        bank = run_bank(folder / "bank", record, base, examples)
        bank.train([member])
        return bank.weights([member])[0], {}

    monkeypatch.setattr(withdrawal, "train_without", train_without)
    assert not withdrawal.plan_withdrawal(world.registry, "one", "ctr_1b").ready
    with pytest.raises(NotFound) as caught:
        withdraw(world, [row for row in ROWS if row.contributor_id != "ctr_1b"], "ctr_1b")
    assert (caught.value.code, asked) == ("rows_gone", [])
    card = withdraw(world, ROWS, "ctr_1b")
    assert asked == ["ctr_1b"]
    assert "ctr_1b" not in card.contributors


def test_the_training_has_the_gpu_to_itself_and_the_index_after_it(world, monkeypatch):
    """Of a node's one GPU an actor that waits for its work would keep the training for good."""
    asked = []

    def train_without(folder, base, rows, contributor, *, num_gpus):
        asked.append(("training", num_gpus))
        examples = [encode_row(load_tokenizer(base), row) for row in rows]
        member = member_without(load_run(folder), examples, contributor)
        bank = run_bank(folder / "bank", load_run(folder), base, examples)
        bank.train([member])
        return bank.weights([member])[0], {}

    def index_task(base, *, num_gpus):
        def build(*arguments):
            asked.append(("index", num_gpus))
            return world.host.build.remote(*arguments)

        return build

    monkeypatch.setattr(withdrawal, "train_without", train_without)
    monkeypatch.setattr(actor, "start_index_host", lambda *_, **__: pytest.fail("an actor would hold the GPU"))
    stand_in_for_the_cluster(world, monkeypatch, index_task)
    arguments = Namespace(adapter="one", contributor="ctr_1b", base_model="", gpus=1.0, dry_run=False)
    job.withdraw(Workdir(world.folder), arguments)
    assert asked == [("training", 1.0), ("index", 1.0)]


def stand_in_for_the_cluster(world, monkeypatch, index_task, checked_credit=lambda *_: []):
    for place, name, value in (
        (base_model, "find_base_model", lambda _: world.base),
        (actor, "index_task", index_task),
        (cluster, "connected", lambda _: nullcontext()),
        (pipeline, "published", lambda *_: (None, ROWS)),
        (credit, "checked_credit", checked_credit),
        *((actors, f"{each}_actor", lambda _: world.economy) for each in ("datanets", "economy", "ledger")),
    ):
        monkeypatch.setattr(place, name, value)


def test_stopped_before_its_index_it_goes_on_and_done_twice_it_is_done_once(world):
    build, world.host = world.host, None  # the host dies after the switch
    with pytest.raises(AttributeError):
        withdraw(world)
    served = world.registry.get("one").digest
    world.host = build
    card = withdraw(world)
    assert card.digest == served == world.registry.get("one").digest
    assert (pipeline.index_folder(world.indexes, served) / "index.json").exists()
    assert withdraw(world).digest == served


def test_where_an_ancestor_knows_the_rows_nothing_is_switched(world):
    before = world.registry.list()
    with pytest.raises(Conflict) as caught:
        withdrawal.plan_withdrawal(world.registry, "two", GONE)
    assert caught.value.code == "ancestor_knows"
    assert world.registry.list() == before


def test_what_can_not_be_withdrawn_is_refused_by_name(world):
    for name, contributor, expected, code in (
        ("one", "ctr_9", NotFound, "unknown_contributor"),
        ("nobody", GONE, NotFound, "unknown_model"),
    ):
        with pytest.raises(expected) as caught:
            withdrawal.plan_withdrawal(world.registry, name, contributor)
        assert caught.value.code == code
    withdraw(world)
    with pytest.raises(Conflict) as again:
        withdrawal.plan_withdrawal(world.registry, "one", "ctr_1a")
    assert again.value.code == "already_without"
    world.train("alone", [row for row in rows_of("ctr_3") if row.contributor_id == "ctr_3a"])
    with pytest.raises(InvalidInput) as alone:
        withdrawal.plan_withdrawal(world.registry, "alone", "ctr_3a")
    assert alone.value.code == "one_contributor"


def test_a_wrong_order_of_credit_keeps_nobodys_rows_on_sale(world, monkeypatch):
    """The job asks for the order once the adapter without them is served, and builds no index by it."""
    sold, asked = [], []

    def other_credit(datanets, version, rows, ledger):
        asked.extend(row.row_id for row in rows)
        sold.append(world.registry.get("one").digest)
        raise InvalidInput("the version's order of credit is not the log's", code="other_credit", param="credit")

    stand_in_for_the_cluster(world, monkeypatch, lambda base, num_gpus: world.host.build.remote, other_credit)
    old = world.registry.get("one")
    arguments = Namespace(adapter="one", contributor=GONE, base_model="", gpus=0, dry_run=False)
    with pytest.raises(InvalidInput) as caught:
        job.withdraw(Workdir(world.folder), arguments)
    assert caught.value.code == "other_credit"
    served = world.registry.get("one").digest
    assert served != old.digest
    assert sold == [served]
    assert not (pipeline.index_folder(world.indexes, served) / "index.json").exists()
    assert set(asked) == set(load_card(Path(old.folder)).rows_trained)
    monkeypatch.setattr(credit, "checked_credit", lambda *_: [])
    assert job.withdraw(Workdir(world.folder), arguments)["digest"] == served
    assert (pipeline.index_folder(world.indexes, served) / "index.json").exists()

"""A contributor who sends his own rows again, in a run that knows no order of credit: named in the settlement, unpaid,
and recomputed by a second scorer."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from tiny_model import make_tiny_base, tiny_rows
from trained_world import Remote, World, rows_of

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.index import GradientIndex
from openledger.attribution.index_folder import read_index
from openledger.attribution.likeness import LEAST_MILLI, find_repeats, load_repeats
from openledger.attribution.recompute import agreement, recompute
from openledger.attribution.views import load_views
from openledger.core.shares import RULE_2, shares_ppb
from openledger.core.values import UNATTRIBUTED
from openledger.economy import Parameters
from openledger.ledger import encode_proof, verify_proof
from openledger.platform import pipeline, withdrawal
from openledger.platform.generations import _held_out, built_views, find_ancestry
from openledger.training.examples import encode_answer, encode_row
from openledger.training.lora import attach_lora
from openledger.training.record import load_run

pytestmark = pytest.mark.usefixtures("here")
GREEDY = "ctr_0a"


def with_repetitions():
    """The rows of four contributors; one of them sends his twice more, with a word changed in the question."""
    rows = rows_of("ctr_0", "ctr_1")
    own = [row for row in rows if row.contributor_id == GREEDY]
    again = [
        replace(row, row_id=f"{row.row_id}-{number}", prompt=row.prompt.replace("What does", word))
        for number, word in enumerate(("What does the", "And what does"))
        for row in own
    ]
    return [*rows, *again]


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    world.job, _ = world.train("greek", with_repetitions())
    return world


@pytest.fixture
def settled(trained, market):
    pool = market.sell(trained.registry.get("greek").terms, tiny_rows()[::4])
    found = trained.attribute(pool)
    return pool, found, pipeline.settle(Remote(market.economy), found)


def paid_for_all(scores):
    """The shares of use by the rule before, which pays for every row."""
    z_milli = Parameters().z_milli
    return shares_ppb(
        scores.scores_nano, scores.errors_nano, scores.gain_nano, z_milli, rule=RULE_2, ceilings=scores.ceilings
    )


def statement_of(market, settlement):
    transfer = next(iter(settlement.transfer_ids.values()))
    return verify_proof(encode_proof(market.ledger.proof(transfer)), market.ledger.verification_key()).statement


def test_the_statement_names_the_repeated_rows_and_what_is_unpaid(trained, market, settled):
    _, found, settlement = settled
    statement = statement_of(market, settlement)
    owner = {row.row_id: row.contributor_id for row in with_repetitions()}
    repeats = {row: (earlier, milli) for row, earlier, _, milli in statement["repeated_rows"]}
    assert any(row.endswith(("-0", "-1")) for row in repeats)
    for row, (earlier, milli) in repeats.items():
        assert owner[row] == owner[earlier]
        assert milli > LEAST_MILLI
    assert {contributor for _, _, contributor, _ in statement["repeated_rows"]} <= set(owner.values())
    use = statement["parts"]["use"]
    assert statement["rule"] == "shares/5"
    assert 0 < use["unpaid_nano"][GREEDY] == found.scores.unpaid_nano[GREEDY]
    assert use["quality"]["likeness"] == f"likeness/1 {len(repeats)}"  # nobody knows whose row was first
    assert use["quality"]["credit"] == "unknown"
    assert market.ledger.audit().num_settlements == 1
    assert settlement.parts["use"].shares_ppb[GREEDY] < paid_for_all(found.scores)[GREEDY]


def test_what_they_would_have_had_goes_to_nobody(settled):
    _, found, settlement = settled
    before = paid_for_all(found.scores)
    others = [name for name in before if name not in (GREEDY, UNATTRIBUTED)]
    assert all(settlement.parts["use"].shares_ppb[name] <= before[name] + 1 for name in others)
    assert settlement.parts["use"].shares_ppb[UNATTRIBUTED] > before[UNATTRIBUTED]


def test_an_explanation_says_what_is_unpaid(market, settled):
    _, _, settlement = settled
    paid = next((account for account in settlement.transfer_ids if account == f"contributor:{GREEDY}"), "unattributed")
    lines = market.economy.explain(settlement.transfer_ids[paid])
    assert any("rows repeat earlier ones and aren't paid" in line for line in lines)
    if paid != "unattributed":
        assert any("of it by rows that repeat earlier ones: unpaid" in line for line in lines)


def test_a_second_scorer_finds_the_same_rows_and_comes_to_the_same_shares(trained, settled):
    pool, found, _ = settled
    job = trained.job
    folder, digest = Path(job.output), trained.registry.get("greek").digest
    index = pipeline.index_folder(trained.indexes, digest)
    record, tokenizer = load_run(folder), load_tokenizer(trained.base)
    start = attach_lora(load_model(trained.base), record.recipe, record.initial).eval()
    again = find_repeats(start, [encode_row(tokenizer, row) for row in job.rows])
    assert again == load_repeats(index)
    module, views = load_views(trained.base, built_views(job.output, index))
    held_out = [encode_answer(answer) for answer in _held_out(pool, find_ancestry(trained.registry, digest))]
    second = recompute(
        "greek", pool.period, pool.answers, held_out, module, GradientIndex.open(index, digest), trained,
        views=views, repeats=again.own,
    ).use()  # fmt: skip
    assert second.unpaid_nano == pytest.approx(found.scores.unpaid_nano, rel=1e-3)
    assert agreement(found.scores, second, 1000).agrees


def test_an_index_that_is_there_with_its_list_is_not_asked_of_anybody(trained, world):
    index = pipeline.index_folder(trained.indexes, trained.registry.get("greek").digest)
    entries = read_index(index)[0].entries
    nobody = Mock(side_effect=AssertionError)
    assert pipeline.build_indexes(nobody, [trained.job], [()], trained.indexes) == [len(entries)]
    (pipeline.index_folder(world.indexes, world.registry.get("greek").digest) / "repeats.json").unlink()
    decoys = [row for row in with_repetitions() if row.row_id in {e.row_id for e in entries if not e.trained}]
    assert pipeline.build_indexes(world.host.build.remote, [trained.job], [decoys], world.indexes) == [len(entries)]
    assert load_repeats(pipeline.index_folder(world.indexes, world.registry.get("greek").digest))


def test_an_index_without_the_list_pays_every_row_and_says_so(world, market):
    digest = world.registry.get("greek").digest
    (pipeline.index_folder(world.indexes, digest) / "repeats.json").unlink()
    pool = market.sell(world.registry.get("greek").terms, tiny_rows()[::4])
    found = world.attribute(pool)
    assert (found.scores.unpaid_nano, found.scores.repeats) == ({}, ())
    assert found.scores.quality["likeness"] == "unmeasured"


def test_without_a_contributor_one_of_the_rows_alike_is_paid_though_the_earliest_is_gone(trained, world):
    """Somebody else withdraws, after one of the rows that others repeat was removed from the Datanet."""
    old = world.registry.get("greek").digest
    known = load_repeats(pipeline.index_folder(world.indexes, old)).own
    first = known[0].earlier
    rows = [row for row in with_repetitions() if row.row_id != first]
    world.bank(replace(trained.job, output=world.registry.get("greek").folder), without=["ctr_1a"])
    plan = withdrawal.plan_withdrawal(world.registry, "greek", "ctr_1a")
    parts = plan, world.registry, world.base, rows, world.host.build.remote, world.adapters, world.indexes
    card = withdrawal.withdraw(*parts, economy=world.economy)
    repeats = load_repeats(pipeline.index_folder(world.indexes, card.digest))
    found = repeats.own
    assert {each.row_id for each in found} <= set(card.rows_trained)
    record, tokenizer = load_run(Path(trained.job.output)), load_tokenizer(world.base)
    start = attach_lora(load_model(world.base), record.recipe, record.initial).eval()
    left = [encode_row(tokenizer, row) for row in rows if row.row_id in card.rows_trained]
    assert repeats == find_repeats(start, left)
    assert any(each.earlier == first for each in known)
    assert all(first not in (each.row_id, each.earlier) for each in found)
    assert len(found) < len(known)


def test_without_a_list_of_the_old_adapters_there_is_none_of_the_new_ones(trained, world):
    old = pipeline.index_folder(world.indexes, world.registry.get("greek").digest)
    (old / "repeats.json").unlink()
    world.bank(replace(trained.job, output=world.registry.get("greek").folder), without=["ctr_1a"])
    plan = withdrawal.plan_withdrawal(world.registry, "greek", "ctr_1a")
    parts = plan, world.registry, world.base, with_repetitions(), world.host.build.remote, world.adapters, world.indexes
    card = withdrawal.withdraw(*parts, economy=world.economy)
    assert load_repeats(pipeline.index_folder(world.indexes, card.digest)) is None

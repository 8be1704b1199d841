"""Somebody sends another's rows again: named in the settlement with whose they repeat, unpaid, and recomputed by a
second scorer who takes from the version's manifest, and from nobody's word, whose row was first."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from house import ADA, BOB, House
from tiny_model import make_tiny_base, tiny_rows
from trained_world import OWNER, RECIPE, Market, Remote, World, rows_of

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.card import load_card
from openledger.attribution.actor import IndexHost
from openledger.attribution.index_folder import read_index
from openledger.attribution.likeness import find_repeats, load_repeats, save_repeats
from openledger.attribution.recompute import with_gone
from openledger.core.clock import ManualClock
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.signed import contribution_id
from openledger.core.signing import SigningKey
from openledger.core.values import UNATTRIBUTED, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.seals import SEAL_MS, digest_of, seal_of
from openledger.datanets.shard import ShardHost
from openledger.datanets.versions import check_sealed, credit_root, read_credit, write_manifest
from openledger.economy import Parameters
from openledger.ledger import encode_proof, verify_proof
from openledger.ledger.offers import OFFER
from openledger.ledger.payouts import batches_in
from openledger.ledger.seals import Seals
from openledger.platform import pipeline, withdrawal
from openledger.platform.completing import complete_lists
from openledger.platform.credit import checked_credit, credit_to_train, openings_in
from openledger.platform.generations import find_ancestry
from openledger.platform.point_of_sale import purpose_of
from openledger.training import trainer
from openledger.training.examples import encode_row
from openledger.training.lora import attach_lora
from openledger.training.record import check_credit, credit_of, load_run, save_run

pytestmark = pytest.mark.usefixtures("here")
AUTHOR, COPIERS = "ctr_0a", ("ctr_8", "ctr_9")


def with_copies():
    """The rows of four contributors; two others send those of one of them, as if no cluster had found them. The copies'
    ids come before the originals'."""
    rows = rows_of("ctr_0", "ctr_1")
    own = [row for row in rows if row.contributor_id == AUTHOR]
    copies = [
        replace(row, row_id=f"a{row.row_id}-{copier}", contributor_id=copier) for copier in COPIERS for row in own
    ]
    return [*rows, *copies]


ORDER = [row.row_id for row in with_copies()]


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    world.job, _ = world.train("greek", with_copies(), credit=ORDER)
    return world


@pytest.fixture
def settled(trained, market):
    pool = market.sell(trained.registry.get("greek").terms, tiny_rows()[::4])
    found = trained.attribute(pool)
    return found, pipeline.settle(Remote(market.economy), found)


def statement_of(market, settlement):
    transfer = next(iter(settlement.transfer_ids.values()))
    return verify_proof(encode_proof(market.ledger.proof(transfer)), market.ledger.verification_key()).statement


def encoded(world):
    tokenizer = load_tokenizer(world.base)
    return [encode_row(tokenizer, row) for row in world.job.rows]


def start_of(world, record):
    return attach_lora(load_model(world.base), record.recipe, record.initial).eval()


def index_of(world):
    return pipeline.index_folder(world.indexes, world.registry.get("greek").digest)


def test_the_statement_names_each_copy_with_the_earlier_row_and_whose_that_is(market, settled):
    found, settlement = settled
    statement = statement_of(market, settlement)
    owner = {row.row_id: row.contributor_id for row in with_copies()}
    place = {row_id: number for number, row_id in enumerate(ORDER)}
    named = statement["repeated_rows"]
    assert {owner[row] for row, *_ in named} >= set(COPIERS)
    assert AUTHOR in {contributor for _, _, contributor, _ in named}
    for row, earlier, contributor, _ in named:
        assert owner[earlier] == contributor
        assert place[earlier] < place[row]
    use = statement["parts"]["use"]
    assert statement["rule"] == "shares/5"
    assert (use["quality"]["likeness"], use["quality"]["credit"]) == (f"likeness/3 {len(named)}", credit_root(ORDER))
    assert set(use["unpaid_nano"]) & set(COPIERS)
    assert found.scores.unpaid_nano == use["unpaid_nano"]
    assert market.ledger.audit().num_settlements == 1


def test_what_a_copy_would_have_had_goes_to_nobody_its_original_neither(trained, market, settled, tmp_path):
    """Against the rule before, which a vote can go back to: copies under other names are paid there."""
    found, settlement = settled
    assert "repeat earlier ones and aren't paid" in " ".join(
        market.economy.explain(next(iter(settlement.transfer_ids.values())))
    )
    (tmp_path / "third").mkdir()
    third = Market(tmp_path / "third", trained.base, Parameters(shares_rule="shares/3"))
    pool = third.sell(trained.registry.get("greek").terms, tiny_rows()[::4])
    by_third = trained.attribute(pool)
    before = pipeline.settle(Remote(third.economy), by_third)
    assert by_third.scores.quality["likeness"].startswith("likeness/1 ")
    assert by_third.scores.scores_nano == found.scores.scores_nano
    assert all(len(row) == 3 for row in statement_of(third, before)["repeated_rows"])
    now, then = (one.parts["use"].shares_ppb for one in (settlement, before))
    lost = [name for name in COPIERS if now[name] < then[name]]
    assert lost
    assert now[UNATTRIBUTED] > then[UNATTRIBUTED]
    assert now[AUTHOR] <= then[AUTHOR] + 1
    third.close()


def test_a_second_scorer_takes_the_order_from_the_manifest(trained):
    record = load_run(Path(trained.job.output))
    check_credit(record, ORDER, credit_root(ORDER))
    places = dict(zip(record.row_ids, credit_of(record.row_ids, ORDER), strict=True))
    again = find_repeats(
        start_of(trained, record), encoded(trained), credit=places, salt=record.order, credit_root=credit_root(ORDER)
    )
    assert again == load_repeats(index_of(trained))


def index_in(world):
    return pipeline.index_folder(world.indexes, world.registry.get("greek").digest)


def attributed(world, pool, rows=None, order=ORDER):
    """With the rows of the version that are left, where they are given."""
    rows_of = None if rows is None else lambda card: (rows, order)
    return pipeline.attribute(pool, lambda _: world.host, world.score, world.registry, world.indexes, rows_of=rows_of)


class TestAnIndexOfBefore:
    """Its list has none by likeness/3, which shares/5 goes by."""

    @pytest.fixture
    def known(self, world):
        known = load_repeats(index_in(world))
        save_repeats(index_in(world), replace(known, anybodys=None))
        return known

    def test_is_completed_before_it_is_settled_and_a_second_scorer_takes_the_same_list(
        self, trained, world, known, market
    ):
        pool = market.sell(world.registry.get("greek").terms, tiny_rows()[::4])
        found = attributed(world, pool, with_copies())
        statement = statement_of(market, pipeline.settle(Remote(market.economy), found))
        likeness = statement["parts"]["use"]["quality"]["likeness"]
        assert (statement["rule"], likeness) == ("shares/5", f"likeness/3 {len(known.anybodys)}")
        assert load_repeats(index_in(world)) == known
        record = load_run(Path(trained.job.output))
        again = find_repeats(start_of(trained, record), encoded(trained), credit=record.places, salt=record.order)
        assert [row[0] for row in statement["repeated_rows"]] == [
            each.row_id for each in again.listed(statement["rule"])[1]
        ]

    def test_pays_nobody_while_the_list_cant_be_added(self, world, known, market):
        pool = market.sell(world.registry.get("greek").terms, tiny_rows()[::4])
        with pytest.raises(NotFound, match="no list of repeated rows by likeness/3") as caught:
            attributed(world, pool)
        assert (caught.value.code, caught.value.param) == ("missing_repeats", world.registry.get("greek").digest)
        with pytest.raises(InvalidInput) as caught:
            attributed(world, pool, with_copies(), ORDER[::-1])
        assert caught.value.code == "other_credit"
        assert load_repeats(index_in(world)).anybodys is None

    def test_leaves_the_copies_of_rows_unpaid_that_were_withdrawn_since(self, world, known, market):
        left = [row for row in with_copies() if row.contributor_id != AUTHOR]
        pool = market.sell(world.registry.get("greek").terms, tiny_rows()[::4])
        found = attributed(world, pool, left)
        of_author = {each.row_id for each in known.anybodys_2 if each.contributor_id == AUTHOR}
        assert of_author
        assert of_author <= {row_id for row_id, *_ in found.scores.repeats}

    def test_is_settled_as_it_is_by_a_rule_that_its_list_is_of(self, trained, world, known, tmp_path):
        fourth = Market(tmp_path, trained.base, Parameters(shares_rule="shares/4"))
        pool = fourth.sell(world.registry.get("greek").terms, tiny_rows()[::4])
        assert attributed(world, pool).scores.quality["likeness"] == f"likeness/2 {len(known.anybodys_2)}"
        assert load_repeats(index_in(world)).anybodys is None
        fourth.close()

    def test_that_was_built_without_any_list_gets_all(self, world, known, market):
        (index_in(world) / "repeats.json").unlink()
        pool = market.sell(world.registry.get("greek").terms, tiny_rows()[::4])
        with pytest.raises(NotFound):
            attributed(world, pool)
        attributed(world, pool, with_copies())
        assert load_repeats(index_in(world)) == known

    def test_is_completed_where_indexes_are_built(self, trained, world, known):
        job = replace(trained.job, output=world.registry.get("greek").folder)
        entries = read_index(index_in(world))[0].entries
        assert pipeline.build_indexes(world.host.build.remote, [job], [()], world.indexes) == [len(entries)]
        assert load_repeats(index_in(world)) == known
        nobody = Mock(side_effect=AssertionError)
        assert pipeline.build_indexes(nobody, [job], [()], world.indexes) == [len(entries)]


def test_of_a_derived_adapter_every_generations_list_is_completed(world, market):
    """Each states its own likeness, and all are by the settlement's one rule of shares."""
    rows = rows_of("ctr_2")
    order = [row.row_id for row in rows]
    job, _ = world.train("latin", rows, parent="greek", credit=order)
    folders = [pipeline.index_folder(world.indexes, world.registry.get(name).digest) for name in ("greek", "latin")]
    whole = [load_repeats(folder) for folder in folders]
    for folder, known in zip(folders, whole, strict=True):
        save_repeats(folder, replace(known, anybodys=None))
    pool = market.sell(world.registry.get("latin").terms, rows[::4])
    given = {job.name: (rows, order), "greek": (with_copies(), ORDER)}
    found = pipeline.attribute(
        pool, lambda _: world.host, world.score, world.registry, world.indexes,
        rows_of=lambda card: given[card.datanet],
    )  # fmt: skip
    assert [load_repeats(folder) for folder in folders] == whole
    statement = statement_of(market, pipeline.settle(Remote(market.economy), found))
    quality = statement["parts"]["use"]["quality"]
    assert {quality[name].split()[0] for name in ("0.likeness", "1.likeness")} == {"likeness/3"}
    assert {row[0] for row in statement["repeated_rows"]} == {
        each.row_id for known in whole for each in known.listed(statement["rule"])[1]
    }


def test_a_settlement_by_another_list_than_its_rule_has_is_found_whatever_it_says(trained, world, tmp_path):
    """The operator puts one row more into the list by likeness/2, and states likeness/3."""
    fourth = Market(tmp_path, trained.base, Parameters(shares_rule="shares/4"))
    known = load_repeats(index_in(world))
    named = {each.row_id for each in known.anybodys_2}
    more = next(row.row_id for row in with_copies()[1:] if row.row_id not in named)
    forged = replace(known.anybodys_2[0], row_id=more)
    save_repeats(index_in(world), replace(known, anybodys_2=(*known.anybodys_2, forged)))
    found = attributed(world, fourth.sell(world.registry.get("greek").terms, tiny_rows()[::4]))
    found = replace(found, scores=replace(found.scores, quality={**found.scores.quality, "likeness": "likeness/3 9"}))
    statement = statement_of(fourth, pipeline.settle(Remote(fourth.economy), found))
    record = load_run(Path(trained.job.output))
    again = find_repeats(start_of(trained, record), encoded(trained), credit=record.places, salt=record.order)
    rule, repeats = again.listed(statement["rule"])
    assert rule == "likeness/2"
    assert {row[0] for row in statement["repeated_rows"]} - {each.row_id for each in repeats} == {more}
    fourth.close()


def test_the_log_has_the_order_with_the_offer_before_anything_is_settled(trained):
    """Whoever knows the recipe shows that another order wasn't what was offered."""
    card = load_card(Path(trained.job.output))
    offered = [batch.statement for batch in batches_in(trained.folder / "books" / "ledger.db")
               if (batch.statement or {}).get("format") == OFFER]  # fmt: skip
    (purpose,) = [run["purpose"] for one in offered for run in one["trainings"]]
    told = card.row_root, card.base_digest, card.recipe
    assert purpose == asdict(purpose_of(*told, credit_root(ORDER)))
    assert purpose != asdict(purpose_of(*told, credit_root(ORDER[::-1])))
    assert purpose != asdict(purpose_of(*told))
    assert card.credit_root == load_run(Path(trained.job.output)).credit_root == credit_root(ORDER)
    assert trained.ledger.audit().num_offers


def test_a_record_whose_owner_put_his_rows_first_is_found(trained, world):
    """By its own order the author would repeat his copiers; by the manifest's he doesn't."""
    folder = Path(world.registry.get("greek").folder)
    record = load_run(folder)
    forged = [*(row for row in ORDER if row.startswith("a")), *(row for row in ORDER if not row.startswith("a"))]
    save_run(folder, replace(record, credit=credit_of(record.row_ids, forged)))
    with pytest.raises(InvalidInput) as caught:
        check_credit(load_run(folder), ORDER, credit_root(ORDER))
    assert (caught.value.code, caught.value.param) == ("other_credit", "credit")
    with pytest.raises(InvalidInput):
        check_credit(record, forged, credit_root(forged))
    index = pipeline.index_folder(world.indexes, world.registry.get("greek").digest)
    (index / "repeats.json").unlink()
    job = replace(trained.job, output=str(folder))
    nobody = Mock(side_effect=AssertionError)
    with pytest.raises(InvalidInput) as caught:
        pipeline.build_indexes(nobody, [job], [()], world.indexes)
    assert caught.value.code == "other_credit"
    owner = {row.row_id: row.contributor_id for row in with_copies()}
    found = find_repeats(start_of(trained, record), encoded(trained), credit=load_run(folder).places, salt=record.order)
    assert AUTHOR in {owner[each.row_id] for each in found.anybodys}


def test_a_row_that_is_withdrawn_after_training_stays_in_the_list_of_the_adapter(trained, market):
    """Its copies are as unpaid as before: to take one's name out of the way gains nothing."""
    pool = market.sell(trained.registry.get("greek").terms, tiny_rows()[::4])
    whole = trained.attribute(pool)
    gone = {earlier for _, earlier, contributor, _ in whole.scores.repeats if contributor == AUTHOR}
    assert gone
    less = pipeline.attribute(
        pool, lambda _: trained.host, trained.score, trained.registry, trained.indexes, withdrawn=gone
    )
    assert less.scores.repeats == whole.scores.repeats
    assert all(
        less.scores.unpaid_nano[name] == nano for name, nano in whole.scores.unpaid_nano.items() if name in COPIERS
    )


def test_a_dispute_after_the_author_withdrew_pays_his_copiers_no_more_than_the_settlement(trained, market, settled):
    """What is left shows no copy of the first of them; the settlement does."""
    _, settlement = settled
    statement = statement_of(market, settlement)
    gone = {row.row_id for row in with_copies() if row.contributor_id == AUTHOR}
    record, left = load_run(Path(trained.job.output)), [row for row in encoded(trained) if row.row_id not in gone]
    found = find_repeats(start_of(trained, record), left, credit=record.places, salt=record.order)
    again = found.listed(statement["rule"])[1]
    unpaid = {row for row, _, contributor, _ in statement["repeated_rows"] if contributor == AUTHOR}
    assert unpaid - {each.row_id for each in again}  # by what is left alone they would be paid
    completed = with_gone(again, statement["repeated_rows"], gone)
    assert unpaid <= {each.row_id for each in completed}
    assert completed[: len(again)] == again
    assert {(each.row_id, each.earlier, each.contributor_id, each.likeness_milli) for each in completed} & {
        tuple(row) for row in statement["repeated_rows"] if row[1] in gone
    }
    assert with_gone(again, statement["repeated_rows"], ()) == again


def test_of_an_adapter_without_the_author_the_earliest_copy_is_paid(trained, world):
    """He withdraws; an independent author later isn't unpaid for ever by a row that is gone."""
    world.bank(replace(trained.job, output=world.registry.get("greek").folder), without=[AUTHOR])
    plan = withdrawal.plan_withdrawal(world.registry, "greek", AUTHOR)
    parts = plan, world.registry, world.base, with_copies(), world.host.build.remote, world.adapters, world.indexes
    with pytest.raises(InvalidInput) as caught:  # served it is, but nothing is settled by that record's order
        withdrawal.withdraw(*parts, economy=world.economy, credit=lambda: ORDER[::-1])
    assert caught.value.code == "other_credit"
    assert world.registry.get("greek").digest != plan.adapter.digest
    plan = withdrawal.plan_withdrawal(world.registry, "greek", AUTHOR)
    card = withdrawal.withdraw(plan, *parts[1:], economy=world.economy, credit=lambda: ORDER)
    known = load_repeats(index_of(trained)).anybodys
    found = load_repeats(pipeline.index_folder(world.indexes, card.digest)).anybodys
    owner = {row.row_id: row.contributor_id for row in with_copies()}
    assert AUTHOR not in {each.contributor_id for each in found}
    assert COPIERS[0] in {owner[each.row_id] for each in known}
    assert {(owner[each.row_id], each.contributor_id) for each in found} & {(COPIERS[1], COPIERS[0])}
    assert len(found) < len(known)
    index = pipeline.index_folder(world.indexes, card.digest)
    whole = load_repeats(index)
    save_repeats(index, replace(whole, anybodys=None))
    ancestry = find_ancestry(world.registry, card.digest)
    complete_lists(ancestry, "shares/5", world.registry, world.indexes, world.host, lambda _: (with_copies(), ORDER))
    assert load_repeats(index) == whole  # by the old adapter's run, which the card names


def test_a_row_accepted_late_takes_nothing_of_what_an_adapter_without_it_pays_its_copy(trained, market, tmp_path):
    """The gate rejected the author's rows and took his copiers'; an appeal lets his in when an adapter without them is
    sold. That one goes on paying by its own list; in the next his rows stand where they came."""
    accepted = [row for row in with_copies() if row.contributor_id != AUTHOR]
    world = World(trained.base, tmp_path / "before")
    world.train("greek", accepted, credit=[row.row_id for row in accepted])
    owner = {row.row_id: row.contributor_id for row in with_copies()}

    def settled_by(sold, first):
        """What a period pays by the adapter that sold in it, and whose rows it finds to repeat those of whom."""
        pool = market.sell(sold.registry.get("greek").terms, tiny_rows()[first::4])
        settlement = pipeline.settle(Remote(market.economy), sold.attribute(pool))
        market.economy.open_period()
        named = statement_of(market, settlement)["repeated_rows"]
        return settlement, {(owner[row], contributor) for row, _, contributor, _ in named}

    closed, found = settled_by(world, 0)
    assert COPIERS[0] not in {row for row, _ in found}  # nobody's rows were before his
    assert (COPIERS[1], COPIERS[0]) in found
    assert closed.parts["use"].shares_ppb[COPIERS[0]] > 0
    later, found_later = settled_by(world, 1)  # the author's rows are accepted by now
    assert found_later == found
    assert later.parts["use"].shares_ppb[COPIERS[0]] > 0
    assert (COPIERS[0], AUTHOR) in settled_by(trained, 2)[1]
    again = pipeline.settle(Remote(market.economy), world.attribute(market.economy.pool("greek", closed.period)))
    assert (again.replayed, again.payouts_nano) == (True, closed.payouts_nano)
    market.ledger.audit()


def test_rows_that_no_version_gives_a_place_are_refused(trained):
    with pytest.raises(InvalidInput) as caught:
        credit_of(["r1", "r2"], ["r1"])
    assert (caught.value.code, caught.value.param) == ("unknown_credit", "credit")
    assert credit_of(["r1"], []) == ()


SAID = (
    "Open the archive and return its members in the order in which they were written.",
    "Close all idle connections of the pool and say how many there were.",
    "Parse the date of a mail, with its time zone, and give it in seconds.",
    "Split a path at the last slash; the tail never holds one.",
    "Lock the file so that no other process writes to it meanwhile.",
    "Round half to even, as bankers do with sums of money.",
    "Sort the keys before the values are hashed: the digest is stable.",
    "Wait until every worker has answered, or raise after the timeout.",
    "Decode bytes as text and replace whatever isn't valid there.",
    "Draw samples without replacement from a population of any size.",
    "Escape quotes and angle brackets for use inside of a page.",
    "Compress the stream with a window of thirty two kilobytes.",
)


@pytest.fixture
def published(here, tmp_path):
    """A Datanet where bob sent what ada had sealed, and ada her rows afterwards: both are in its version. With it what
    the log has of the seal, and the contributors."""
    keys = {name: SigningKey(name.encode().ljust(32, b".")) for name in ("ada", "bob")}
    drafts = [RowDraft(prompt=f"What is {text.split()[0]} for?", completion=text) for text in SAID]
    datanets = Datanets(tmp_path / "datanets", [ShardHost(tmp_path / "datanets" / "shard-0")], ManualClock())
    datanets.create("greek", "What letters do", OWNER)
    for name, key in keys.items():
        datanets.register_contributor(key.public_key, name)
    own = sign_contribution(keys["ada"], "greek", drafts, "once")
    datanets.seal(seal_of(keys["ada"], own))
    datanets.mark_seal_logged(own.contributor_id, digest_of(own), opened=False)
    pipeline.contribute(Remote(datanets), keys["bob"], "greek", drafts)
    pipeline.contribute(Remote(datanets), keys["ada"], "greek", drafts)
    (opened,) = datanets.unlogged_seals()
    version = datanets.publish("greek")
    yield datanets, version, [(3, opened.expires_ms, opened.signed)], keys
    datanets.close()


def test_from_the_publication_to_the_second_scorer_by_the_manifest_alone(published, tmp_path):
    datanets, version, openings, keys = published
    base, rows = make_tiny_base(tmp_path / "base"), datanets.rows("greek", 1)
    job, decoys = pipeline.plan_training(
        base, version, rows, RECIPE, tmp_path / "adapters", credit=pipeline.find_credit(Remote(datanets), version)
    )
    progress = trainer._train_until(job, RECIPE.middle_epoch, None, 0, 1)
    trainer._train_until(job, RECIPE.num_epochs, progress, 0, 1)
    pipeline.build_indexes(Remote(IndexHost(base)).build.remote, [job], [decoys], tmp_path / "indexes")
    listed = load_repeats(pipeline.index_folder(tmp_path / "indexes", load_card(Path(job.output)).digest))

    record, versions = load_run(Path(job.output)), tmp_path / "datanets" / "versions"
    order = read_credit(versions, version)
    check_credit(record, order, version.credit_root)
    check_sealed(order, rows, openings)
    examples = [encode_row(load_tokenizer(base), row) for row in job.rows]
    start = attach_lora(load_model(base), record.recipe, record.initial).eval()
    found = find_repeats(start, examples, credit=record.places, salt=record.order, credit_root=version.credit_root)
    assert found == listed
    owner = {row.row_id: row.contributor_id for row in rows}
    ada, bob = (keys[name].contributor_id for name in ("ada", "bob"))
    said = {row.row_id: row.completion for row in rows}
    stolen = [each for each in found.anybodys if said[each.row_id] == said[each.earlier]]
    assert stolen
    assert {(owner[each.row_id], each.contributor_id) for each in stolen} == {(bob, ada)}  # though he was there first

    path = versions / "greek" / "1.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "credit": [len(order) - 1 - place for place in told["credit"]]}))
    with pytest.raises(Corrupt):
        read_credit(versions, version)
    forged = write_forged(versions, version, order[::-1])
    order = read_credit(versions, forged)  # a manifest that holds in itself
    for check in (
        lambda: check_credit(record, order, forged.credit_root),
        lambda: check_sealed(order, rows, openings),
        lambda: pipeline.build_indexes(None, [replace(job, version=forged)], [decoys], tmp_path / "other"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check()
        assert caught.value.code == "other_credit"


DRAFTS = [RowDraft(prompt=f"What is {text.split()[0]} for?", completion=text) for text in SAID]


def sealed_of(key, drafts):
    return sign_contribution(key, "docs", drafts, "1")


@pytest.fixture
def sealed_twice(here, tmp_path):
    """Ada sealed before Bob, and he sent his rows first."""
    house = House(tmp_path)
    own, his = sealed_of(ADA, DRAFTS[:3]), sealed_of(BOB, DRAFTS[3:])
    for key, one in ((ADA, own), (BOB, his)):
        asyncio.run(house.seal(seal_of(key, one)))
        house.clock.advance(5)
    for one in (his, own):
        asyncio.run(house.contribute(one))
    yield house
    house.end()


def credit_of_latest(house):
    version = house.rows.publish("docs")
    rows = house.rows.rows("docs", version.number)
    credit = credit_to_train(Remote(house.rows), version, rows, house.ledger)
    assert credit.left_out == {}
    assert checked_credit(Remote(house.rows), version, rows, house.ledger) == credit.order
    return credit.order, rows


def test_the_order_that_is_trained_by_has_sealed_rows_where_the_log_has_their_seals(sealed_twice, tmp_path):
    order, rows = credit_of_latest(sealed_twice)
    whose = {row.row_id: row.contributor_id for row in rows}
    assert [whose[row_id] for row_id in order] == [ADA.contributor_id] * 3 + [BOB.contributor_id] * (len(order) - 3)
    openings = openings_in(sealed_twice.ledger, "docs")
    whole = Seals()
    for batch in batches_in(tmp_path / "ledger.db"):
        whole.take(batch)
    assert openings == whole.openings()
    assert len(openings) == 2
    assert openings_in(sealed_twice.ledger, "other") == []


def test_seals_of_other_datanets_cost_whoever_trains_no_batch(sealed_twice):
    """Seals are free, and so are keys."""
    openings, read = openings_in(sealed_twice.ledger, "docs"), []
    for number in range(40):
        sealed_twice.economy.log_seal("docs-2", f"ctr_{number}", f"{number:064x}", 10**9)

    class Counted:
        def __getattr__(self, name):
            return getattr(sealed_twice.ledger, name)

        def batch(self, seq):
            return self.batches([seq])[0]

        def batches(self, seqs):
            read.append(len(seqs))
            return sealed_twice.ledger.batches(seqs)

    assert openings_in(Counted(), "docs") == openings
    assert read == [2 * len(openings)]


def test_a_registry_whose_seals_were_changed_is_trained_by_no_more(sealed_twice):
    credit_of_latest(sealed_twice)
    registry = sealed_twice.rows._registry
    with registry._writing():
        registry._connection.execute("UPDATE seals SET number = 30 - number")
    more = "Mount the volume read only and list what its root folder has."
    sealed_twice.rows.contribute(sign_contribution(BOB, "docs", [RowDraft(prompt="What for?", completion=more)], "2"))
    late, version = contribution_id(sealed_of(ADA, DRAFTS[:3])), sealed_twice.rows.publish("docs")
    rows = sealed_twice.rows.rows("docs", version.number)
    for check in (credit_to_train, checked_credit):
        with pytest.raises(InvalidInput, match=f"row_[a-z0-9]+ of {late} stands behind") as caught:
            check(Remote(sealed_twice.rows), version, rows, sealed_twice.ledger)
        assert (caught.value.code, caught.value.param) == ("other_credit", "credit")


def test_rows_that_a_restored_registry_took_again_are_left_out_and_named(sealed_twice, tmp_path):
    """The log has their opening; the registry got them once more, when their seal had expired."""
    (tmp_path / "restored").mkdir()
    restored, lines = House(tmp_path / "restored"), []
    for key, drafts in ((ADA, DRAFTS[:3]), (BOB, DRAFTS[3:])):
        asyncio.run(restored.seal(seal_of(key, sealed_of(key, drafts))))
        restored.clock.advance(5)
    asyncio.run(restored.contribute(sealed_of(BOB, DRAFTS[3:])))
    restored.clock.advance(SEAL_MS)
    asyncio.run(restored.contribute(sealed_of(ADA, DRAFTS[:3])))
    version = restored.rows.publish("docs")
    rows, log = restored.rows.rows("docs", 1), sealed_twice.ledger
    credit = credit_to_train(Remote(restored.rows), version, rows, log, lines.append)
    own = contribution_id(sealed_of(ADA, DRAFTS[:3]))
    assert credit.left_out == {row.row_id: own for row in rows if row.contributor_id == ADA.contributor_id}
    assert len(credit.left_out) == 3
    assert len(lines) == 1
    assert own in lines[0]
    assert any(row_id in lines[0] for row_id in credit.left_out)
    left = [row for row in rows if row.row_id not in credit.left_out]
    assert checked_credit(Remote(restored.rows), version, left, log) == credit.order  # of what was trained on
    with pytest.raises(InvalidInput):
        checked_credit(Remote(restored.rows), version, rows, log)
    restored.end()


def test_a_log_that_is_behind_the_registry_is_trained_by_no_more(sealed_twice, tmp_path):
    """It was restored from before the rows came; where it is only yet to be told of them, what is told counts."""
    (tmp_path / "behind").mkdir()
    behind = House(tmp_path / "behind")
    for key, drafts in ((ADA, DRAFTS[:3]), (BOB, DRAFTS[3:])):
        asyncio.run(behind.seal(seal_of(key, sealed_of(key, drafts))))
        behind.clock.advance(5)
    assert openings_in(behind.ledger, "docs") == []
    order, rows = credit_of_latest(sealed_twice)
    datanets, registry = Remote(sealed_twice.rows), sealed_twice.rows._registry
    version = sealed_twice.rows.publish("docs")
    with pytest.raises(InvalidInput, match="the log has no opening") as caught:
        credit_to_train(datanets, version, rows, behind.ledger)
    assert caught.value.code == "other_credit"
    assert any(row.contribution_id in caught.value.message for row in rows)
    with registry._writing():
        registry._connection.execute("UPDATE seals SET opening_logged = 0")
    assert credit_to_train(datanets, version, rows, behind.ledger).order == order
    with registry._writing():
        registry._connection.execute("UPDATE seals SET number = 30 - number")
    more = "Mount the volume read only and list what its root folder has."
    sealed_twice.rows.contribute(sign_contribution(BOB, "docs", [RowDraft(prompt="What for?", completion=more)], "2"))
    with pytest.raises(InvalidInput, match="stands behind"):
        credit_to_train(datanets, sealed_twice.rows.publish("docs"), rows, behind.ledger)
    behind.end()


def test_a_log_without_seals_leaves_the_order_as_it_is(here, tmp_path):
    house = House(tmp_path)
    drafts = [RowDraft(prompt="What is it for?", completion=SAID[0])]
    asyncio.run(house.contribute(sign_contribution(ADA, "docs", drafts, "1")))
    assert len(credit_of_latest(house)[0]) == 1
    house.end()


def write_forged(folder, version, order):
    forged = replace(version, credit_root=credit_root(order))
    write_manifest(folder, forged, order)
    return forged

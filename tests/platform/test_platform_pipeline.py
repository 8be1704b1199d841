"""Nonces around publishing a version, what is trained by them, and the attribution of a period."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import make_tiny_base, tiny_rows
from trained_world import Remote

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.actor import start_index_host
from openledger.attribution.parts import summed
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Forbidden, NotFound, Unavailable
from openledger.core.shares import shares_ppb
from openledger.core.signing import SigningKey
from openledger.core.values import Answer, ContributorScores, DatanetVersion, Pool, RowDraft
from openledger.datanets.bulk import read_part
from openledger.datanets.datanets import Datanets
from openledger.datanets.rows import rows_of
from openledger.datanets.shard import ShardHost
from openledger.datanets.terms import Terms
from openledger.economy import Economy
from openledger.economy.nonces import DEPOSIT_NANO, NonceBook
from openledger.ledger import Ledger
from openledger.ledger.nonces import commitment
from openledger.platform import pipeline
from openledger.platform.hosts import HostNeeds, IndexHosts
from openledger.platform.withdrawal import Withdrawal
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, public_constant
from openledger.training.trainer import middle_folder, write_adapter

OWNER, OPERATOR, STRANGER = "user:owner", "user:operator", "user:stranger"
VERSION = DatanetVersion(datanet="greek", number=1, row_root="aa", num_rows=48, gate_version="g/1", published_ms=1)
RECIPE = Recipe(max_rows=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    yield ledger
    ledger.close()


@pytest.fixture
def economy(ledger, tmp_path):
    economy = Economy(ledger, tmp_path, ManualClock())
    for party in (OWNER, OPERATOR, STRANGER):
        economy.grant(party, DEPOSIT_NANO, party)
    yield economy
    economy.close()


@pytest.fixture
def book(ledger, economy, tmp_path):
    book = NonceBook(ledger)
    pipeline.commit_nonces(book, tmp_path / "nonces", "greek", 1, OWNER, [OPERATOR])
    return book


@pytest.fixture
def draw(book, base, tmp_path):
    return lambda recipe=RECIPE, version=VERSION: pipeline.draw_nonces(book, tmp_path / "nonces", version, base, recipe)


def test_what_was_committed_before_publishing_is_drawn_after_it_once(book, draw, ledger):
    nonces = draw()
    assert len(nonces) == 2
    before = ledger.checkpoint()
    assert draw() == nonces
    assert ledger.checkpoint() == before
    ledger.audit()


def test_committing_again_before_publishing_changes_nothing(book, ledger, tmp_path):
    before = ledger.checkpoint()
    pipeline.commit_nonces(book, tmp_path / "nonces", "greek", 1, OWNER, [OPERATOR])
    assert ledger.checkpoint() == before


def test_nonces_that_are_known_serve_no_other_recipe(draw):
    assert draw()
    assert draw(recipe=Recipe(max_rows=9)) == ()


def test_a_version_without_a_round_has_no_nonces(draw):
    other = DatanetVersion(datanet="greek", number=2, row_root="aa", num_rows=48, gate_version="g/1", published_ms=1)
    assert draw(version=other) == ()


def test_a_strangers_nonce_that_stays_out_holds_the_version_up(book, draw):
    book.commit("greek", 1, STRANGER, commitment("greek", 1, STRANGER, "0a" * 32))
    with pytest.raises(Unavailable) as caught:
        draw()
    assert (caught.value.code, caught.value.param) == ("nonces_withheld", STRANGER)
    book.reveal("greek", 1, STRANGER, "0a" * 32)
    assert len(draw()) == 3


def test_nonces_decide_the_constant_and_which_rows_are_drawn(base, draw, tmp_path):
    rows, nonces = tiny_rows("greek"), draw()
    drawn, _ = pipeline.plan_training(base, VERSION, rows, RECIPE, tmp_path, nonces=nonces)
    other, _ = pipeline.plan_training(base, VERSION, rows, RECIPE, tmp_path, nonces=("0c" * 32, *nonces[1:]))
    assert drawn.constant == public_constant(base.digest, "greek", 1, nonces)
    assert len(drawn.rows) == RECIPE.max_rows
    assert {row.row_id for row in drawn.rows} != {row.row_id for row in other.rows}


def test_copies_are_neither_trained_on_nor_measured_with(base, tmp_path):
    rows = tiny_rows("greek")
    copies = {row.row_id: rows[0].row_id for row in rows[1:20]}
    job, decoys = pipeline.plan_training(base, VERSION, rows, Recipe(max_rows=100), tmp_path, copies=copies)
    used = {row.row_id for row in (*job.rows, *job.held_out, *decoys)}
    assert used == {row.row_id for row in rows} - set(copies)
    assert len(job.held_out) == 2


def pool(*answers, num_unreadable=0, total_nano=700):
    return Pool(
        adapter="greek", period="p0001", total_nano=total_nano, settled=False, answers=answers,
        num_unreadable=num_unreadable, unreadable_nano=100 * num_unreadable,
    )  # fmt: skip


def attribute(of):
    return pipeline.attribute(of, None, None, StandIn(), Path())


class StandIn:
    """A registry of one adapter that is not looked at."""

    def find_digest(self, digest):
        return SimpleNamespace(is_base=False)


@pytest.fixture
def measured(monkeypatch):
    """The scores of a part of a pool, as if they had been measured."""
    scores = ContributorScores(
        adapter="greek", period="p0001", method="m/1", scores_nano={"a": 5}, errors_nano={"a": 1}, gain_nano=9,
        quality={"lds": "0.5"},
    )  # fmt: skip
    part = pipeline.AdapterAttribution(scores=scores, improvement=None, measured=None, answers=(), digest="d")
    monkeypatch.setattr(pipeline, "_attribute_part", lambda *_: part)
    return scores


ANSWER = Answer(
    answer_id="ans_1", adapter="greek", adapter_digest="d", period="p0001", prompt_ids=(1,), completion_ids=(2,)
)


def test_a_pool_of_which_nothing_is_kept_is_unattributed_and_says_so():
    scores = attribute(pool(num_unreadable=3)).scores
    assert shares_ppb(scores.scores_nano, scores.errors_nano, scores.gain_nano, 1000) == {"unattributed": 10**9}
    assert scores.quality == {"unreadable_answers": "3", "unreadable_nano": "300"}


def test_what_could_not_be_read_is_stated_beside_what_was_measured(measured):
    scores = attribute(pool(ANSWER, num_unreadable=2)).scores
    assert scores.scores_nano == measured.scores_nano
    assert scores.quality == {"lds": "0.5", "unreadable_answers": "2", "unreadable_nano": "200"}
    assert attribute(pool(ANSWER)).scores == measured


def test_what_repeated_rows_moved_is_clipped_once_over_all_adapters_of_the_period(measured):
    def unpaid(*moved):
        return summed([replace(measured, repeated_nano={"a": nano}) for nano in moved]).unpaid_nano

    assert unpaid(5, -3) == {"a": 2}
    assert unpaid(5, -5) == unpaid(5, -6) == {}


def test_a_pool_of_answers_without_a_word_is_unattributed():
    scores = attribute(pool(replace(ANSWER, completion_ids=()))).scores
    assert shares_ppb(scores.scores_nano, scores.errors_nano, scores.gain_nano, 1000) == {"unattributed": 10**9}


def test_a_pool_without_answers_is_not_attributed():
    with pytest.raises(NotFound) as caught:
        attribute(pool(total_nano=0))
    assert caught.value.code == "empty_pool"


def read_here(datanets, *named):
    """As `version_rows`, by no task of Ray's."""
    return [row for part in datanets.bulk_parts.remote(*named) for table in read_part(part) for row in rows_of(table)]


class TestTraining:
    """Rows are read for the account that trains: its permission and the licence count there."""

    @pytest.fixture
    def datanets(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pipeline.ray, "get", lambda value: value)
        monkeypatch.setattr(pipeline, "version_rows", read_here)
        datanets = Datanets(tmp_path / "datanets", [ShardHost(tmp_path / "datanets" / "shard-0")], ManualClock())
        datanets.create("greek", "What letters do", OWNER)
        datanets.set_terms("greek", Terms(licence="CC-BY-4.0"), OWNER)
        text = "Open the archive and return its members in the order in which they were written."
        pipeline.contribute(
            Remote(datanets), SigningKey(b"ada".ljust(32, b".")), "greek",
            [RowDraft(prompt="What does archive.members do?", completion=text)],
        )  # fmt: skip
        yield datanets
        datanets.close()

    def refused(self, datanets, party):
        with pytest.raises(Forbidden) as caught:
            pipeline.publish(Remote(datanets), "greek", party)
        assert datanets.versions("greek") == []
        return caught.value.code

    def test_is_the_owners_alone_where_it_is_private(self, datanets):
        datanets.set_terms("greek", Terms(train="private"), OWNER)
        assert self.refused(datanets, "user:stranger") == "not_permitted"
        version, rows = pipeline.publish(Remote(datanets), "greek", OWNER)
        assert (version.number, len(rows)) == (1, 1)
        with pytest.raises(Forbidden):
            pipeline.published(Remote(datanets), "greek", 1, "user:stranger")

    def test_ends_with_the_permission(self, datanets):
        datanets.set_terms("greek", Terms(train="request"), OWNER)
        datanets.approve("greek", "user:bob", "train", OWNER)
        assert len(pipeline.publish(Remote(datanets), "greek", "user:bob")[1]) == 1
        datanets.revoke("greek", "user:bob", "train", OWNER)
        with pytest.raises(Forbidden):
            pipeline.publish(Remote(datanets), "greek", "user:bob")

    def test_knows_whose_rows_were_first_from_the_version(self, datanets, base, tmp_path):
        for name, answer in (("zoe", "Close all idle connections"), ("bob", "Parse the date of a mail")):
            draft = RowDraft(prompt=f"What does {name} do?", completion=f"{answer}, and say how many there were.")
            pipeline.contribute(Remote(datanets), SigningKey(name.encode().ljust(32, b".")), "greek", [draft])
        version, rows = pipeline.publish(Remote(datanets), "greek", OWNER)
        order = pipeline.find_credit(Remote(datanets), version)
        asked = {row.row_id: row.prompt.split()[2] for row in rows}
        assert [asked[row_id] for row_id in order] == ["archive.members", "zoe", "bob"]
        known, _ = pipeline.plan_training(base, version, rows, Recipe(max_rows=2), tmp_path, credit=order)
        assert [order[place] for place in known.credit] == [row.row_id for row in known.rows]
        unknown, _ = pipeline.plan_training(base, version, rows, Recipe(max_rows=2), tmp_path)
        assert (unknown.credit, unknown.key) == ((), known.key)  # it decides nothing of the training

    @pytest.mark.parametrize(
        ("licence", "code"), [("withdrawn", "licence_withdrawn"), ("CC-BY-NC-4.0", "licence_forbids")]
    )
    def test_ends_with_the_licence_for_the_owner_too(self, datanets, licence, code):
        datanets.set_terms("greek", Terms(licence=licence), OWNER)
        assert self.refused(datanets, OWNER) == code

    @pytest.mark.parametrize(("ready", "done"), [(False, False), (True, False), (True, True)])
    def test_without_a_contributor_asks_the_datanet_too_where_one_is_made(self, datanets, ready, done):
        pipeline.publish(Remote(datanets), "greek", OWNER)
        datanets.set_terms("greek", Terms(licence="withdrawn"), OWNER)
        sold = SimpleNamespace(terms=SimpleNamespace(owner_account=OWNER))
        named = {"name": "greek", "contributor": "ctr_a", "num_rows": 1}
        plan = Withdrawal(**named, adapter=sold, card=None, ready=ready, done=done)
        if plan.trainer:
            with pytest.raises(Forbidden) as caught:
                pipeline.published(Remote(datanets), "greek", 1, plan.trainer)
            assert (plan.trainer, caught.value.code) == (OWNER, "licence_withdrawn")
        else:
            assert len(pipeline.published(Remote(datanets), "greek", 1, plan.trainer)[1]) == 1
        assert bool(plan.trainer) == (not ready and not done)


class TestOffer:
    CARD = SimpleNamespace(
        name="greek", digest="d1", datanet="greek", datanet_version=1, row_root="aa", rows_trained=("row_1",),
        parents=(), credit_root="", recipe=RECIPE.to_dict(), order="",
    )  # fmt: skip

    @pytest.fixture(autouse=True)
    def drawn(self, draw, base, economy, monkeypatch):
        monkeypatch.setattr(pipeline.ray, "get", lambda value: value)
        self.economy, self.base = Remote(economy), base
        self.constant = public_constant(base.digest, "greek", 1, draw())

    @pytest.fixture
    def registry(self, tmp_path):
        (tmp_path / "adapters" / "one").mkdir(parents=True)
        return AdapterRegistry(tmp_path / "adapters")

    def offer(self, registry, digest, prices=(1, 1), **changed):
        told = {"digest": digest, "base_digest": self.base.digest, "initial_a": self.constant, **changed}
        card = SimpleNamespace(**{**vars(self.CARD), **told})
        return pipeline.offer(registry, "mine", registry.root / "one", card, OWNER, prices, self.economy)

    def test_what_no_witness_gave_a_nonce_for_is_not_offered_and_what_was_stays(self, registry):
        terms = self.offer(registry, "d1")
        with pytest.raises(Conflict) as caught:
            self.offer(registry, "d2", initial_a="ab" * 32)
        assert caught.value.code == "constant_unwitnessed"
        assert registry.get("mine").terms == terms

    def test_what_is_sold_already_is_offered_at_another_price(self, registry):
        self.offer(registry, "d1")
        assert self.offer(registry, "d1", prices=(2, 3), initial_a="ab" * 32).completion_price_nano == 3

    @pytest.mark.parametrize("digest", ["d1", "d2"])
    def test_what_is_private_stays_so(self, registry, digest):
        terms = self.offer(registry, "d1")
        registry.register("mine", registry.root / "one", "d1", terms, shared_with=("user:ada",))
        self.offer(registry, digest)
        now = registry.get("mine")
        assert (now.digest, now.shared_with) == (digest, ("user:ada",))
        assert not now.may_be_asked_by("user:bob")

    def test_a_crash_leaves_the_old_one_for_sale(self, registry, monkeypatch):
        terms, put = self.offer(registry, "d1"), AdapterRegistry._put

        def crash(self, adapter):
            if adapter.digest == "d2":
                raise OSError("crash")
            put(self, adapter)

        monkeypatch.setattr(AdapterRegistry, "_put", crash)
        with pytest.raises(OSError, match="crash"):
            self.offer(registry, "d2")
        assert registry.get("mine").terms == terms


@pytest.fixture
def retrained(base, tmp_path):
    """Two adapters that served under one name in one period, each with its index: (registry, jobs, indexes)."""
    registry, indexes, jobs = AdapterRegistry(tmp_path / "adapters"), tmp_path / "indexes", []
    for number, epochs in ((1, 1), (2, 2)):
        version = replace(VERSION, number=number)
        recipe = replace(RECIPE, rank=2, num_epochs=epochs, max_rows=32)
        job, decoys = pipeline.plan_training(base, version, tiny_rows("greek"), recipe, tmp_path / "adapters")
        module = attach_lora(load_model(base), recipe, job.constant)
        examples = [encode_row(load_tokenizer(base), row) for row in job.rows]
        train(module, examples, recipe, job.constant)
        module.save_pretrained(middle_folder(job.output))
        card = write_adapter(module, job, examples, [1.0], 1)
        pipeline.put_on_sale(registry, job.name, Path(job.output), card, OWNER, (1, 1))
        jobs.append((job, card, decoys))
    return registry, jobs, indexes


def told(number, digest, ids):
    return Answer(
        answer_id=f"ans_{number}", adapter="greek", adapter_digest=digest, period="p1", prompt_ids=(1, 4),
        completion_ids=ids, fee_nano=1000,
    )  # fmt: skip


@pytest.mark.cluster
def test_answers_of_an_adapter_that_was_replaced_within_the_period_are_attributed_to_it(cluster, base, retrained):
    registry, jobs, indexes = retrained
    hosts = IndexHosts([base], lambda base, *_: start_index_host(base, num_cpus=0))
    rows = pipeline.build_indexes(
        hosts.of(HostNeeds(base_digest=base.digest)).build.remote,
        [job for job, _, _ in jobs],
        [decoys for _, _, decoys in jobs],
        indexes,
    )
    assert rows == [len(job.rows) + len(decoys) for job, _, decoys in jobs]
    old, new = (card.digest for _, card, _ in jobs)
    answers = (told(1, old, (5, 6)), told(2, new, (7, 8)), told(3, new, (9,)), told(4, new, ()))
    pool = Pool(adapter="greek", period="p1", total_nano=3000, settled=False, answers=answers)
    gains = iter(np.float32([[2.0], [1.0]]) for _ in answers)
    found = pipeline.attribute(pool, hosts.of, lambda *_: next(gains), registry, indexes)
    parts = {part.answers[0].adapter_digest: part for part in found.parts}
    assert {digest: [a.answer_id for a in part.answers] for digest, part in parts.items()} == {
        old: ["ans_1"],
        new: ["ans_2", "ans_3"],  # an empty answer owes nothing to anybody
    }
    for person, score in found.scores.scores_nano.items():
        assert score == sum(part.scores.scores_nano[person] for part in parts.values())
    assert found.scores.gain_nano == sum(part.scores.gain_nano for part in parts.values()) == 3000
    gone = jobs[0][0].rows[0]
    gains = iter(np.float32([[2.0], [1.0]]) for _ in answers)
    left = pipeline.attribute(pool, hosts.of, lambda *_: next(gains), registry, indexes, withdrawn=[gone.row_id])
    changed = {who for who, score in found.scores.scores_nano.items() if left.scores.scores_nano[who] != score}
    assert changed == {gone.contributor_id}  # what the row was owed is nobody's
    hosts.end()

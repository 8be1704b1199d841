"""Contributions of many at once: the verdicts of one after the other, large ones in the order in which they came,
whoever prepares or stores them, and whatever becomes of it."""

import asyncio
import gc
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import Copier, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound, TooLarge, Unavailable
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets import datanets as datanets_module
from openledger.datanets import ingest
from openledger.datanets.datanets import Datanets
from openledger.datanets.dedupe import DuplicateIndex
from openledger.datanets.gate import Rules, judge
from openledger.datanets.ingest import Ingest, prepare_here
from openledger.datanets.preparing import Prepared, prepare
from openledger.datanets.row_schema import Column, RowSchema


class Elsewhere:
    """Prepares at once, and sends what it found through pickle, as from another process."""

    def __init__(self) -> None:
        self.prepared: list[Prepared] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.prepared.append(pickle.loads(pickle.dumps(prepare_here(contribution, detectors, rules))))
        return self.prepared[-1]


class Waiting:
    """Prepares what has `held` in its nonce once a test lets it go."""

    def __init__(self) -> None:
        self.held = ""
        self.begun, self.go = asyncio.Semaphore(0), asyncio.Event()

    async def __call__(self, contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared | None:
        self.begun.release()
        if self.held in contribution.nonce:
            await self.go.wait()
        return prepare_here(contribution, detectors, rules)


async def lost(*_: Any) -> None:
    """A worker that died."""


@pytest.fixture(autouse=True)
def every_size_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "PREPARED_ROWS", 1)


def mixed() -> list[Contribution]:
    """Honest rows, exact and edited copies of them by others, noise, and one contribution that comes twice."""
    honest = sample_drafts(40)
    words = sorted({word for draft in honest for word in draft.completion.split()})
    copier = Copier(1, words)
    bad = [RowDraft(prompt="What?", completion=text) for text in ("", "no no", "a\x00b c d e", "xkcd qqq zzzz vvvv")]
    mail = RowDraft(prompt="Whom do I ask?", completion="Write to ada.lovelace@engines.org about the archive of cards.")
    first, copies = signed("ada", honest), signed("bob", [*honest[:5], *map(copier.copy, honest[5:15])])
    return [first, copies, signed("eve", [*bad, mail, *honest[15:20]]), first, signed("eve", sample_drafts(5, "new"))]


def outcomes(datanets: Datanets, contributions: Sequence[Contribution], worker: Any, num_workers: int = 2) -> list[Any]:
    """Of all sent at once: receipts, or the errors that refused them."""

    async def all_at_once() -> list[Any]:
        arriving = Ingest(datanets, worker, num_workers)
        found = await asyncio.gather(*map(arriving.contribute, contributions), return_exceptions=True)
        arriving.close()
        return found

    return asyncio.run(all_at_once())


def small(number: int) -> Contribution:
    return signed("ada", sample_drafts(3, f"subject-{number}"), str(number))


class TestIngest:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_all_at_once_get_the_verdicts_and_reasons_of_one_after_the_other(
        self, tmp_path: Path, num_workers: int
    ) -> None:
        alone = open_datanets(tmp_path / "alone", 2)
        expected = [alone.contribute(contribution) for contribution in mixed()]
        worker = Elsewhere()
        assert outcomes(open_datanets(tmp_path / "many", 2), mixed(), worker, num_workers) == expected
        assert bool(worker.prepared) == bool(num_workers)
        reasons = {reason for receipt in expected for verdict in receipt.verdicts for reason in verdict.reasons}
        assert {"empty", "noise", "invalid_text", "personal_data", "exact_duplicate", "near_duplicate"} <= reasons

    def test_what_a_worker_found_is_what_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datanets_module, "examine", None)
        found = outcomes(open_datanets(tmp_path), mixed(), Elsewhere())
        assert all(isinstance(one, ContributionReceipt) for one in found)

    def test_who_came_first_keeps_the_credit_whoever_is_prepared_first(self, tmp_path: Path) -> None:
        first, copy = signed("ada", sample_drafts(6)), signed("bob", sample_drafts(6))
        is_copy_ready = asyncio.Event()

        async def worker(contribution: Contribution, detectors: tuple[str, ...], rules: Rules) -> Prepared:
            if contribution == first:
                await is_copy_ready.wait()
            is_copy_ready.set()
            return prepare_here(contribution, detectors, rules)

        found = outcomes(open_datanets(tmp_path), [first, copy], worker)
        assert [{verdict.outcome for verdict in one.verdicts} for one in found] == [{"accept"}, {"reject"}]

    @pytest.mark.parametrize("num_large", [1, 8])
    def test_a_small_one_has_its_verdict_while_large_ones_are_prepared_or_wait_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_large: int
    ) -> None:
        monkeypatch.setattr(ingest, "PREPARED_ROWS", 4)
        datanets, worker = open_datanets(tmp_path), Waiting()

        async def at_once() -> None:
            arriving = Ingest(datanets, worker, 2)
            sent = [signed("ada", sample_drafts(6, f"large-{number}"), str(number)) for number in range(num_large)]
            large = [asyncio.ensure_future(arriving.contribute(one)) for one in sent]
            await worker.begun.acquire()
            async with asyncio.timeout(20):
                receipt = await arriving.contribute(signed("bob", sample_drafts(3, "other")))
            assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}
            assert not any(one.done() for one in large)
            worker.go.set()
            for one in large:
                assert {verdict.outcome for verdict in (await one).verdicts} == {"accept"}
            arriving.close()

        asyncio.run(at_once())

    def test_dry_runs_leave_contributions_a_worker(self, tmp_path: Path) -> None:
        datanets, worker = open_datanets(tmp_path), Waiting()
        worker.held = "dry"

        async def at_once() -> None:
            arriving = Ingest(datanets, worker, 2)
            dry = [signed("eve", sample_drafts(3, f"dry-{number}"), f"dry-{number}") for number in range(3)]
            previews = [asyncio.ensure_future(arriving.prepared_dry_run(one)) for one in dry]
            await worker.begun.acquire()
            async with asyncio.timeout(20):
                await arriving.contribute(small(1))
            assert not any(one.done() for one in previews)
            worker.go.set()
            assert [found and len(found.row_ids) for found in await asyncio.gather(*previews)] == [3] * 3
            arriving.close()

        asyncio.run(at_once())

    def test_a_refused_contribution_stops_no_other(self, tmp_path: Path) -> None:
        sent = mixed()[:2]
        forged = replace(sent[0], signature=sent[1].signature)
        elsewhere = signed("ada", sample_drafts(2), datanet="nowhere")
        found = outcomes(open_datanets(tmp_path), [sent[0], forged, elsewhere, sent[1]], Elsewhere())
        assert [type(one) for one in found] == [ContributionReceipt, InvalidInput, NotFound, ContributionReceipt]

    def test_a_worker_that_is_lost_costs_no_contribution(self, tmp_path: Path) -> None:
        datanets = open_datanets(tmp_path, 1)
        found = outcomes(datanets, [small(number) for number in range(4)], lost)
        assert [{verdict.outcome for verdict in one.verdicts} for one in found] == [{"accept"}] * 4
        assert datanets.stored_count("docs") == 12

    def test_one_that_may_not_come_is_not_prepared(self, tmp_path: Path) -> None:
        datanets, worker = open_datanets(tmp_path), Elsewhere()
        datanets.change_terms("docs", {"contribute": "invited"}, "acct_owner")
        (found,) = outcomes(datanets, [small(1)], worker)
        assert isinstance(found, Forbidden)
        assert worker.prepared == []

    def test_one_that_was_judged_before_is_not_prepared_again(self, tmp_path: Path) -> None:
        datanets, worker = open_datanets(tmp_path), Elsewhere()
        receipt = datanets.contribute(small(1))
        assert outcomes(datanets, [small(1)], worker) == [receipt]
        assert worker.prepared == []

    def test_few_rows_are_not_worth_a_worker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ingest, "PREPARED_ROWS", 4)
        worker = Elsewhere()
        outcomes(open_datanets(tmp_path), [small(1), signed("ada", sample_drafts(4), "4")], worker)
        assert [len(one.row_ids) for one in worker.prepared] == [4]

    def test_no_more_workers_than_were_asked_for(self, tmp_path: Path) -> None:
        worker = Elsewhere()
        outcomes(open_datanets(tmp_path), [small(number) for number in range(9)], worker, num_workers=3)
        assert worker.most_at_once == 3

    def test_a_quota_holds_for_all_that_come_at_once(self, tmp_path: Path) -> None:
        datanets = open_datanets(tmp_path)
        datanets.change_terms("docs", {"max_rows_a_day": 7}, "acct_owner")
        found = outcomes(datanets, [small(number) for number in range(4)], Elsewhere())
        assert [type(one) for one in found] == [ContributionReceipt, ContributionReceipt, TooLarge, TooLarge]
        assert datanets.stored_count("docs") == 6

    def test_the_same_many_times_at_once_is_stored_once_and_gets_one_receipt(self, tmp_path: Path) -> None:
        datanets = open_datanets(tmp_path, 1)
        found = outcomes(datanets, [small(1)] * 5, Elsewhere())
        assert found == [found[0]] * 5
        assert datanets.stored_count("docs") == 3

    @pytest.mark.parametrize("max_rows_a_day", [0, 2])
    def test_a_dry_run_is_prepared_too_and_no_quota_counts_it(self, tmp_path: Path, max_rows_a_day: int) -> None:
        datanets, worker = open_datanets(tmp_path), Elsewhere()
        datanets.change_terms("docs", {"max_rows_a_day": max_rows_a_day}, "acct_owner")
        prepared = asyncio.run(Ingest(datanets, worker, 1).prepared_dry_run(small(1)))
        assert prepared is worker.prepared[0]
        assert datanets.preview(small(1), prepared) == datanets.preview(small(1))
        assert datanets.stored_count("docs") == 0


class TestCollections:
    """Of cycles are rarer while rows are taken apart, and as often as before afterwards."""

    @pytest.fixture(autouse=True)
    def often(self) -> Iterator[None]:
        before = gc.get_threshold()
        gc.set_threshold(123, 7, 5)
        yield
        gc.set_threshold(*before)

    @pytest.mark.parametrize("take_apart", [prepare, lambda one, by: judge(one.drafts, "abc", DuplicateIndex(), by)])
    def test_are_rarer_meanwhile_alone(self, take_apart: Any) -> None:
        seen = list[Any]()
        take_apart(small(1), {"looks": lambda draft: seen.append((gc.isenabled(), gc.get_threshold())) is not None})
        assert seen == [(True, (50_000, 7, 5))] * 3
        assert gc.get_threshold() == (123, 7, 5)

    def test_are_as_before_also_where_a_detector_fails(self) -> None:
        with pytest.raises(ZeroDivisionError):
            prepare(small(1), {"fails": lambda draft: 1 // 0 == 1})
        assert gc.get_threshold() == (123, 7, 5)


class TestStoring:
    """While some contributions wait for the shards."""

    def test_others_are_judged_and_wait_there_too(self, tmp_path: Path) -> None:
        datanets = open_datanets(tmp_path, 1)
        shard, everybody = held(datanets), threading.Barrier(5, timeout=60)
        shard.before = everybody.wait
        found = outcomes(datanets, [small(number) for number in range(5)], Elsewhere())
        assert all(isinstance(one, ContributionReceipt) for one in found)
        assert datanets.stored_count("docs") == 15

    def test_rows_that_a_shard_could_not_take_are_told_and_can_be_sent_again(self, tmp_path: Path) -> None:
        datanets, sent = open_datanets(tmp_path, 1), [small(number) for number in range(3)]
        failing = datanets.begin(sent[1]).receipt.contribution_id  # type: ignore[union-attr]
        shard = held(datanets)
        shard.refused = failing
        found = outcomes(datanets, sent, Elsewhere())
        assert [type(one) for one in found] == [ContributionReceipt, Unavailable, ContributionReceipt]
        assert datanets.stored_count("docs") == 6
        shard.refused = ""
        assert {verdict.outcome for verdict in datanets.contribute(sent[1]).verdicts} == {"accept"}
        assert datanets.stored_count("docs") == 9

    @pytest.mark.parametrize("asked", ["publish", "copies", "withdraw", "review_queue"])
    def test_what_needs_all_rows_has_them_and_reviewers_see_what_is_stored(self, tmp_path: Path, asked: str) -> None:
        datanets = open_datanets(tmp_path, 1)
        datanets.contribute(small(0))
        datanets.publish("docs")
        mail = RowDraft(prompt="Whom do I ask?", completion="Write to ada.lovelace@engines.org about the old cards.")
        shard, go_on, waiting = held(datanets), threading.Event(), threading.Event()

        def hold() -> None:
            waiting.set()
            assert go_on.wait(60)

        shard.before = hold
        asking: dict[str, Callable[[], Any]] = {
            "publish": lambda: datanets.publish("docs").num_rows == 6,
            "copies": lambda: datanets.copies("docs", 1) == {},
            "review_queue": lambda: datanets.review_queue("docs", "acct_owner", 9) == [],
            "withdraw": lambda: datanets.remove("docs", [last_row(datanets)], "acct_owner", "court_order"),
        }

        async def at_once() -> None:
            arriving = Ingest(datanets, lost, 0)
            sent = asyncio.ensure_future(arriving.contribute(signed("ada", [*sample_drafts(3, "late"), mail], "late")))
            while not waiting.is_set():
                await asyncio.sleep(0.001)
            threading.Timer(0.05, go_on.set).start()
            assert asking[asked]()
            await sent
            arriving.close()

        asyncio.run(at_once())
        assert [draft for _, draft in datanets.review_queue("docs", "acct_owner", 9)] == [mail] * (asked != "withdraw")
        assert datanets.stored_count("docs") == (6 if asked == "withdraw" else 7)

    @pytest.mark.parametrize("asked", ["receipt", "contribute", "publish"])
    def test_what_asks_of_others_reads_none_of_their_rows(self, tmp_path: Path, asked: str) -> None:
        """They may be ten thousand, this thread is the only one, and a stranger may ask for receipts."""
        datanets = open_datanets(tmp_path, 1)
        datanets.create("letters", "Letters", "acct_owner")
        receipt = datanets.contribute(small(0))
        datanets.begin(signed("bob", sample_drafts(3, "letters"), datanet="letters"))
        datanets._registry._connection.execute(
            "UPDATE contributions SET pending_drafts = '[' WHERE datanet = 'letters'"
        )
        asking: dict[str, Callable[[], Any]] = {
            "receipt": lambda: datanets.receipt("docs", receipt.contribution_id) == receipt,
            "contribute": lambda: datanets.contribute(small(0)) == receipt,
            "publish": lambda: datanets.begin(small(1)) and datanets.publish("docs").num_rows == 6,
        }
        assert asking[asked]()

    def test_what_was_stored_meanwhile_is_finished_by_one_write(self, tmp_path: Path) -> None:
        datanets, finished = open_datanets(tmp_path, 1), list[int]()
        finish, everybody = datanets.finish, threading.Barrier(6, timeout=60)

        def counted(*pending: Any) -> None:
            finished.append(len({one.receipt.contribution_id for one in pending}))
            finish(*pending)

        async def all_at_once() -> None:
            arriving = Ingest(datanets, lost, 0)
            sent = [asyncio.ensure_future(arriving.contribute(small(number))) for number in range(5)]
            while shard.num_waiting < 5:
                await asyncio.sleep(0.001)
            everybody.wait()
            arriving.close()  # once all are stored; this thread is at something else until then
            await asyncio.gather(*sent)

        datanets.finish = counted  # type: ignore[method-assign]
        shard = held(datanets)
        shard.before = everybody.wait
        asyncio.run(all_at_once())
        assert finished == [5]
        assert datanets._registry.pending_ids(["docs"]) == []


class Held:
    """A shard whose appends a test holds up, or refuses by their key."""

    def __init__(self, shard: Any):
        self._shard = shard
        self.before: Callable[[], Any] = bool
        self.refused = ""
        self.num_waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)

    def append(self, datanet: str, rows: Any, key: str) -> None:
        self.num_waiting += 1
        self.before()
        if key == self.refused:
            raise Unavailable("full", code="storage_unavailable")
        self._shard.append(datanet, rows, key)


def held(datanets: Datanets) -> Held:
    """The one shard."""
    (shard,) = datanets._layout._shards
    found = Held(shard)
    datanets._layout._shards = (found,)  # type: ignore[assignment]
    return found


def last_row(datanets: Datanets) -> str:
    return [row_id for row_id in datanets._registry.credit_order() if row_id][-1]


class TestPrepared:
    def test_the_way_to_another_process_changes_nothing(self) -> None:
        prepared = prepare(mixed()[2])
        arrived = pickle.loads(pickle.dumps(prepared))
        assert (arrived.row_ids, arrived.rules) == (prepared.row_ids, prepared.rules)
        for here, there in zip(prepared.examined, arrived.examined, strict=True):
            assert (here.reasons, here.doubts) == (there.reasons, there.doubts)
            for name in ("pair_key", "answer_key", "num_words"):
                assert getattr(here.features, name) == getattr(there.features, name)
            for name in ("question", "answer"):
                assert sorted(getattr(here.features, name)) == sorted(getattr(there.features, name))
            assert here.features.answer_sketch.digest() == there.features.answer_sketch.digest()
            assert here.features.row_sketch.digest() == there.features.row_sketch.digest()

    def test_by_other_rules_it_is_made_anew(self, tmp_path: Path) -> None:
        dated = Rules(schema=RowSchema(columns=(Column(name="year", type="int64", required=True),)))
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        wrong = prepare(sent, rules=dated)
        assert {one.reasons for one in wrong.examined} == {("missing_column",)}
        assert {verdict.outcome for verdict in datanets.contribute(sent, wrong).verdicts} == {"accept"}

    def test_of_another_contribution_it_vouches_for_no_signature(self, tmp_path: Path) -> None:
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        forged = replace(sent, signature=key_of("eve").sign(b"something"), nonce="2")
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged, prepare(sent))
        assert caught.value.code == "invalid_signature"

    @pytest.mark.parametrize("changed", ["signature", "drafts"])
    def test_of_a_contribution_with_the_same_id_it_vouches_for_no_signature(self, tmp_path: Path, changed: str) -> None:
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        others = {"signature": key_of("eve").sign(b"something"), "drafts": tuple(sample_drafts(3, "other"))}
        forged = replace(sent, **{changed: others[changed]})
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged, prepare(sent))
        assert caught.value.code == "invalid_signature"
        assert datanets.stored_count("docs") == 0

    def test_a_wrong_signature_is_never_prepared(self) -> None:
        sent = signed("ada", sample_drafts(3))
        with pytest.raises(InvalidInput):
            prepare(replace(sent, signature=key_of("eve").sign(b"something")))


def test_a_conflict_between_shards_is_told(tmp_path: Path) -> None:
    """Shards are asked at once; what the first of them refuses is what is told."""
    datanets = open_datanets(tmp_path, 3)
    for shard in datanets._layout._shards:
        shard.append = _refuse
    with pytest.raises(Conflict):
        datanets.contribute(signed("ada", sample_drafts(9)))


def _refuse(*arguments: Any) -> None:
    raise Conflict("taken", code="row_id_taken")

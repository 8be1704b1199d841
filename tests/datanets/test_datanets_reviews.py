"""Rows in review: who decides, what becomes of them, and how reviewers are measured."""

import secrets
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import apsw
import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.appealing import AppealState
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound, Unavailable
from openledger.core.signing import contributor_id
from openledger.core.values import RowDraft
from openledger.datanets.appeals import appeal_of
from openledger.datanets.datanets import Datanets
from openledger.datanets.layout import Layout
from openledger.datanets.reviews import KNOWN_EVERY, MIN_KNOWN, ReviewStore
from openledger.datanets.row_schema import Column, RowSchema
from openledger.datanets.shard import ShardHost
from openledger.datanets.terms import Terms

OWNER, ADA = "acct_owner", contributor_id(key_of("ada").public_key)
REVIEWERS = ("user:ann", "user:ben", "user:cem")


def private(number: int) -> RowDraft:
    """A row that the gate sends to review."""
    (row,) = sample_drafts(1, f"mail{number}")
    return RowDraft(
        prompt=row.prompt, completion=f"{row.completion} Write to reader{number}@mail.net.", source=row.source
    )


def known(number: int) -> RowDraft:
    return sample_drafts(number + 1, "known")[number]


def num_waiting(datanets: Datanets) -> int:
    return sum(one.review for one in datanets.statistics("docs"))


def waiting(datanets: Datanets, number: int = 1) -> list[str]:
    receipt = datanets.contribute(signed("ada", [private(n) for n in range(number)]))
    assert {verdict.outcome for verdict in receipt.verdicts} == {"review"}
    return [verdict.row_id for verdict in receipt.verdicts]


def unavailable(*_: object) -> None:
    raise Unavailable("the disk is full", code="storage_unavailable")


def said(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


class TestDeciding:
    def test_the_owner_alone_decides(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(min_reviews=3), by=OWNER)
        (row_id,) = waiting(datanets)
        datanets.review("docs", row_id, OWNER, accept=True)
        assert datanets.publish("docs").num_rows == 1
        assert num_waiting(datanets) == 0

    def test_several_reviewers_decide_by_majority_once_they_are_enough(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(min_reviews=2), by=OWNER)
        (row_id,) = waiting(datanets)
        for reviewer, accept, left in zip(REVIEWERS, (False, True, True), (1, 1, 0), strict=True):
            datanets.review("docs", row_id, reviewer, accept=accept)
            assert num_waiting(datanets) == left
        assert datanets.publish("docs").num_rows == 1

    def test_a_row_that_is_not_taken_leaves_storage_and_may_come_again(
        self, datanets: Datanets, tmp_path: Path
    ) -> None:
        (row_id,) = waiting(datanets)
        assert said(tmp_path, "reader0@mail.net")
        datanets.review("docs", row_id, REVIEWERS[0], accept=False)
        assert datanets.stored_count("docs") == 0
        assert said(tmp_path, "reader0@mail.net") == []
        (statistics,) = datanets.statistics("docs")
        assert (statistics.rejected, statistics.reasons) == (1, {"reviewed": 1})
        again = datanets.preview(signed("bob", [private(0)]))
        assert again[0].reasons == ("personal_data",), "nothing is left that it would repeat"

    def test_a_crash_between_decision_and_storage_is_finished_at_the_next_opening(
        self, datanets: Datanets, tmp_path: Path
    ) -> None:
        (row_id,) = waiting(datanets)
        datanets._registry.reviews.decide("docs", row_id, 1, accept=False)
        assert datanets.stored_count("docs") == 1
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.stored_count("docs") == 0
        assert again._registry.reviews.unforgotten() == []
        again.close()

    def test_the_same_review_again_changes_nothing_and_another_is_refused(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(min_reviews=2), by=OWNER)
        (row_id,) = waiting(datanets)
        for _ in range(2):
            datanets.review("docs", row_id, REVIEWERS[0], accept=True)
        assert num_waiting(datanets) == 1
        with pytest.raises(Conflict) as caught:
            datanets.review("docs", row_id, REVIEWERS[0], accept=False)
        assert caught.value.code == "already_reviewed"

    @pytest.mark.parametrize("reviewer", [ADA, f"contributor:{ADA}"])
    def test_nobody_reviews_his_own_row(self, datanets: Datanets, reviewer: str) -> None:
        (row_id,) = waiting(datanets)
        with pytest.raises(Forbidden) as caught:
            datanets.review("docs", row_id, reviewer, accept=True)
        assert (caught.value.code, num_waiting(datanets)) == ("own_row", 1)

    def test_a_row_that_does_not_wait_is_none_to_review(self, datanets: Datanets) -> None:
        accepted = datanets.contribute(signed("ada", sample_drafts(1))).verdicts[0].row_id
        for row_id in (accepted, "row_nothing"):
            with pytest.raises(NotFound) as caught:
                datanets.review("docs", row_id, OWNER, accept=False)
            assert caught.value.code == "not_in_review"
        assert datanets.stored_count("docs") == 1

    def test_a_row_under_appeal_waits_for_that(self, datanets: Datanets) -> None:
        contribution = signed("ada", [private(0)])
        row_id = datanets.contribute(contribution).verdicts[0].row_id
        datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a mailing list"))
        assert datanets.review_queue("docs", OWNER, 10) == []
        with pytest.raises(NotFound):
            datanets.review("docs", row_id, OWNER, accept=False)

    def test_a_row_that_was_not_taken_can_be_appealed_and_come_back(self, datanets: Datanets) -> None:
        contribution = signed("ada", [private(0)])
        row_id = datanets.contribute(contribution).verdicts[0].row_id
        datanets.review("docs", row_id, OWNER, accept=False)
        datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a mailing list"))
        datanets.close_appeal(row_id, "overturned")
        datanets.publish("docs")
        assert [row.row_id for row in datanets.rows("docs", 1)] == [row_id]

    @pytest.mark.parametrize("cut_off", [(Layout, "remove"), (ReviewStore, "mark_forgotten")])
    def test_a_row_that_an_appeal_brings_back_stays_wherever_forgetting_it_was_cut_off(
        self, datanets: Datanets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_off: tuple[type, str]
    ) -> None:
        contribution = signed("ada", [private(0)])
        row_id = datanets.contribute(contribution).verdicts[0].row_id
        with monkeypatch.context() as away:
            away.setattr(*cut_off, unavailable)
            with pytest.raises(Unavailable):
                datanets.review("docs", row_id, OWNER, accept=False)
            with pytest.raises(Unavailable):
                datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a mailing list"))
        datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a mailing list"))
        datanets.close_appeal(row_id, "overturned")
        other = datanets.contribute(signed("bob", [private(3)])).verdicts[0].row_id
        datanets.review("docs", other, OWNER, accept=True)
        datanets.publish("docs")
        assert {row.row_id for row in datanets.rows("docs", 1)} == {row_id, other}
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.stored_count("docs") == 2
        again.close()

    @pytest.mark.parametrize("state", ["overturned", "upheld"])
    def test_an_appeal_of_before_finds_its_row_still_in_the_shard(
        self, datanets: Datanets, tmp_path: Path, state: AppealState
    ) -> None:
        contribution = signed("ada", [private(0)])
        row_id = datanets.contribute(contribution).verdicts[0].row_id
        datanets._registry.reviews.decide("docs", row_id, 1, accept=False)
        appeal = appeal_of(key_of("ada"), contribution, 0, "it is a mailing list")
        datanets._registry.appeals.hold(appeal, 2)
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.stored_count("docs") == 1, "nothing is forgotten that is yet to be decided"
        again.close_appeal(row_id, state)
        assert again.stored_count("docs") == (state == "overturned")
        copy = again.preview(signed("bob", [private(0)]))[0]
        assert copy.reasons == (("exact_duplicate",) if state == "overturned" else ("personal_data",))
        again.close()
        open_datanets(tmp_path).close()

    def test_a_log_that_another_reads_is_our_error_and_is_forgotten_later(
        self, datanets: Datanets, tmp_path: Path
    ) -> None:
        (row_id,) = waiting(datanets)
        datanets._registry._connection.set_busy_timeout(10)
        reader = apsw.Connection(str(tmp_path / "registry.sqlite"))
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM verdicts").get == 1
        with pytest.raises(Unavailable) as caught:
            datanets.review("docs", row_id, OWNER, accept=False)
        assert caught.value.code == "database_busy"
        reader.close()
        datanets.review("docs", row_id, OWNER, accept=False)
        assert datanets._registry.reviews.unforgotten() == []

    def test_decisions_of_a_registry_of_before_are_yet_to_be_told(self, datanets: Datanets, tmp_path: Path) -> None:
        row_id = waiting(datanets, 2)[0]
        datanets.review("docs", row_id, OWNER, accept=True)
        datanets._registry._connection.execute("ALTER TABLE decisions DROP COLUMN told")
        datanets.close()
        again = open_datanets(tmp_path)
        (told,) = again.untold_reviews()
        assert (told.row_id, told.contributor_id, told.outcome) == (row_id, ADA, "accept")
        again.mark_review_told(row_id)
        assert again.untold_reviews() == []
        again.close()

    def test_rows_that_are_yet_to_be_stored_stop_no_review(
        self, datanets: Datanets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = datanets.contribute(signed("bob", [private(1)])).verdicts[0].row_id
        contribution = signed("ada", [private(0)])
        with monkeypatch.context() as away:
            away.setattr(Layout, "append", unavailable)
            with pytest.raises(Unavailable):
                datanets.contribute(contribution)
            assert [item for item, _ in datanets.review_queue("docs", OWNER, 10)] == [stored]
            datanets.review("docs", stored, OWNER, accept=True)
            assert datanets.review_queue("docs", OWNER, 10) == []
        late = datanets.contribute(contribution).verdicts[0].row_id
        assert [item for item, _ in datanets.review_queue("docs", OWNER, 10)] == [late]


class TestKnownAnswers:
    def shown(self, datanets: Datanets, reviewer: str, limit: int = 20) -> dict[str, RowDraft]:
        return dict(datanets.review_queue("docs", reviewer, limit))

    def test_they_stand_among_rows_and_look_like_them(self, datanets: Datanets) -> None:
        rows = waiting(datanets, 2 * KNOWN_EVERY - 1)
        item = datanets.add_known_answer("docs", known(0), OWNER, accept=True)
        queue = datanets.review_queue("docs", REVIEWERS[0], 20)
        assert {one for one, _ in queue} == {*rows, item}
        assert dict(queue)[item] == known(0)
        assert len(item) == len(rows[0])
        orders = {tuple(one for one, _ in datanets.review_queue("docs", who, 20)) for who in REVIEWERS}
        assert len(orders) > 1, "each is shown them in an order of his own"

    def test_they_are_never_shown_alone(self, datanets: Datanets) -> None:
        datanets.add_known_answer("docs", known(0), OWNER, accept=True)
        assert datanets.review_queue("docs", REVIEWERS[0], 20) == []

    def test_they_are_in_no_version_and_no_shard(self, datanets: Datanets) -> None:
        item = datanets.add_known_answer("docs", known(0), OWNER, accept=True)
        datanets.contribute(signed("ada", sample_drafts(1)))
        datanets.review("docs", item, OWNER, accept=True)
        assert (datanets.publish("docs").num_rows, datanets.stored_count("docs")) == (1, 1)

    def test_the_owner_alone_adds_them_and_the_last_answer_holds(self, datanets: Datanets) -> None:
        with pytest.raises(Forbidden):
            datanets.add_known_answer("docs", known(0), REVIEWERS[0], accept=True)
        item = datanets.add_known_answer("docs", known(0), OWNER, accept=True)
        assert datanets.add_known_answer("docs", known(0), OWNER, accept=False) == item
        datanets.review("docs", item, REVIEWERS[0], accept=False)
        assert datanets.reviewers("docs")[0].num_right == 1

    def test_whoever_is_often_wrong_is_heard_no_more(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(min_reviews=1), by=OWNER)
        items = [datanets.add_known_answer("docs", known(n), OWNER, accept=n % 2 == 0) for n in range(MIN_KNOWN)]
        for item in items:
            datanets.review("docs", item, "user:lazy", accept=True)
            datanets.review("docs", item, "user:good", accept=items.index(item) % 2 == 0)
        good, lazy = datanets.reviewers("docs")
        assert (good.num_known, good.num_right, good.is_heard) == (MIN_KNOWN, MIN_KNOWN, True)
        assert (lazy.num_known, lazy.num_right, lazy.is_heard) == (MIN_KNOWN, 3, False)
        (row_id,) = waiting(datanets)
        datanets.review("docs", row_id, "user:lazy", accept=True)
        assert num_waiting(datanets) == 1
        datanets.review("docs", row_id, "user:good", accept=False)
        assert num_waiting(datanets) == 0
        good, lazy = datanets.reviewers("docs")
        assert [(one.num_decided, one.num_agreed) for one in (good, lazy)] == [(1, 1), (1, 0)]

    @pytest.mark.parametrize("limit", [1, 2, 7])
    def test_asking_for_few_at_a_time_evades_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        """Whoever takes every row for bad is heard no more, long before he has decided them all."""
        numbers = count()
        monkeypatch.setattr(secrets, "token_hex", lambda _: f"{next(numbers):064x}")
        clock, num_rows = ManualClock(), 60
        datanets = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0")], clock)
        datanets.create("docs", "What functions do", OWNER)
        datanets.set_terms("docs", Terms(min_reviews=1), by=OWNER)
        waiting(datanets, num_rows)
        for number in range(num_rows // 2):
            datanets.add_known_answer("docs", known(number), OWNER, accept=True)
        places = list[int]()
        for place in range(2 * num_rows):
            clock.advance(1)
            queue = datanets.review_queue("docs", "user:lazy", limit)
            if not queue:
                break
            assert len(queue) <= limit
            num_known = sum(one.num_known for one in datanets.reviewers("docs"))
            datanets.review("docs", queue[0][0], "user:lazy", accept=False)
            if datanets.reviewers("docs")[0].num_known > num_known:
                places.append(place)
        (lazy,) = datanets.reviewers("docs")
        num_seen = lazy.num_reviews - lazy.num_known
        assert num_seen // (2 * KNOWN_EVERY - 1) <= lazy.num_known <= num_seen
        assert len({later - earlier for earlier, later in pairwise(places)}) > 1, "nobody can count them out"
        assert (lazy.num_right, lazy.is_heard) == (0, False)
        assert num_waiting(datanets) > 0
        datanets.close()

    def test_one_that_is_no_row_of_the_schema_is_refused(self, datanets: Datanets) -> None:
        schema = RowSchema(columns=(Column(name="note", type="string", required=True),))
        datanets.create("noted", "What functions do", OWNER, schema)
        with pytest.raises(InvalidInput) as caught:
            datanets.add_known_answer("noted", known(0), OWNER, accept=True)
        assert caught.value.code == "wrong_schema"
        noted = replace(known(0), extra='{"note":"by heart"}')
        assert datanets.add_known_answer("noted", noted, OWNER, accept=True).startswith("row_")

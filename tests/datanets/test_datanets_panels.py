"""Review panels: nobody tells before all have committed, and who tells something else is refused."""

from pathlib import Path

import pytest
from datanet_samples import clock_of, key_of, open_datanets
from test_datanets_reviews import ADA, OWNER, REVIEWERS, known, num_waiting, waiting

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.paneling import panel_digest, panel_nonce
from openledger.core.signing import SigningKey
from openledger.datanets.datanets import Datanets
from openledger.datanets.panels import REVEAL_MS
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.terms import Terms

KEYS = {reviewer: SigningKey(bytes([number + 1]) * 32) for number, reviewer in enumerate(REVIEWERS)}


@pytest.fixture
def datanets(tmp_path: Path) -> Datanets:
    opened = open_datanets(tmp_path)
    opened.set_terms("docs", Terms(min_reviews=3, panel=True), by=OWNER)
    return opened


def commit(datanets: Datanets, item: str, reviewer: str, accept: bool) -> None:
    nonce = panel_nonce(KEYS[reviewer], "docs", item)
    datanets.commit_review("docs", item, reviewer, panel_digest("docs", item, reviewer, nonce, accept=accept))


def reveal(datanets: Datanets, item: str, reviewer: str, accept: bool) -> None:
    datanets.reveal_review("docs", item, reviewer, panel_nonce(KEYS[reviewer], "docs", item), accept=accept)


def filled(datanets: Datanets, *said: bool) -> str:
    (item,) = waiting(datanets)
    for reviewer, accept in zip(REVIEWERS, said, strict=True):
        commit(datanets, item, reviewer, accept)
    return item


def code_of(raised: type, call: object, *arguments: object) -> str:
    with pytest.raises(raised) as caught:  # type: ignore[call-overload]
        call(*arguments)  # type: ignore[operator]
    return str(caught.value.code)


class TestAPanel:
    @pytest.mark.parametrize(("said", "num_rows"), [((True, False, True), 1), ((False, False, True), 0)])
    def test_decides_by_majority_once_all_have_revealed(
        self, datanets: Datanets, said: tuple[bool, ...], num_rows: int
    ) -> None:
        item = filled(datanets, *said)
        for reviewer, accept in zip(REVIEWERS, said, strict=True):
            assert num_waiting(datanets) == 1
            reveal(datanets, item, reviewer, accept)
        assert (num_waiting(datanets), datanets.stored_count("docs")) == (0, num_rows)
        assert {seat.state for seat in datanets.panel_seats("docs", REVIEWERS[0])} == {"done"}

    def test_reveals_nothing_before_it_is_full(self, datanets: Datanets) -> None:
        (item,) = waiting(datanets)
        commit(datanets, item, REVIEWERS[0], True)
        assert code_of(Conflict, reveal, datanets, item, REVIEWERS[0], True) == "panel_open"
        assert datanets.reviewers("docs") == []

    def test_takes_nobody_more_and_shows_the_row_to_nobody_else_once_it_is_full(self, datanets: Datanets) -> None:
        item = filled(datanets, True, True, True)
        KEYS["user:late"] = SigningKey(b"l" * 32)
        assert code_of(Conflict, commit, datanets, item, "user:late", True) == "panel_full"
        assert datanets.review_queue("docs", "user:late", 10) == []
        assert [shown for shown, _ in datanets.review_queue("docs", OWNER, 10)] == [item]

    @pytest.mark.parametrize("at", [0, 1])
    def test_believes_no_other_verdict_than_was_committed_to(self, datanets: Datanets, at: int) -> None:
        item = filled(datanets, True, False, True)
        assert code_of(InvalidInput, reveal, datanets, item, REVIEWERS[at], at == 1) == "wrong_reveal"
        assert datanets.reviewers("docs") == []

    def test_believes_no_copy_of_anothers_commitment(self, datanets: Datanets) -> None:
        """The digest holds who made it."""
        (item,) = waiting(datanets)
        nonce = panel_nonce(KEYS[REVIEWERS[0]], "docs", item)
        copied = panel_digest("docs", item, REVIEWERS[0], nonce, accept=True)
        for reviewer in REVIEWERS:
            datanets.commit_review("docs", item, reviewer, copied)
        datanets.reveal_review("docs", item, REVIEWERS[0], nonce, accept=True)
        given = (datanets.reveal_review, "docs", item, REVIEWERS[1], nonce)
        with pytest.raises(InvalidInput) as caught:
            given[0](*given[1:], accept=True)
        assert caught.value.code == "wrong_reveal"

    def test_goes_on_without_who_tells_nothing_and_his_record_says_so(self, datanets: Datanets) -> None:
        item = filled(datanets, True, True, False)
        for reviewer in REVIEWERS[:2]:
            reveal(datanets, item, reviewer, True)
        assert num_waiting(datanets) == 1
        clock_of(datanets).advance(REVEAL_MS + 1)
        datanets.decide_panels()
        assert (num_waiting(datanets), datanets.publish("docs").num_rows) == (0, 1)
        assert datanets.withheld_reviews("docs") == {REVIEWERS[2]: 1}
        assert code_of(Conflict, reveal, datanets, item, REVIEWERS[2], False) == "panel_done"

    def test_that_comes_to_nothing_leaves_the_row_to_the_owner(self, datanets: Datanets) -> None:
        item = filled(datanets, True, True, True)
        clock_of(datanets).advance(REVEAL_MS + 1)
        datanets.decide_panels()
        assert num_waiting(datanets) == 1
        datanets.review("docs", item, OWNER, accept=True)
        assert num_waiting(datanets) == 0

    def test_does_not_undo_what_the_owner_decided_meanwhile(self, datanets: Datanets) -> None:
        item = filled(datanets, True, True, True)
        datanets.review("docs", item, OWNER, accept=False)
        for reviewer in REVIEWERS:
            reveal(datanets, item, reviewer, True)
        assert datanets.stored_count("docs") == 0

    def test_of_a_row_that_is_taken_back_is_over(self, datanets: Datanets) -> None:
        item = filled(datanets, True, True, True)
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [item], "1"))
        for reviewer in REVIEWERS:
            reveal(datanets, item, reviewer, True)
        assert datanets.stored_count("docs") == 0

    def test_survives_that_the_process_ends(self, datanets: Datanets, tmp_path: Path) -> None:
        item = filled(datanets, True, True, False)
        datanets.close()
        again = open_datanets(tmp_path)
        for reviewer, accept in zip(REVIEWERS, (True, True, False), strict=True):
            reveal(again, item, reviewer, accept)
        assert again.publish("docs").num_rows == 1
        again.close()


class TestCommitting:
    def test_the_same_again_changes_nothing_and_another_verdict_is_refused(self, datanets: Datanets) -> None:
        (item,) = waiting(datanets)
        for _ in range(2):
            commit(datanets, item, REVIEWERS[0], True)
        assert len(datanets.panel_seats("docs", REVIEWERS[0])) == 1
        assert code_of(Conflict, commit, datanets, item, REVIEWERS[0], False) == "already_reviewed"

    def test_a_verdict_told_without_it_is_refused(self, datanets: Datanets) -> None:
        (item,) = waiting(datanets)
        with pytest.raises(Conflict) as caught:
            datanets.review("docs", item, REVIEWERS[0], accept=True)
        assert caught.value.code == "panel_review"

    def test_is_for_datanets_with_panels_alone(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(), by=OWNER)
        (item,) = waiting(datanets)
        assert code_of(Conflict, commit, datanets, item, REVIEWERS[0], True) == "no_panel"

    @pytest.mark.parametrize("reviewer", [ADA, f"contributor:{ADA}", OWNER])
    def test_neither_the_contributor_nor_the_owner_sits_on_the_panel(self, datanets: Datanets, reviewer: str) -> None:
        (item,) = waiting(datanets)
        assert code_of(Forbidden, datanets.commit_review, "docs", item, reviewer, "ab" * 32) == "own_row"

    def test_what_does_not_wait_and_what_is_no_digest_are_refused(self, datanets: Datanets) -> None:
        (item,) = waiting(datanets)
        assert code_of(NotFound, commit, datanets, "row_none", REVIEWERS[0], True) == "not_in_review"
        assert code_of(InvalidInput, datanets.commit_review, "docs", item, REVIEWERS[0], "x") == "invalid_commitment"
        assert code_of(NotFound, reveal, datanets, item, REVIEWERS[0], True) == "no_commitment"

    def test_a_panel_has_three_or_more(self) -> None:
        assert code_of(InvalidInput, lambda: Terms(panel=True, min_reviews=2)) == "invalid_terms"


class TestKnownAnswers:
    def test_are_revealed_as_the_rows_beside_them_and_measure_who_answered(self, datanets: Datanets) -> None:
        rows = set(waiting(datanets, 12))
        for number in range(12):
            datanets.add_known_answer("docs", known(number), OWNER, accept=True)
        said = dict(zip(REVIEWERS, (True, True, False), strict=True))
        for reviewer, accept in said.items():
            while queue := datanets.review_queue("docs", reviewer, 1):
                clock_of(datanets).advance(1)
                commit(datanets, queue[0][0], reviewer, accept)
        seats = {reviewer: datanets.panel_seats("docs", reviewer) for reviewer in REVIEWERS}
        assert {seat.state for own in seats.values() for seat in own} == {"revealing"}
        for reviewer, accept in said.items():
            assert rows < {seat.row_id for seat in seats[reviewer]}
            for seat in seats[reviewer]:
                reveal(datanets, seat.row_id, reviewer, accept)
        ann, _, cem = datanets.reviewers("docs")
        assert (ann.num_right, cem.num_right) == (ann.num_known, 0)
        assert min(ann.num_known, cem.num_known) > 0
        assert num_waiting(datanets) == 0

    def test_stand_as_the_row_before_them_while_that_isnt_full(self, datanets: Datanets) -> None:
        waiting(datanets, 12)
        for number in range(12):
            datanets.add_known_answer("docs", known(number), OWNER, accept=True)
        while queue := datanets.review_queue("docs", REVIEWERS[0], 1):
            clock_of(datanets).advance(1)
            commit(datanets, queue[0][0], REVIEWERS[0], True)
        seats = datanets.panel_seats("docs", REVIEWERS[0])
        assert len(seats) > 12
        assert {(seat.state, seat.reveal_by_ms) for seat in seats} == {("committing", 0)}

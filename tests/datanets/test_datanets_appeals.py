"""A verdict that is appealed: the row comes again and is shown to be the one that was judged; what a decision does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.appealing import Appeal
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.appeals import AppealStore, appeal_of
from openledger.datanets.datanets import Datanets
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.shard import ShardHost

NOISE = RowDraft(prompt="What does pack.crc do?", completion="Xqzv wvkx zzqj kqvx jxqz wqkz vxjq.", source="s")
PRIVATE = RowDraft(prompt="What does it cost?", completion="Ask jane.doe@mail.org for the price of a licence.")
ROWS = [*sample_drafts(3), NOISE, PRIVATE]
REJECTED, REVIEWED = 3, 4


@pytest.fixture
def contribution(datanets: Datanets) -> Contribution:
    contribution = signed("ada", ROWS)
    receipt = datanets.contribute(contribution)
    assert [verdict.outcome for verdict in receipt.verdicts] == ["accept"] * 3 + ["reject", "review"]
    return contribution


def appeal(contribution: Contribution, ordinal: int = REJECTED, name: str = "ada") -> Appeal:
    return appeal_of(key_of(name), contribution, ordinal, "it is a real answer")


def verdicts(datanets: Datanets, contribution: Contribution) -> list[str]:
    """As they stand now."""
    receipt = datanets.contribute(contribution)
    return [verdict.outcome for verdict in datanets.receipt("docs", receipt.contribution_id).verdicts]


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class TestTheRow:
    def test_is_kept_until_the_appeal_is_closed_and_the_gates_word_is_told(self, datanets, contribution) -> None:
        own = appeal(contribution)
        judged = datanets.hold_appeal(own)
        assert (judged.outcome, judged.reasons, judged.rival) == ("reject", ("noise",), "")
        assert (datanets.appeals("docs"), datanets.appealed_row(own.row_id)) == ([own.row_id], NOISE)
        assert datanets.held_appeals() == {own.row_id: 0}
        assert datanets.hold_appeal(own) == judged

    @pytest.mark.parametrize("state", ["upheld", "lapsed"])
    def test_is_deleted_with_an_appeal_that_changes_nothing(
        self, datanets, contribution, tmp_path: Path, state: Any
    ) -> None:
        own = appeal(contribution)
        datanets.hold_appeal(own)
        assert NOISE.completion.encode() in files(tmp_path)
        datanets.close_appeal(own.row_id, state)
        assert NOISE.completion.encode() not in files(tmp_path)
        assert verdicts(datanets, contribution) == ["accept"] * 3 + ["reject", "review"]
        with pytest.raises(NotFound) as caught:
            datanets.appealed_row(own.row_id)
        assert (caught.value.code, datanets.held_appeals()) == ("row_not_kept", {})
        with pytest.raises(Conflict) as again:
            datanets.hold_appeal(own)
        assert again.value.code == "appeal_exists"

    def test_of_an_appeal_that_came_to_nothing_is_deleted_and_can_be_appealed(
        self, datanets, contribution, tmp_path: Path
    ) -> None:
        own = appeal(contribution)
        datanets.hold_appeal(own)
        datanets.drop_appeal(own.row_id)
        assert (NOISE.completion.encode() in files(tmp_path), datanets.appeals("docs")) == (False, [])
        datanets.hold_appeal(own)

    def test_that_duplicates_anothers_names_whose(self, datanets, contribution) -> None:
        copied = signed("bob", sample_drafts(1))
        datanets.contribute(copied)
        judged = datanets.hold_appeal(appeal(copied, 0, "bob"))
        assert (judged.reasons, judged.rival) == (("exact_duplicate",), contribution.contributor_id)

    @pytest.mark.parametrize(
        "change",
        [
            {"draft": replace(NOISE, source="t")},
            {"draft": ROWS[0]},
            {"ordinal": REVIEWED},
            {"ordinal": 99},
            {"path": ()},
            {"path": ("zz",)},
        ],
    )
    def test_that_was_not_judged_is_refused(self, datanets, contribution, change) -> None:
        with pytest.raises(InvalidInput) as caught:
            datanets.hold_appeal(replace(appeal(contribution), **change))
        assert (caught.value.code, datanets.appeals("docs")) == ("wrong_row", [])

    def test_that_was_accepted_is_not_appealed(self, datanets, contribution) -> None:
        with pytest.raises(Conflict) as caught:
            datanets.hold_appeal(appeal(contribution, 0))
        assert caught.value.code == "row_accepted"

    def test_of_another_contributor_is_not_appealed(self, datanets, contribution) -> None:
        with pytest.raises(Forbidden) as caught:
            datanets.hold_appeal(appeal(contribution, name="eve"))
        assert caught.value.code == "not_the_contributor"

    def test_of_a_contribution_that_there_is_not_is_not_found(self, datanets) -> None:
        with pytest.raises(NotFound) as caught:
            datanets.hold_appeal(appeal(signed("ada", ROWS, nonce="never sent")))
        assert caught.value.code == "unknown_contribution"

    def test_without_the_contributors_signature_is_refused(self, datanets, contribution) -> None:
        with pytest.raises(InvalidInput) as caught:
            datanets.hold_appeal(replace(appeal(contribution), reason="else"))
        assert caught.value.code == "invalid_signature"


class TestAnOverturnedVerdict:
    def test_accepts_the_row_with_its_place_and_keeps_no_copy(self, datanets, contribution) -> None:
        later = datanets.contribute(signed("bob", sample_drafts(2, "later")))
        own = appeal(contribution)
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        assert verdicts(datanets, contribution)[REJECTED] == "accept"
        order = datanets._registry.credit_order()
        assert order.index(own.row_id) < order.index(later.verdicts[0].row_id)
        datanets.publish("docs")
        assert {row.row_id: row.completion for row in datanets.rows("docs", 1)}[own.row_id] == NOISE.completion
        with pytest.raises(NotFound):
            datanets.appealed_row(own.row_id)

    def test_changes_no_version_that_is_out_and_comes_first_in_the_next(self, datanets, contribution) -> None:
        own, later = appeal(contribution), datanets.contribute(signed("bob", sample_drafts(2, "later")))
        before = datanets.publish("docs")
        order = datanets.credit("docs", 1)
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        after = datanets.publish("docs")
        now = datanets.credit("docs", 2)
        assert (datanets.version("docs", 1), datanets.credit("docs", 1)) == (before, order)
        assert [row_id for row_id in now if row_id != own.row_id] == order
        assert now.index(own.row_id) < min(now.index(verdict.row_id) for verdict in later.verdicts)
        assert after.credit_root != before.credit_root

    def test_of_a_row_in_review_accepts_what_is_stored(self, datanets, contribution) -> None:
        own, before = appeal(contribution, REVIEWED), datanets.stored_count("docs")
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        assert verdicts(datanets, contribution)[REVIEWED] == "accept"
        assert datanets.stored_count("docs") == before
        assert datanets.publish("docs").num_rows == 4

    def test_takes_its_place_before_whoever_sent_the_same_meanwhile(self, datanets, contribution) -> None:
        """Which the gate accepts only where it judges otherwise by then: here, by another appeal."""
        theirs = signed("bob", [NOISE])
        datanets.contribute(theirs)
        for who, given, ordinal in (("bob", theirs, 0), ("ada", contribution, REJECTED)):
            one = appeal(given, ordinal, who)
            datanets.hold_appeal(one)
            datanets.close_appeal(one.row_id, "overturned")
        datanets.publish("docs")
        assert datanets.copies("docs", 1) == {
            appeal(theirs, 0, "bob").row_id: appeal(contribution).row_id,
        }

    def test_of_a_duplicate_says_that_it_is_none(self, datanets, contribution) -> None:
        edited = replace(ROWS[0], completion=ROWS[0].completion.replace(".", " indeed!"))
        copied = signed("bob", [edited])
        datanets.contribute(copied)
        own = appeal(copied, 0, "bob")
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        datanets.publish("docs")
        assert own.row_id in {row.row_id for row in datanets.rows("docs", 1)}
        assert datanets.copies("docs", 1) == {}

    def test_holds_after_a_restart(self, datanets, contribution, tmp_path: Path) -> None:
        own = appeal(contribution)
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        datanets.close()
        again = open_datanets(tmp_path)
        assert verdicts(again, contribution)[REJECTED] == "accept"
        again.close_appeal(own.row_id, "overturned")
        (verdict,) = again.contribute(signed("eve", [replace(NOISE, source="mine")], nonce="2")).verdicts
        assert verdict.reasons == ("noise",)
        again.close()

    def test_is_known_to_the_duplicate_index_at_once(self, datanets, contribution) -> None:
        """A later copy that the gate would let through by its words is the row's copy."""
        own = appeal(contribution, REVIEWED)
        datanets.hold_appeal(own)
        datanets.close_appeal(own.row_id, "overturned")
        (verdict,) = datanets.contribute(signed("eve", [PRIVATE])).verdicts
        assert (verdict.reasons, verdict.duplicate_of) == (("exact_duplicate",), own.row_id)


class TestARowThatIsTakenBack:
    def test_is_no_longer_kept_for_its_appeal(self, datanets, contribution, tmp_path: Path) -> None:
        own = appeal(contribution, REVIEWED)
        datanets.hold_appeal(own)
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [own.row_id], "1"))
        assert PRIVATE.completion.encode() not in files(tmp_path)
        with pytest.raises(NotFound) as caught:
            datanets.appealed_row(own.row_id)
        assert (caught.value.code, datanets.held_appeals()) == ("row_not_kept", {})
        datanets.close_appeal(own.row_id, "overturned")
        assert datanets.stored_count("docs") == 3
        assert verdicts(datanets, contribution)[REVIEWED] == "review"

    @pytest.mark.parametrize("held_before", [False, True])
    def test_is_not_taken_for_an_appeal(self, datanets, contribution, tmp_path: Path, held_before: bool) -> None:
        own = appeal(contribution, REVIEWED)
        if held_before:
            datanets.hold_appeal(own)
        datanets.remove("docs", [own.row_id], "acct_owner", "court_order")
        with pytest.raises(Conflict) as caught:
            datanets.hold_appeal(own)
        assert (caught.value.code, datanets.held_appeals()) == ("row_removed", {})
        assert PRIVATE.completion.encode() not in files(tmp_path)

    def test_is_dropped_by_the_next_opening_where_a_crash_came_between(
        self, datanets, contribution, tmp_path: Path, monkeypatch
    ) -> None:
        own = appeal(contribution, REVIEWED)
        datanets.hold_appeal(own)

        def crash(self):
            raise PowerCut

        monkeypatch.setattr(AppealStore, "close_removed", crash)
        with pytest.raises(PowerCut):
            datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [own.row_id], "1"))
        monkeypatch.undo()
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.held_appeals() == {}
        assert PRIVATE.completion.encode() not in files(tmp_path)
        again.close()


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [(ShardHost, "append", False), (ShardHost, "append", True), (AppealStore, "accept", True)],
)
def test_an_overturned_row_is_accepted_once_wherever_it_stopped(
    datanets, contribution, tmp_path: Path, monkeypatch, owner, name, after
) -> None:
    own = appeal(contribution)
    datanets.hold_appeal(own)
    original = getattr(owner, name)

    def crash(self, *arguments):
        if after:
            original(self, *arguments)
        raise PowerCut

    monkeypatch.setattr(owner, name, crash)
    with pytest.raises(PowerCut):
        datanets.close_appeal(own.row_id, "overturned")
    monkeypatch.undo()
    datanets.close()
    again = open_datanets(tmp_path)
    again.close_appeal(own.row_id, "overturned")
    assert verdicts(again, contribution)[REJECTED] == "accept"
    assert (again.publish("docs").num_rows, again.stored_count("docs")) == (4, 5)
    again.close()

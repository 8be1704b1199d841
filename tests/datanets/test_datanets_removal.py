"""Rows taken back: who may, what stays of them, and that nothing else does."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import ANSWERS, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Forbidden, InvalidInput, NotFound, TooLarge
from openledger.core.values import Row, RowDraft, Withdrawal
from openledger.datanets import datanets as datanets_module
from openledger.datanets.datanets import Datanets
from openledger.datanets.disk import DiskFiles
from openledger.datanets.registry import PendingContribution
from openledger.datanets.removal import check_withdrawal, sign_withdrawal, tombstone_digest
from openledger.datanets.shard import ShardHost
from openledger.datanets.tombstones import Tombstones

SECRET = RowDraft(
    prompt="What does quuxonymous.xylophonesecret do?",
    completion="It keeps the quuxonymous archive of a xylophonesecret until somebody asks for it again.",
    source="quuxonymous-file",
)
NEEDLES = (b"quuxonymous", b"xylophonesecret")


def withdrawal(name: str, *row_ids: str, nonce: str = "1") -> Withdrawal:
    return sign_withdrawal(key_of(name), "docs", row_ids, nonce)


def contribute(datanets: Datanets, name: str = "ada", *drafts: RowDraft) -> list[str]:
    receipt = datanets.contribute(signed(name, drafts or sample_drafts(6, name)))
    return [verdict.row_id for verdict in receipt.verdicts]


def grep(folder: Path, *needles: bytes) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.name for path in files if any(needle in path.read_bytes().lower() for needle in needles)]


class TestSigning:
    def test_a_signed_withdrawal_passes(self) -> None:
        check_withdrawal(withdrawal("ada", "row_b", "row_a"))

    @pytest.mark.parametrize(
        "change",
        [
            {"row_ids": ("row_a", "row_c")},
            {"nonce": "2"},
            {"datanet": "poems"},
            {"public_key": key_of("eve").public_key},
            {"contributor_id": "ctr_other"},
        ],
    )
    def test_what_was_not_signed_is_refused(self, change: dict[str, object]) -> None:
        forged = replace(withdrawal("ada", "row_a", "row_b"), **change)
        with pytest.raises(InvalidInput) as caught:
            check_withdrawal(forged)
        assert caught.value.code == "invalid_signature"

    @pytest.mark.parametrize("row_ids", [(), ("row_b", "row_a"), ("row_a", "row_a")])
    def test_rows_are_named_once_and_in_order(self, row_ids: tuple[str, ...]) -> None:
        with pytest.raises(InvalidInput):
            check_withdrawal(replace(withdrawal("ada", "row_a"), row_ids=row_ids))

    def test_one_withdrawal_has_a_limit(self) -> None:
        with pytest.raises(TooLarge):
            check_withdrawal(withdrawal("ada", *(f"row_{number}" for number in range(10_001))))


class TestWithdraw:
    def test_the_next_version_leaves_it_out_and_the_published_one_has_a_tombstone(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        first = datanets.publish("docs")
        row = next(row for row in datanets.rows("docs", 1) if row.row_id == ids[0])
        removal = datanets.withdraw(withdrawal("ada", ids[0]))
        assert (removal.kind, removal.row_ids) == ("withdrawn", (ids[0],))
        assert datanets.publish("docs").num_rows == first.num_rows - 1
        assert ids[0] not in {row.row_id for row in datanets.rows("docs", 2)}
        assert {row.row_id for row in datanets.rows("docs", 1)} == set(ids[1:])
        (stone,) = datanets.tombstones("docs", 1)
        assert (stone.row_id, stone.digest) == (ids[0], tombstone_digest(row, stone.salt))
        assert datanets.version("docs", 1) == first

    def test_two_tombstones_of_one_text_differ(self, datanets: Datanets) -> None:
        row = Row(
            row_id="row_a", datanet="docs", contributor_id="c", contribution_id="b", ordinal=0, source="",
            prompt="p", completion="c",
        )  # fmt: skip
        assert tombstone_digest(row, "aa") != tombstone_digest(row, "bb")

    def test_the_same_again_gives_the_first_answer(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        first = datanets.withdraw(withdrawal("ada", ids[0]))
        assert datanets.withdraw(withdrawal("ada", ids[0])) == first
        assert datanets.removals("docs") == [first]

    def test_rows_that_are_gone_are_not_taken_again(self, datanets: Datanets) -> None:
        """Under another nonce, in another set, or by the owner: nothing more is to be told to the log."""
        ids = contribute(datanets)
        first = datanets.withdraw(withdrawal("ada", ids[0], ids[1]))
        assert datanets.withdraw(withdrawal("ada", ids[0], ids[1], nonce="another")) == first
        assert datanets.withdraw(withdrawal("ada", ids[0])) == first
        assert datanets.removals("docs") == [first]

    def test_rows_in_two_withdrawals_are_forgotten_once(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        datanets.withdraw(withdrawal("ada", ids[0], ids[1]))
        datanets.withdraw(withdrawal("ada", ids[1], ids[2]))
        assert datanets.stored_count("docs") == 3
        assert datanets.publish("docs").num_rows == 3

    def test_another_contributors_row_stays(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        with pytest.raises(Forbidden) as caught:
            datanets.withdraw(withdrawal("eve", ids[0]))
        assert (caught.value.code, caught.value.param) == ("not_your_row", ids[0])
        assert datanets.stored_count("docs") == 6
        assert datanets.removals("docs") == []

    def test_an_unknown_row_is_not_found_and_the_others_stay(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        with pytest.raises(NotFound, match="row_none") as caught:
            datanets.withdraw(withdrawal("ada", ids[0], "row_none"))
        assert "rejected was never stored" in (caught.value.fix or "")
        assert datanets.stored_count("docs") == 6

    def test_a_replayed_contribution_does_not_bring_it_back(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        datanets.withdraw(withdrawal("ada", *ids))
        contribute(datanets)
        assert datanets.stored_count("docs") == 0
        with pytest.raises(InvalidInput, match="no accepted row"):
            datanets.publish("docs")

    def test_statistics_tell_it_from_accepted_rows(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        datanets.withdraw(withdrawal("ada", ids[0]))
        (ada,) = datanets.statistics("docs")
        assert (ada.accepted, ada.removed) == (5, 1)

    def test_its_text_is_no_original_any_more_now_or_after_opening(self, datanets: Datanets, tmp_path: Path) -> None:
        first = contribute(datanets, "ada", RowDraft(prompt="What is it?", completion=ANSWERS[0]))
        other = RowDraft(prompt="What is it?", completion=ANSWERS[0])
        assert datanets.preview(signed("eve", [other]))[0].duplicate_of == first[0]
        datanets.withdraw(withdrawal("ada", *first))
        assert datanets.preview(signed("eve", [other]))[0].outcome == "accept"
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.preview(signed("eve", [other]))[0].outcome == "accept"
        again.close()

    def test_copies_are_found_among_the_rows_that_stay(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        datanets.publish("docs")
        datanets.withdraw(withdrawal("ada", ids[0]))
        assert datanets.copies("docs", 1) == {}


class TestRemove:
    def test_the_owner_removes_any_row_with_a_reason(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        removal = datanets.remove("docs", [ids[1], ids[0]], by="acct_owner", reason="court_order")
        assert (removal.kind, removal.by, removal.reason) == ("removed", "acct_owner", "court_order")
        assert removal.row_ids == tuple(sorted(ids[:2]))
        assert datanets.stored_count("docs") == 4

    def test_nobody_else_does(self, datanets: Datanets) -> None:
        ids = contribute(datanets)
        with pytest.raises(Forbidden) as caught:
            datanets.remove("docs", ids, by="acct_eve", reason="court_order")
        assert caught.value.code == "not_the_owner"

    @pytest.mark.parametrize("reason", ["", "Because I say so", "a" * 65])
    def test_a_reason_is_one_word(self, datanets: Datanets, reason: str) -> None:
        ids = contribute(datanets)
        with pytest.raises(InvalidInput) as caught:
            datanets.remove("docs", ids, by="acct_owner", reason=reason)
        assert caught.value.code == "invalid_reason"
        assert datanets.stored_count("docs") == 6


class TestForgetting:
    def test_no_byte_of_a_withdrawn_row_is_left_in_any_file(self, datanets: Datanets, tmp_path: Path) -> None:
        twin = replace(
            SECRET, prompt="What is a xylophonesecret in quuxonymous.other?", completion="Another archive of the kind."
        )
        ids = contribute(datanets, "ada", SECRET, twin, *sample_drafts(4))
        datanets.publish("docs")
        datanets.copies("docs", 1)
        assert len(grep(tmp_path, *NEEDLES)) >= 2, "the control: a shard and the table of words have it"
        datanets.withdraw(withdrawal("ada", *ids[:2]))
        assert grep(tmp_path, *NEEDLES) == []
        assert datanets.copies("docs", 1) == {}
        datanets.close()
        assert grep(tmp_path, *NEEDLES) == []
        open_datanets(tmp_path).close()

    def test_registries_of_before_forget_dropped_drafts(self, datanets: Datanets, tmp_path: Path) -> None:
        connection = datanets._registry._connection
        connection.execute("PRAGMA secure_delete=OFF").fetchall()
        connection.execute("DELETE FROM properties WHERE name = 'secure_delete'")
        ids = contribute(datanets, "ada", SECRET, *sample_drafts(40))  # more than a page of SQLite's
        datanets.close()
        assert "registry.sqlite" in grep(tmp_path, *NEEDLES)
        again = open_datanets(tmp_path)
        again.withdraw(withdrawal("ada", ids[0]))
        again.close()
        assert grep(tmp_path, *NEEDLES) == []

    def test_words_that_other_rows_have_keep_their_weight(self, datanets: Datanets, tmp_path: Path) -> None:
        ids = contribute(datanets)
        datanets.publish("docs")
        datanets.copies("docs", 1)
        before = json.loads((tmp_path / "word_weights.json").read_text())["counts"]
        datanets.withdraw(withdrawal("ada", ids[0]))
        after = json.loads((tmp_path / "word_weights.json").read_text())["counts"]
        assert after.items() <= before.items()
        assert {"what", "does", "the", "function"} <= after.keys()


class TestALateStore:
    """`begin` and `store` may be apart (`ingest`), and a withdrawal come between."""

    def test_brings_no_withdrawn_row_back(self, datanets: Datanets, tmp_path: Path) -> None:
        begun, row_ids = begin(datanets, SECRET)
        datanets.withdraw(withdrawal("ada", *row_ids))
        datanets.store(begun)
        datanets.finish(begun)
        assert datanets._layout.row_ids("docs").isdisjoint(row_ids)
        assert grep(tmp_path, *NEEDLES) == []

    def test_is_waited_for_by_a_withdrawal_and_leaves_nothing_behind(
        self, datanets: Datanets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, row_ids = begin(datanets, *sample_drafts(3), SECRET)
        append, appending, go_on = datanets._layout.append, threading.Event(), threading.Event()
        threads: list[int] = []

        def slow(*arguments: Any) -> None:
            threads.append(threading.get_ident())
            appending.set()
            assert go_on.wait(60)
            append(*arguments)

        monkeypatch.setattr(datanets._layout, "append", slow)
        with ThreadPoolExecutor(1) as other:
            storing = other.submit(datanets.store, begun)
            assert appending.wait(60)
            threading.Timer(0.05, go_on.set).start()
            datanets.withdraw(withdrawal("ada", *row_ids))
            storing.result()
        assert threads[0] != threading.get_ident() == threads[1]
        assert datanets._layout.row_ids("docs").isdisjoint(row_ids)
        assert grep(tmp_path, *NEEDLES) == []

    def test_of_what_is_finished_does_nothing(self, datanets: Datanets, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, _ = begin(datanets, *sample_drafts(3))
        datanets.publish("docs")
        monkeypatch.setattr(datanets._layout, "append", None)
        datanets.store(begun)

    def test_brings_no_row_back_that_reviewers_rejected(self, datanets: Datanets) -> None:
        mail = RowDraft(prompt="Whom do I ask?", completion="Write to ada.lovelace@engines.org about the old cards.")
        begun, (row_id,) = begin(datanets, mail)
        with contextlib.suppress(InvalidInput):
            datanets.publish("docs")  # finishes what is pending
        datanets.review("docs", row_id, "acct_owner", accept=False)
        datanets.store(begun)
        assert row_id not in datanets._layout.row_ids("docs")

    def test_of_a_process_that_was_cut_off_is_undone_by_the_next_opening(
        self, datanets: Datanets, tmp_path: Path
    ) -> None:
        begun, row_ids = begin(datanets, SECRET)
        datanets.withdraw(withdrawal("ada", *row_ids))
        rows = list(datanets_module._stored_rows(begun))
        datanets._layout.append("docs", rows, begun.receipt.contribution_id)
        datanets.close()
        assert grep(tmp_path, *NEEDLES)
        again = open_datanets(tmp_path)
        assert again._layout.row_ids("docs").isdisjoint(row_ids)
        assert grep(tmp_path, *NEEDLES) == []
        again.close()


def begin(datanets: Datanets, *drafts: RowDraft) -> tuple[PendingContribution, list[str]]:
    begun = datanets.begin(signed("ada", drafts))
    assert isinstance(begun, PendingContribution)
    return begun, [verdict.row_id for verdict in begun.receipt.verdicts]


class TestTheLog:
    def test_lacks_a_removal_until_somebody_says_that_it_is_there(self, datanets: Datanets, tmp_path: Path) -> None:
        ids = contribute(datanets)
        first, second = (datanets.withdraw(withdrawal("ada", row_id)) for row_id in ids[:2])
        datanets.mark_removal_logged(first.removal_id)
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.unlogged_removals() == [second]
        again.withdraw(withdrawal("ada", ids[0]))
        assert again.unlogged_removals() == [second]
        again.close()

    def test_of_before_is_told_anew(self, datanets: Datanets, tmp_path: Path) -> None:
        removal = datanets.withdraw(withdrawal("ada", contribute(datanets)[0]))
        datanets.mark_removal_logged(removal.removal_id)
        datanets._registry._connection.execute("ALTER TABLE removals DROP COLUMN logged")
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.unlogged_removals() == [removal]
        again.close()

    def test_is_not_told_what_the_shards_still_hold(
        self, datanets: Datanets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ids = contribute(datanets)
        with monkeypatch.context() as patch:
            patch.setattr(ShardHost, "remove", crash)
            with pytest.raises(Crash):
                datanets.withdraw(withdrawal("ada", ids[0]))
        assert datanets.unlogged_removals() == []
        datanets.close()
        again = open_datanets(tmp_path)
        assert [removal.row_ids for removal in again.unlogged_removals()] == [(ids[0],)]
        again.close()


class Crash(Exception):
    pass


def crash(*arguments: object, **options: object) -> None:
    raise Crash


class TestCrashes:
    """Cut off before, between and after the steps: the next opening finishes what was begun, or nothing was."""

    @pytest.mark.parametrize(
        ("cls", "method", "begun"),
        [(Tombstones, "begin", False), (ShardHost, "remove", True), (DiskFiles, "settle", True),
         (Datanets, "_forget_words", True), (Tombstones, "finish", True)],
    )  # fmt: skip
    def test_it_is_finished_or_was_never_begun(
        self,
        tmp_path: Path,
        datanets: Datanets,
        monkeypatch: pytest.MonkeyPatch,
        cls: type,
        method: str,
        begun: bool,
    ) -> None:
        ids = contribute(datanets, "ada", SECRET, *sample_drafts(5))
        datanets.publish("docs")
        with monkeypatch.context() as patch:
            patch.setattr(cls, method, crash)
            with pytest.raises(Crash):
                datanets.withdraw(withdrawal("ada", ids[0]))
        datanets.close()
        again = open_datanets(tmp_path)
        assert len(again.removals("docs")) == begun
        assert (grep(tmp_path, *NEEDLES) == []) == begun
        again.withdraw(withdrawal("ada", ids[0]))
        assert grep(tmp_path, *NEEDLES) == []
        assert {row.row_id for row in again.rows("docs", 1)} == set(ids[1:])
        assert len(again.tombstones("docs", 1)) == len(again.removals("docs")) == 1
        again.close()

    def test_a_crash_after_one_of_several_shards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datanets = open_datanets(tmp_path)
        ids = contribute(datanets, "ada", *sample_drafts(12))
        remove, calls = ShardHost.remove, iter([True, False])

        def second(host: ShardHost, datanet: str, row_ids: list[str]) -> int:
            return remove(host, datanet, row_ids) if next(calls) else crash()  # type: ignore[func-returns-value]

        with monkeypatch.context() as patch:
            patch.setattr(ShardHost, "remove", second)
            with pytest.raises(Crash):
                datanets.withdraw(withdrawal("ada", *ids))
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.stored_count("docs") == 0
        again.close()

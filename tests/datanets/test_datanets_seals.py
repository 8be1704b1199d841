"""Sealed rows: whoever sees them before they are sent can't take their place."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from datanet_samples import clock_of, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.sealing import sign_seal
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.registry import Registry
from openledger.datanets.seals import MAX_UNOPENED, SEAL_MS, UNOPENED_MS, seal_of

DRAFTS = sample_drafts(4)


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    opened = open_datanets(tmp_path)
    opened.contribute(signed("eve", sample_drafts(2, "before")))
    yield opened
    opened.close()


def edited(drafts: list[RowDraft]) -> list[RowDraft]:
    return [replace(draft, completion=draft.completion.replace(".", " indeed!")) for draft in drafts]


def sealed(datanets: Datanets, name: str = "ada", drafts: list[RowDraft] = DRAFTS, nonce: str = "1") -> Contribution:
    """Rows whose seal is in the log."""
    contribution = signed(name, drafts, nonce)
    datanets.seal(seal_of(key_of(name), contribution))
    log(datanets)
    return contribution


def log(datanets: Datanets) -> list[tuple[str, bool]]:
    """As the platform does; what was put in the log."""
    waiting = datanets.unlogged_seals()
    for seal in waiting:
        datanets.mark_seal_logged(seal.contributor_id, seal.digest, opened=seal.signed is not None)
    return [(seal.digest, seal.signed is not None) for seal in waiting]


def outcomes(receipt: ContributionReceipt) -> set[str]:
    return {verdict.outcome for verdict in receipt.verdicts}


def ids(receipt: ContributionReceipt) -> list[str]:
    return [verdict.row_id for verdict in receipt.verdicts]


@pytest.mark.parametrize("change", [list, edited], ids=["verbatim", "edited"])
class TestACopyThatCameBetween:
    def test_does_not_reject_its_original_and_is_no_longer_trained_on(self, datanets: Datanets, change) -> None:
        contribution = sealed(datanets)
        copy = datanets.contribute(signed("bob", change(DRAFTS)))
        assert outcomes(copy) == {"accept"}
        original = datanets.contribute(contribution)
        assert outcomes(original) == {"accept"}
        datanets.publish("docs")
        assert datanets.copies("docs", 1) == dict(zip(ids(copy), ids(original), strict=True))

    def test_stays_accepted_and_its_earlier_version_stays_as_it_was(self, datanets: Datanets, change) -> None:
        contribution = sealed(datanets)
        copy = datanets.contribute(signed("bob", change(DRAFTS)))
        first = datanets.publish("docs")
        assert datanets.copies("docs", 1) == {}
        datanets.contribute(contribution)
        assert datanets.version("docs", 1) == first
        assert datanets.contribute(signed("bob", change(DRAFTS))) == copy
        assert datanets.publish("docs").num_rows == first.num_rows + len(DRAFTS)

    def test_is_displaced_after_a_restart_too(self, datanets: Datanets, tmp_path: Path, change) -> None:
        contribution = sealed(datanets)
        copy = datanets.contribute(signed("bob", change(DRAFTS)))
        datanets.close()
        again = open_datanets(tmp_path)
        original = again.contribute(contribution)
        again.close()
        again = open_datanets(tmp_path)
        again.publish("docs")
        assert again.copies("docs", 1) == dict(zip(ids(copy), ids(original), strict=True))
        third = [replace(draft, completion=f"Well: {draft.completion}") for draft in DRAFTS]
        assert [v.duplicate_of for v in again.contribute(signed("eve", third)).verdicts] == ids(original)
        again.close()

    def test_in_another_datanet_is_displaced_there(self, datanets: Datanets, change) -> None:
        datanets.create("clone", "The same again", "acct_eve")
        contribution = sealed(datanets)
        copy = datanets.contribute(signed("bob", change(DRAFTS), datanet="clone"))
        original = datanets.contribute(contribution)
        datanets.publish("clone")
        assert datanets.copies("clone", 1) == dict(zip(ids(copy), ids(original), strict=True))


class TestThePlace:
    def test_a_later_copy_is_told_the_sealed_original_and_not_the_copy_between(self, datanets: Datanets) -> None:
        contribution = sealed(datanets)
        datanets.contribute(signed("bob", DRAFTS))
        original = datanets.contribute(contribution)
        later = datanets.contribute(signed("eve", DRAFTS))
        assert [verdict.duplicate_of for verdict in later.verdicts] == ids(original)

    def test_what_stood_there_before_the_seal_rejects_sealed_rows(self, datanets: Datanets) -> None:
        first = datanets.contribute(signed("bob", DRAFTS))
        receipt = datanets.contribute(sealed(datanets))
        assert [verdict.duplicate_of for verdict in receipt.verdicts] == ids(first)

    def test_of_two_sealed_copies_the_first_seal_counts_whichever_rows_come_first(self, datanets: Datanets) -> None:
        original, copy = sealed(datanets), sealed(datanets, "bob", edited(DRAFTS))
        second, first = datanets.contribute(copy), datanets.contribute(original)
        datanets.publish("docs")
        assert outcomes(first) == {"accept"}
        assert datanets.copies("docs", 1) == dict(zip(ids(second), ids(first), strict=True))

    def test_is_the_seals_in_the_order_of_credit(self, datanets: Datanets, tmp_path: Path) -> None:
        contribution = sealed(datanets)
        between = datanets.contribute(signed("bob", sample_drafts(3, "between")))
        original = datanets.contribute(contribution)
        datanets.close()
        registry = Registry(tmp_path / "registry.sqlite")
        order = registry.credit_order()
        registry.close()
        assert order[2:] == ids(original) + ids(between)

    def test_a_seal_without_rows_blocks_nobody(self, datanets: Datanets) -> None:
        sealed(datanets)
        assert outcomes(datanets.contribute(signed("bob", DRAFTS))) == {"accept"}
        datanets.publish("docs")
        assert datanets.copies("docs", 1) == {}

    def test_is_of_these_rows_alone(self, datanets: Datanets) -> None:
        """One row more, another nonce, another order: other rows."""
        sealed(datanets)
        datanets.contribute(signed("bob", DRAFTS))
        for drafts, nonce in ((DRAFTS[:3], "1"), (DRAFTS[::-1], "1"), (DRAFTS, "2")):
            assert outcomes(datanets.contribute(signed("ada", drafts, nonce))) == {"reject"}

    def test_does_not_count_before_the_seal_is_in_the_log(self, datanets: Datanets) -> None:
        contribution = signed("ada", DRAFTS)
        datanets.seal(seal_of(key_of("ada"), contribution))
        datanets.contribute(signed("bob", DRAFTS))
        assert outcomes(datanets.contribute(contribution)) == {"reject"}

    def test_a_preview_knows_of_the_seal(self, datanets: Datanets) -> None:
        contribution = sealed(datanets)
        datanets.contribute(signed("bob", DRAFTS))
        previewed = datanets.preview(contribution)
        assert datanets.contribute(contribution).verdicts == previewed


class TestTheSeal:
    def test_is_told_with_what_became_of_it(self, datanets: Datanets) -> None:
        contribution = sealed(datanets)
        own = contribution.contributor_id, seal_of(key_of("ada"), contribution).digest
        waiting = datanets.find_seal("docs", *own)
        assert (waiting.state, waiting.expires_ms - waiting.sealed_ms) == ("waiting", SEAL_MS)
        receipt = datanets.contribute(contribution)
        opened = datanets.find_seal("docs", *own)
        assert (opened.state, opened.contribution_id) == ("opened", receipt.contribution_id)

    def test_again_gives_the_first(self, datanets: Datanets) -> None:
        seal = seal_of(key_of("ada"), signed("ada", DRAFTS))
        assert datanets.seal(seal) == datanets.seal(seal)
        assert len(datanets.unlogged_seals()) == 1

    def test_expires_and_its_rows_then_stand_where_they_arrive(self, datanets: Datanets) -> None:
        contribution = sealed(datanets)
        datanets.contribute(signed("bob", DRAFTS))
        clock_of(datanets).advance(SEAL_MS + 1)
        own = contribution.contributor_id, seal_of(key_of("ada"), contribution).digest
        assert datanets.find_seal("docs", *own).state == "expired"
        assert outcomes(datanets.contribute(contribution)) == {"reject"}

    def test_holds_to_the_last_millisecond(self, datanets: Datanets) -> None:
        contribution = sealed(datanets)
        datanets.contribute(signed("bob", DRAFTS))
        clock_of(datanets).advance(SEAL_MS)
        assert outcomes(datanets.contribute(contribution)) == {"accept"}

    def test_hides_rows_that_can_be_guessed(self) -> None:
        """Root, contributor and nonce are as good as known; without the key nobody makes the signature in it."""
        ours = signed("ada", DRAFTS)
        guess = replace(ours, signature=sign_contribution(key_of("eve"), "docs", DRAFTS, "1").signature)
        assert seal_of(key_of("ada"), ours).digest != seal_of(key_of("ada"), guess).digest

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"digest": "ab"}, "invalid_seal"),
            ({"digest": "ab" * 32}, "invalid_signature"),
            ({"datanet": "other"}, "invalid_signature"),
            ({"public_key": "cd"}, "invalid_key"),
            ({"contributor_id": "ctr_else"}, "invalid_signature"),
        ],
    )
    def test_by_another_key_or_of_another_shape_changes_nothing(self, datanets: Datanets, change, code) -> None:
        seal = replace(seal_of(key_of("ada"), signed("ada", DRAFTS)), **change)
        with pytest.raises(InvalidInput) as caught:
            datanets.seal(seal)
        assert (caught.value.code, datanets.unlogged_seals()) == (code, [])

    def test_of_anothers_digest_takes_nothing_from_its_owner(self, datanets: Datanets) -> None:
        """Eve reads ada's digest on its way, and sends it first, as her own."""
        contribution = signed("ada", DRAFTS)
        digest = seal_of(key_of("ada"), contribution).digest
        datanets.seal(sign_seal(key_of("eve"), "docs", digest))
        sealed(datanets)
        copy = datanets.contribute(signed("eve", DRAFTS))
        original = datanets.contribute(contribution)
        assert outcomes(original) == outcomes(copy) == {"accept"}
        assert log(datanets) == [(digest, True)]
        datanets.publish("docs")
        assert datanets.copies("docs", 1) == dict(zip(ids(copy), ids(original), strict=True))

    def test_of_an_unknown_datanet_or_digest_is_not_found(self, datanets: Datanets) -> None:
        with pytest.raises(NotFound):
            datanets.seal(seal_of(key_of("ada"), signed("ada", DRAFTS, datanet="poems")))
        with pytest.raises(NotFound) as caught:
            datanets.find_seal("docs", "ctr_ada", "ab" * 32)
        assert caught.value.code == "unknown_seal"


class TestManyGuesses:
    def guess(self, datanets: Datanets, number: int) -> None:
        datanets.seal(seal_of(key_of("bob"), signed("bob", DRAFTS[:1], nonce=str(number))))

    def test_are_limited_whether_they_have_expired_or_not(self, datanets: Datanets) -> None:
        for number in range(MAX_UNOPENED):
            self.guess(datanets, number)
        clock_of(datanets).advance(SEAL_MS + 1)
        with pytest.raises(Conflict) as caught:
            self.guess(datanets, MAX_UNOPENED)
        assert caught.value.code == "too_many_seals"
        self.guess(datanets, 0)
        sealed(datanets)
        clock_of(datanets).advance(UNOPENED_MS)
        self.guess(datanets, MAX_UNOPENED)

    def test_are_no_more_limited_once_their_rows_have_come(self, datanets: Datanets) -> None:
        for number in range(MAX_UNOPENED):
            self.guess(datanets, number)
        log(datanets)
        datanets.contribute(signed("bob", DRAFTS[:1], nonce="3"))
        self.guess(datanets, MAX_UNOPENED)


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


class TestACrash:
    def test_before_the_log_has_it_leaves_a_seal_that_waits_to_be_logged(
        self, datanets: Datanets, tmp_path: Path
    ) -> None:
        seal = seal_of(key_of("ada"), signed("ada", DRAFTS))
        datanets.seal(seal)
        datanets.close()
        again = open_datanets(tmp_path)
        assert log(again) == [(seal.digest, False)]
        assert log(again) == []
        again.contribute(signed("bob", DRAFTS))
        assert outcomes(again.contribute(signed("ada", DRAFTS))) == {"accept"}
        assert log(again) == [(seal.digest, True)]
        again.close()

    @pytest.mark.parametrize("step", ["begin_contribution", "finish_contributions"])
    def test_after_opening_keeps_place_and_verdicts(
        self, datanets: Datanets, tmp_path: Path, monkeypatch, step
    ) -> None:
        contribution = sealed(datanets)
        copy = datanets.contribute(signed("bob", DRAFTS))
        original = getattr(Registry, step)

        def crash(self, *arguments):
            original(self, *arguments)
            raise PowerCut

        monkeypatch.setattr(Registry, step, crash)
        with pytest.raises(PowerCut):
            datanets.contribute(contribution)
        monkeypatch.undo()
        datanets.close()
        again = open_datanets(tmp_path)
        receipt = again.contribute(contribution)
        assert outcomes(receipt) == {"accept"}
        again.publish("docs")
        assert again.copies("docs", 1) == dict(zip(ids(copy), ids(receipt), strict=True))
        assert again.stored_count("docs") == 2 + 4 + 4
        again.close()

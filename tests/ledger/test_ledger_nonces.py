"""Rounds of nonces in the log: the one order that is allowed, the ledger's own refusals, and the audit's."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonce_values import (
    DEPOSIT_NANO,
    NONCES,
    OTHER,
    OWNER,
    PURPOSE,
    WITNESS,
    Writer,
    closing,
    committing,
    opening,
    revealing,
    whole_round,
)

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.ledger import Transfer, audit_file
from openledger.ledger.nonces import Round, advance, check_shape, commitment, round_account, transfers_of


@pytest.fixture
def writer(ledger):
    return Writer(ledger)


def told(*statements):
    """The round that `statements` tell, one after another."""
    known: Round | None = None
    for statement in statements:
        check_shape(statement)
        known = advance(known, statement)
    assert known is not None
    return known


class TestTheOrder:
    def test_a_whole_round_draws_every_nonce_in_the_order_of_the_parties(self):
        backwards = [opening(), committing(WITNESS), committing(OWNER), closing(), revealing(WITNESS), revealing(OWNER)]
        assert told(*whole_round()).drawn == told(*backwards).drawn == (NONCES[OWNER], NONCES[WITNESS])

    @pytest.mark.parametrize(
        ("statements", "refused", "error", "code"),
        [
            ([], committing(OWNER), NotFound, "round_not_found"),
            ([opening()], opening(), Conflict, "round_exists"),
            ([opening(), committing(OWNER)], committing(OWNER, "0d" * 32), Conflict, "commitment_exists"),
            ([opening(), committing(OWNER)], closing(), Conflict, "commitments_missing"),
            ([opening(), committing(WITNESS), committing(OTHER)], closing(), Conflict, "commitments_missing"),
            ([opening(), committing(OWNER), committing(WITNESS)], revealing(OWNER), Conflict, "round_not_closed"),
            (whole_round()[:4], committing(OTHER), Conflict, "round_closed"),
            (whole_round()[:4], closing(), Conflict, "round_closed"),
            (whole_round()[:4], revealing(OTHER), NotFound, "commitment_not_found"),
            (whole_round(), revealing(OWNER), Conflict, "nonce_exists"),
        ],
    )
    def test_a_step_out_of_its_order_is_refused(self, statements, refused, error, code):
        known = told(*statements) if statements else None
        with pytest.raises(error) as caught:
            advance(known, refused)
        assert caught.value.code == code

    def test_another_nonce_than_the_committed_one_is_refused(self):
        with pytest.raises(InvalidInput) as caught:
            told(*whole_round()[:4], {**revealing(OWNER), "nonce": NONCES[WITNESS]})
        assert caught.value.code == "wrong_nonce"

    @given(st.permutations([OWNER, WITNESS, OTHER]), st.integers(0, 3))
    def test_what_is_drawn_depends_on_the_commitments_alone(self, order, num_revealed):
        """Whoever reveals when: there is one result, and until the last reveal there is none."""
        committed = told(opening(), *map(committing, NONCES), closing())
        for party in order[:num_revealed]:
            committed = advance(committed, revealing(party))
        assert committed.withheld == tuple(sorted(order[num_revealed:]))
        assert committed.drawn == (tuple(NONCES.values()) if num_revealed == 3 else ())

    def test_nothing_is_withheld_before_the_close(self):
        assert told(*whole_round()[:3]).withheld == ()


class TestTheCommitment:
    def test_a_copied_digest_fits_no_other_party_version_or_datanet(self):
        copies = [("py", 1, OWNER), ("py", 1, WITNESS), ("py", 2, OWNER), ("tables", 1, OWNER)]
        assert len({commitment(*one, NONCES[OWNER]) for one in copies}) == 4

    @pytest.mark.parametrize(
        ("statement", "param"),
        [
            ({**committing(OWNER), "deposit_nano": 0}, "deposit_nano"),
            ({**committing(OWNER), "deposit_nano": True}, "deposit_nano"),
            ({**committing(OWNER), "digest": "short"}, "digest"),
            ({**revealing(OWNER), "nonce": "0" * 32}, "nonce"),
            ({**closing(), "purpose": {**asdict(PURPOSE), "row_root": ""}}, "purpose"),
            ({**closing(), "purpose": {"row_root": "cd"}}, "purpose"),
            ({**opening(), "version": 0}, "version"),
            ({**opening(), "datanet": "../py"}, "datanet"),
            ({**opening(), "note": "more"}, "statement"),
        ],
    )
    def test_a_misshapen_statement_is_refused(self, statement, param):
        with pytest.raises(InvalidInput) as caught:
            check_shape(statement)
        assert caught.value.param == param


class TestTheMoney:
    def test_deposits_are_held_until_the_reveal_and_no_nano_is_left_anywhere(self, writer):
        writer.write(*whole_round()[:4])
        assert writer.ledger.balance(OWNER).available_nano == 0
        writer.write(revealing(OWNER))
        assert writer.ledger.balance(OWNER).available_nano == DEPOSIT_NANO
        assert writer.ledger.balance(WITNESS).available_nano == 0
        writer.write(revealing(WITNESS))
        house = writer.ledger.balance(round_account("py", 1))
        assert (house.posted_nano, house.available_nano, house.credits_pending_nano) == (0, 0, 0)
        assert writer.ledger.audit().num_transfers == 13

    def test_the_ledger_itself_refuses_a_commitment_after_the_close(self, writer):
        """As by a process that read the round before another one closed it."""
        writer.write(*whole_round()[:4])
        results = writer.force(committing(OTHER))
        assert results[:2] == ["linked_transfer_failed", "exceeds_credits"]
        assert writer.ledger.balance(OTHER).available_nano == DEPOSIT_NANO

    def test_the_same_step_again_changes_nothing(self, writer):
        writer.write(*whole_round())
        before = writer.ledger.checkpoint()
        assert set(writer.force(committing(OWNER)) + writer.force(closing())) == {"exists"}
        assert writer.ledger.checkpoint() == before


class TestTheAudit:
    def found(self, writer):
        with pytest.raises(Corrupt) as caught:
            writer.ledger.audit()
        return caught.value.code

    def test_a_whole_round_is_clean_in_the_file_and_in_an_export(self, writer, storage, tmp_path):
        writer.write(*whole_round())
        writer.ledger.export(tmp_path / "export.jsonl")
        key = writer.ledger.verification_key()
        assert audit_file(tmp_path / "export.jsonl", key) == audit_file(storage, key)

    def test_a_round_that_waits_for_a_reveal_is_clean(self, writer):
        writer.write(*whole_round()[:5])
        writer.ledger.audit()

    def test_a_nonce_told_before_the_close_is_named(self, writer):
        writer.write(*whole_round()[:3])
        writer.force(revealing(OWNER))
        assert self.found(writer) == "round_not_closed"

    def test_a_nonce_that_nobody_committed_to_is_named(self, writer):
        writer.write(*whole_round()[:4])
        writer.force({**revealing(OWNER), "nonce": "0f" * 32})
        assert self.found(writer) == "wrong_nonce"

    def test_a_commitment_after_the_close_without_its_seat_is_named(self, writer):
        writer.write(*whole_round()[:4])
        writer.force(committing(OTHER), transfers_of(committing(OTHER), None)[:1])
        assert self.found(writer) == "round_closed"

    def test_a_commitment_that_holds_less_than_it_says_is_named(self, writer):
        writer.write(opening())
        writer.force({**committing(OWNER), "deposit_nano": 7}, transfers_of(committing(OWNER), None))
        assert self.found(writer) == "deposits_differ"

    def test_a_close_without_a_witness_is_named(self, writer):
        writer.write(*whole_round()[:2])
        writer.force(closing())
        assert self.found(writer) == "commitments_missing"

    def test_a_withheld_deposit_given_back_without_the_nonce_is_named(self, writer):
        writer.write(*whole_round()[:4])
        (release,) = transfers_of(revealing(WITNESS), writer.round)
        writer.ledger.commit([release])
        assert self.found(writer) == "unexplained_deposit"

    def test_money_slipped_into_a_closed_round_is_named(self, writer):
        """With it the ledger would take commitments again."""
        writer.write(*whole_round()[:4])
        house = round_account("py", 1)
        writer.ledger.commit([Transfer(transfer_id="odd", debit="genesis", credit=house, amount_nano=1, code="grant")])
        assert self.found(writer) == "unexplained_deposit"

    def test_a_purpose_changed_in_an_export_is_found(self, writer, tmp_path):
        writer.write(*whole_round())
        path = tmp_path / "export.jsonl"
        writer.ledger.export(path)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        (close,) = [line for line in lines if (line.get("statement") or {}).get("purpose")]
        close["statement"]["purpose"]["row_root"] = "ff" * 32
        text = "".join(json.dumps(v, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for v in lines)
        path.write_text(text)
        with pytest.raises(Corrupt) as caught:
            audit_file(path, writer.ledger.verification_key())
        assert caught.value.code == "wrong_leaf"

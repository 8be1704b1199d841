"""Sealed rows in the log: what an auditor refuses, and what a proof says."""

from dataclasses import replace

import pytest

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.sealing import seal_digest
from openledger.core.signing import SigningKey, contributor_id
from openledger.economy.seals import log_opening, log_seal
from openledger.ledger import Transfer, encode_proof, verify_proof
from openledger.ledger.payouts import batches_in
from openledger.ledger.seals import Seals, opening_statement, seal_statement, transfers_of

ADA, EVE = SigningKey(b"a" * 32), SigningKey(b"e" * 32)
WHO = contributor_id(ADA.public_key)
SIGNED = {"format": "openledger/contribution/1", "datanet": "py", "contributor_id": WHO, "content_root": "cd" * 32,
          "num_rows": 3, "nonce": "0"}  # fmt: skip
SIGNATURE = ADA.sign(canonical_json(SIGNED))
DIGEST = seal_digest(SIGNED, SIGNATURE)
NOW_MS = 1_700_000_000_000
EXPIRES_MS = NOW_MS + 1000
OPENING = {"public_key": ADA.public_key, "signed": SIGNED, "signature": SIGNATURE, "opened_ms": NOW_MS}


def found(ledger):
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    return caught.value.code


def force(ledger, statement, transfers=None):
    """As an operator could who doesn't ask whether it may be."""
    ledger.commit(transfers_of(statement) if transfers is None else transfers, statement)


def opening(**change):
    values = {**OPENING, **change}
    return opening_statement(
        "py", WHO, DIGEST, values["public_key"], values["signed"], values["signature"], values["opened_ms"]
    )


def test_a_seal_and_its_opening_are_clean_and_move_no_money(ledger):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    log_opening(ledger, "py", WHO, DIGEST, **OPENING)
    assert ledger.audit().lines[-1] == "1 seals: each opening is by the rows that were sealed"
    assert all(balance.posted_nano == balance.available_nano for balance in ledger.balances())
    assert ledger.balance("holds:seals").posted_nano == 0


def test_what_was_opened_is_told_in_the_order_of_the_log_with_what_was_signed(ledger, tmp_path):
    other = {**SIGNED, "nonce": "1"}
    signature = ADA.sign(canonical_json(other))
    log_seal(ledger, "py", WHO, seal_digest(other, signature), EXPIRES_MS - 5)
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    log_seal(ledger, "py", WHO, "ab" * 32, EXPIRES_MS)  # its rows never came
    log_opening(ledger, "py", WHO, DIGEST, **OPENING)
    log_opening(
        ledger, "py", WHO, seal_digest(other, signature), **{**OPENING, "signed": other, "signature": signature}
    )
    ledger.export(tmp_path / "log.jsonl")
    seals = Seals()
    for batch in batches_in(tmp_path / "log.jsonl"):
        seals.take(batch)
    (first, *first_told), (second, *second_told) = seals.openings()
    assert first < second
    assert (first_told, second_told) == ([EXPIRES_MS - 5, other], [EXPIRES_MS, SIGNED])


def test_the_same_again_changes_nothing(ledger):
    first = log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS), log_opening(ledger, "py", WHO, DIGEST, **OPENING)
    before = ledger.checkpoint()
    again = log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS), log_opening(ledger, "py", WHO, DIGEST, **OPENING)
    assert (again, ledger.checkpoint()) == (first, before)


def test_a_proof_says_that_the_rows_are_the_sealed_ones(ledger):
    seal = log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    opened = log_opening(ledger, "py", WHO, DIGEST, **OPENING)
    key = ledger.verification_key()
    assert f"{WHO} sealed rows for py as {DIGEST}; no money moves" in verify_proof(ledger.proof(seal), key).lines
    lines = verify_proof(encode_proof(ledger.proof(opened)), key).lines
    assert f"3 rows of {WHO} for py with the root {'cd' * 32}, signature good" in lines


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signed": {**SIGNED, "content_root": "ce" * 32}}, "invalid_signature"),
        ({"signed": {**SIGNED, "datanet": "np"}}, "malformed_statement"),
        ({"signature": EVE.sign(canonical_json(SIGNED))}, "invalid_signature"),
        ({"public_key": EVE.public_key}, "invalid_signature"),
        ({"opened_ms": -1}, "malformed_statement"),
        ({"signed": {}}, "malformed_statement"),
    ],
)
def test_an_opening_by_other_rows_is_not_written_and_an_audit_names_it(ledger, change, code):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    before = ledger.checkpoint()
    with pytest.raises(InvalidInput) as caught:
        log_opening(ledger, "py", WHO, DIGEST, **{**OPENING, **change})
    assert (caught.value.code, ledger.checkpoint()) == (code, before)
    force(ledger, opening(**change))
    assert found(ledger) == code


def test_rows_signed_by_the_same_key_that_were_not_sealed_are_named(ledger):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    other = {**SIGNED, "nonce": "1"}
    force(ledger, opening(signed=other, signature=ADA.sign(canonical_json(other))))
    assert found(ledger) == "wrong_seal"


def test_an_opening_without_a_seal_is_named(ledger):
    log_seal(ledger, "py", WHO, "ab" * 32, EXPIRES_MS)
    force(ledger, opening())
    assert found(ledger) == "unknown_seal"


def test_an_opening_after_the_expiry_is_named(ledger):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    force(ledger, opening(opened_ms=EXPIRES_MS + 1))
    assert found(ledger) == "seal_expired"


def test_a_seal_that_is_put_in_the_log_once_more_to_be_younger_or_older_is_named(ledger):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    again = seal_statement("py", WHO, DIGEST, EXPIRES_MS + 1)
    renamed = [
        replace(transfer, transfer_id=transfer.transfer_id + "x", pending_id=transfer.pending_id and _x(transfer))
        for transfer in transfers_of(again)
    ]
    force(ledger, again, renamed)
    assert found(ledger) == "seal_exists"


def test_a_batch_that_holds_another_amount_is_named(ledger):
    log_seal(ledger, "py", WHO, "ab" * 32, EXPIRES_MS)
    statement = seal_statement("py", WHO, DIGEST, EXPIRES_MS)
    force(ledger, statement, [replace(transfer, amount_nano=2) for transfer in transfers_of(statement)])
    assert found(ledger) == "seal_differs"


def test_a_seat_held_without_a_statement_is_named(ledger):
    log_seal(ledger, "py", WHO, DIGEST, EXPIRES_MS)
    ledger.commit([Transfer(transfer_id="odd", debit="genesis", credit="holds:seals", amount_nano=1, code="grant")])
    assert found(ledger) == "unexplained_seal"


def _x(transfer):
    return transfer.pending_id + "x"

"""Proof files: they verify offline, and no byte of them can be changed."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_values import move
from settled_ledger import build, build_pool, payout_transfers, settlement_statement

from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.hashing import canonical_json, digest_json
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger, encode_proof, verify_proof, verify_proof_file
from openledger.ledger.checkpoints import verification_key


@pytest.fixture
def settled(path, clock):
    ledger = Ledger(path, clock, SigningKey(b"k" * 32), "openledger/test")
    build(ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def payout(settled):
    return encode_proof(settled.proof("pay0")), settled.verification_key()


def refused(data, key):
    """The code with which `data` is refused; empty when it verifies."""
    try:
        verify_proof(bytes(data), key)
    except Corrupt as error:
        return error.code
    return ""


def test_every_transfer_of_a_ledger_is_provable(settled):
    key, proven = settled.verification_key(), set()
    for balance in settled.balances():
        for entry in settled.transfers(balance.account_id):
            name = entry.transfer.transfer_id
            assert verify_proof(encode_proof(settled.proof(name)), key).transfer == entry.transfer
            proven.add(name)
    assert len(proven) == 14


def test_a_payouts_proof_says_where_it_comes_from(payout):
    proof = verify_proof(*payout)
    text = "\n".join(proof.lines)
    assert "2 answers make the pool of py in p0001" in text
    assert "py-docs version 1" in text
    assert "ctr_a" in proof.statement["scores_nano"]


def test_every_changed_byte_of_a_payouts_proof_is_refused(payout):
    data, key = payout
    for place in range(len(data)):
        for change in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[place] ^= change
            assert refused(changed, key), f"byte {place} ^ {change} passed"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_inserted_removed_or_replaced_are_refused(payout, data):
    proof, key = payout
    start = data.draw(st.integers(0, len(proof)))
    end = data.draw(st.integers(start, min(len(proof), start + 8)))
    changed = proof[:start] + data.draw(st.binary(max_size=8)) + proof[end:]
    assert bool(refused(changed, key)) == (changed != proof)


def test_other_encodings_of_the_same_content_are_refused(payout):
    data, key = payout
    values = json.loads(data)
    for other in (
        json.dumps(values).encode() + b"\n",
        data[:-1],
        data + b"\n",
        b" " + data,
        json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        b'{"a":1,' + data[1:],
        data.decode().encode("utf-16"),
    ):
        assert refused(other, key) == "malformed_proof"


@pytest.mark.parametrize("data", [b"", b"\n", b"null\n", b"[]\n", b"[" * 100_000, b"{}\n", b'{"format":1e999}\n'])
def test_what_is_no_proof_is_named_so(payout, data):
    assert refused(data, payout[1]) == "malformed_proof"


def test_a_proof_does_not_verify_with_another_key(payout):
    other = verification_key("openledger/test", SigningKey(b"o" * 32).public_key)
    assert refused(payout[0], other) == "wrong_key"


def test_a_malformed_key_is_the_callers_mistake(payout):
    with pytest.raises(InvalidInput):
        verify_proof(payout[0], "no key")


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda p: p["transfer"].update(amount_nano=p["transfer"]["amount_nano"] + 1), "not_in_batch"),
        (lambda p: p["transfer"].update(credit="user:c"), "not_in_batch"),
        (lambda p: p["leaf"].update(num_transfers=4), "not_in_log"),
        (lambda p: p["leaf"].update(time_ms=0), "not_in_log"),
        (lambda p: p["statement"].update(method="other"), "wrong_statement"),
        (lambda p: p.update(statement=None), "wrong_statement"),
        (lambda p: p["evidence"].pop(), "wrong_answers_root"),
        (lambda p: p["evidence"].append(["00", 5]), "wrong_answers_root"),
        (lambda p: p["evidence"].reverse(), "wrong_answers_root"),
        (lambda p: p["evidence"][0].append(1), "malformed_proof"),
        (lambda p: p.update(evidence=None), "malformed_proof"),
        (lambda p: p.update(extra=1), "malformed_proof"),
        (lambda p: p["leaf"].update(extra=1), "malformed_proof"),
        (lambda p: p["transfer"].update(extra=1), "malformed_proof"),
        (lambda p: p["batch"].update(path=[item.upper() for item in p["batch"]["path"]]), "malformed_proof"),
        (lambda p: p["path"].append("00" * 32), "not_in_log"),
        (lambda p: p["batch"].update(ordinal=1), "not_in_batch"),
    ],
)
def test_the_first_wrong_thing_is_named(payout, forge, code):
    values = json.loads(payout[0])
    forge(values)
    assert refused(encode_proof(values), payout[1]) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"shares_ppb": {"ctr_a": 10**9, "ctr_b": 0, "unattributed": 0}}, "wrong_shares"),
        ({"scores_nano": {"ctr_a": 60, "ctr_b": 21}}, "wrong_shares"),
        ({"gain_nano": 101}, "wrong_shares"),
        ({"z_milli": 0}, "wrong_shares"),
        ({"pool_nano": 34}, "wrong_pool_total"),
        ({"payouts_nano": {"ctr_a": 1, "ctr_b": 1, "unattributed": 36}}, "wrong_payouts"),
        ({"num_answers": 3}, "wrong_answers_root"),
        ({"rule": "shares/2"}, "unknown_rule"),
        ({"rule": "shares/5"}, "unknown_rule"),
        ({"adapter": "other"}, "wrong_amount"),
        ({"accounts": {"ctr_a": "user:b", "ctr_b": "user:c", "unattributed": "user:c"}}, "wrong_amount"),
        ({"scores_nano": "text"}, "malformed_statement"),
        ({"lineage": [{"adapter_digest": "ab"}]}, "malformed_statement"),
    ],
)
def test_a_log_that_signs_a_wrong_derivation_does_not_verify(path, clock, change, code):
    """The operator himself commits a false settlement: leaf, root and signature are good, the arithmetic is not."""
    ledger = Ledger(path, clock, SigningKey(b"k" * 32), "openledger/test")
    build_pool(ledger)
    statement = settlement_statement(ledger)
    ledger.commit(payout_transfers(statement), {**statement, **change})
    assert refused(encode_proof(ledger.proof("pay0")), ledger.verification_key()) == code
    ledger.close()


def test_an_opaque_statement_is_bound_and_allows_no_evidence(ledger):
    ledger.commit([move("t1", 5)], {"why": "because"})
    proof = ledger.proof("t1")
    assert verify_proof(proof, ledger.verification_key()).statement == {"why": "because"}
    with pytest.raises(Corrupt):
        verify_proof({**proof, "evidence": []}, ledger.verification_key())
    forged = {**proof, "statement": {"why": "not"}}
    forged["leaf"] = {**proof["leaf"], "statement_digest": digest_json(forged["statement"])}
    assert refused(encode_proof(forged), ledger.verification_key()) == "not_in_log"


def test_old_proofs_hold_when_the_log_has_grown(ledger):
    ledger.commit([move("t1", 5)])
    proof = encode_proof(ledger.proof("t1"))
    ledger.commit([move("t2", 5)])
    assert verify_proof(proof, ledger.verification_key()).checkpoint.size == 2
    assert canonical_json(ledger.proof("t1")) + b"\n" != proof


def test_unknown_transfers_and_missing_files_are_not_found(ledger, tmp_path):
    with pytest.raises(NotFound):
        ledger.proof("nothing")
    with pytest.raises(NotFound):
        verify_proof_file(tmp_path / "nothing", ledger.verification_key())

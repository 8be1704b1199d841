"""Witnesses, rotated keys and receipts: what a stranger needs to trust one log, and to show that it was changed."""

import base64
import threading

import pytest
from ledger_values import move

from openledger.core.errors import Conflict, Corrupt, InvalidInput, Unavailable
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger, audit_file, encode_proof, verify_proof
from openledger.ledger.checkpoints import open_checkpoint, parse_note, witness_key
from openledger.ledger.receipts import check_receipt, check_receipt_in_export, encode_receipt
from openledger.ledger.witness import Witness, ask_witness, serve_witness

KEY = SigningKey(b"k" * 32)
WITNESS = SigningKey(b"w" * 32)
NAME = "witness.example/w1"
WKEY = witness_key(NAME, WITNESS.public_key)


def request(note, old=0, proof=()):
    lines = "".join(base64.b64encode(bytes.fromhex(item)).decode() + "\n" for item in proof)
    return f"old {old}\n{lines}\n{note}".encode()


@pytest.fixture
def witness(tmp_path, ledger, clock):
    made = Witness(tmp_path / "witness.db", NAME, WITNESS, [ledger.verification_key()], clock)
    yield made
    made.close()


def grown(ledger, number):
    ledger.submit([move(f"t{number}", 1)])
    return ledger.checkpoint()


def test_a_witness_cosigns_what_continues_what_it_saw(ledger, witness, clock):
    first = grown(ledger, 1)
    answer = witness.add_checkpoint(request(first))
    assert (answer.status, answer.body.count("\n")) == (200, 1)
    second = grown(ledger, 2)
    size = parse_note(first).checkpoint.size
    answer = witness.add_checkpoint(request(second, size, ledger.consistency(size)))
    assert answer.status == 200
    cosigned = second + answer.body
    assert open_checkpoint(cosigned, ledger.verification_key(), [WKEY]).size == size + 1
    assert witness.add_checkpoint(request(cosigned, size + 1)).status == 200


def test_each_refusal_has_the_status_of_the_protocol(ledger, witness):
    first, second = grown(ledger, 1), grown(ledger, 2)
    size = parse_note(first).checkpoint.size
    assert witness.add_checkpoint(b"old 1").status == 400
    assert witness.add_checkpoint(request(first, 7)).status == 400
    assert witness.add_checkpoint(request(first.replace("openledger/test", "openledger/else"))).status == 404
    assert witness.add_checkpoint(request(first.replace(f"\n{size}\n", f"\n{size + 1}\n"))).status == 403
    assert witness.add_checkpoint(request(first)).status == 200
    conflict = witness.add_checkpoint(request(second))
    assert (conflict.status, conflict.body, conflict.content_type) == (409, f"{size}\n", "text/x.tlog.size")
    assert witness.add_checkpoint(request(second, size, ["00" * 32])).status == 422
    assert witness.add_checkpoint(request(first, size, ["00" * 32])).status == 422


def test_two_logs_of_one_name_are_not_both_cosigned_by_one_witness_even_restarted(tmp_path, clock):
    from openledger.ledger import Account

    notes = []
    for side in ("one", "other"):
        ledger = Ledger(tmp_path / f"{side}.db", clock, KEY, "openledger/test")
        ledger.create_accounts([Account(account_id=f"user:{side}", kind="user")])
        notes.append(ledger.checkpoint())
        ledger.create_accounts([Account(account_id=f"user:{side}2", kind="user")])
        notes.append(ledger.checkpoint())
        proof, key = ledger.consistency(1), ledger.verification_key()
        ledger.close()
    first = Witness(tmp_path / "witness.db", NAME, WITNESS, [key], clock)
    assert first.add_checkpoint(request(notes[0])).status == 200
    first.close()
    again = Witness(tmp_path / "witness.db", NAME, WITNESS, [key], clock)
    assert again.add_checkpoint(request(notes[2], 1)).status == 409
    assert again.add_checkpoint(request(notes[3], 1, proof)).status == 422
    again.close()


@pytest.fixture
def served(witness):
    server = serve_witness(witness, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proof_is_made_against_a_checkpoint_that_a_witness_cosigned_over_http(ledger, served):
    for number in range(3):
        note = grown(ledger, number)
        cosigned = note + ask_witness(served, WKEY, note, ledger.consistency)
    grown(ledger, 9)
    proof = encode_proof(ledger.proof("t1", cosigned))
    verified = verify_proof(proof, ledger.verification_key(), [WKEY])
    assert "1 of 1 witnesses cosigned it" in verified.lines
    with pytest.raises(Corrupt) as caught:
        verify_proof(proof, ledger.verification_key())
    assert caught.value.code == "unknown_signatures"
    with pytest.raises(Corrupt) as caught:
        verify_proof(ledger.proof("t1", note), ledger.verification_key(), [WKEY])
    assert caught.value.code == "not_witnessed"
    with pytest.raises(InvalidInput) as caught:
        ledger.proof("t9", cosigned)
    assert caught.value.code == "old_checkpoint"
    with pytest.raises(Corrupt):
        ledger.proof("t1", note.replace(parse_note(note).text.split("\n")[2], base64.b64encode(bytes(32)).decode()))


def test_every_changed_byte_of_a_cosignature_is_refused(ledger, witness):
    note = grown(ledger, 1)
    cosigned = note + witness.add_checkpoint(request(note)).body
    data = cosigned.encode()
    for place in range(data.rindex(b" ") + 1, len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises((Corrupt, UnicodeDecodeError)):
            open_checkpoint(bytes(changed).decode(), ledger.verification_key(), [WKEY])


def test_a_quorum_counts_distinct_witnesses(ledger, witness):
    note = grown(ledger, 1)
    line = witness.add_checkpoint(request(note)).body
    other = witness_key("witness.example/w2", SigningKey(b"x" * 32).public_key)
    assert open_checkpoint(note + line, ledger.verification_key(), [WKEY, other], 1).size > 0
    for witnesses, quorum in (([WKEY, other], 0), ([WKEY, WKEY, other], 2)):
        with pytest.raises(Corrupt) as caught:
            open_checkpoint(note + line + line, ledger.verification_key(), witnesses, quorum)
        assert caught.value.code == "not_witnessed"


def test_a_witness_that_is_gone_or_signs_with_another_key_is_named(ledger, served):
    note = grown(ledger, 1)
    with pytest.raises(Unavailable) as gone:
        ask_witness("http://127.0.0.1:9", WKEY, note, ledger.consistency)
    assert gone.value.code == "no_witness"
    with pytest.raises(Corrupt) as other:
        ask_witness(served, witness_key(NAME, SigningKey(b"x" * 32).public_key), note, ledger.consistency)
    assert other.value.code == "wrong_witness"


class TestRotation:
    @pytest.fixture
    def proofs(self, ledger):
        """Proofs from before and after, the old key and the new one."""
        old_key = ledger.verification_key()
        ledger.submit([move("before", 1)])
        before = encode_proof(ledger.proof("before"))
        ledger.rotate_key(SigningKey(b"n" * 32))
        ledger.submit([move("after", 1)])
        return before, encode_proof(ledger.proof("after")), old_key, ledger.verification_key()

    def test_proofs_of_both_sides_verify_with_a_ring_that_starts_at_either_key(self, ledger, proofs):
        before, after, old_key, new_key = proofs
        rotations = ledger.key_ring().partition("\n")[2]
        for start in (old_key, new_key):
            for proof in (before, after):
                verify_proof(proof, f"{start}\n{rotations}")
        verify_proof(before, old_key)
        with pytest.raises(Corrupt) as caught:
            verify_proof(after, old_key)
        assert (caught.value.code, "ring" in caught.value.fix) == ("wrong_key", True)

    def test_the_old_key_is_good_for_nothing_larger(self, ledger, proofs):
        from openledger.ledger.checkpoints import sign_checkpoint

        forged = sign_checkpoint(parse_note(ledger.checkpoint()).checkpoint, KEY)
        with pytest.raises(Corrupt) as caught:
            open_checkpoint(forged, ledger.key_ring())
        assert caught.value.code == "retired_key"

    def test_a_rotation_that_the_old_key_did_not_sign_leads_nowhere(self, ledger, proofs):
        import json

        from openledger.core.hashing import canonical_json

        ring = ledger.key_ring().strip().split("\n")
        rotation = json.loads(ring[1])
        rotation["by_old"] = SigningKey(b"x" * 32).sign(b"")
        with pytest.raises(Corrupt) as caught:
            verify_proof(proofs[1], f"{proofs[2]}\n{canonical_json(rotation).decode()}")
        assert caught.value.code == "wrong_rotation"

    def test_the_audit_follows_the_rotation_from_either_key(self, ledger, proofs, tmp_path):
        ledger.audit()
        ledger.export(tmp_path / "export")
        for key in (proofs[2], ledger.key_ring()):
            assert audit_file(tmp_path / "export", key).num_transfers == 2

    def test_the_ledger_opens_with_the_new_key_only(self, ledger, storage, clock, proofs):
        ledger.close()
        with pytest.raises(Conflict):
            Ledger(storage, clock, KEY, "openledger/test")
        again = Ledger(storage, clock, SigningKey(b"n" * 32), "openledger/test")
        again.submit([move("later", 1)])
        again.audit()
        again.close()

    def test_a_rotation_that_fails_on_disk_leaves_the_old_key(self, ledger, monkeypatch):
        monkeypatch.setattr(type(ledger._journal), "put_head", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger.rotate_key(SigningKey(b"n" * 32))
        monkeypatch.undo()
        ledger.submit([move("t1", 1)])
        verify_proof(ledger.proof("t1"), ledger.verification_key())
        assert ledger.key_ring().count("\n") == 1

    def test_the_same_key_and_a_statement_of_ones_own_are_refused(self, ledger):
        with pytest.raises(InvalidInput) as caught:
            ledger.rotate_key(KEY)
        assert caught.value.code == "same_key"
        with pytest.raises(InvalidInput) as caught:
            ledger.commit([move("t1", 1)], {"format": "openledger.rotation/1"})
        assert caught.value.code == "invalid_statement"


class TestReceipts:
    def test_a_receipt_holds_against_the_log_it_was_given_for(self, ledger, tmp_path):
        ledger.commit([move("t1", 1)], {"why": "an answer"})
        receipt = encode_receipt(ledger.receipt("t1"))
        ledger.submit([move("t2", 1)])
        ledger.export(tmp_path / "export")
        checked = check_receipt_in_export(receipt, ledger.verification_key(), tmp_path / "export")
        assert checked["transfer"]["transfer_id"] == "t1"

    def test_a_log_that_leaves_the_sale_out_is_found(self, ledger, tmp_path, clock):
        """The operator builds another log, without the sale, and exports that."""
        from ledger_values import accounts

        ledger.commit([move("t1", 1)], {"why": "an answer"})
        receipt = encode_receipt(ledger.receipt("t1"))
        other = Ledger(tmp_path / "other.db", clock, KEY, "openledger/test")
        other.create_accounts(accounts())
        other.submit([move("t2", 1)])
        other.export(tmp_path / "export")
        other.close()
        assert audit_file(tmp_path / "export", ledger.verification_key()).num_transfers == 1
        with pytest.raises(Corrupt) as caught:
            check_receipt_in_export(receipt, ledger.verification_key(), tmp_path / "export")
        assert caught.value.code == "left_out"

    def test_a_changed_receipt_is_nobodys_promise(self, ledger):
        ledger.submit([move("t1", 1)])
        data = encode_receipt(ledger.receipt("t1"))
        for place in range(0, len(data), 3):
            changed = bytearray(data)
            changed[place] ^= 1
            with pytest.raises(Corrupt):
                check_receipt(bytes(changed), ledger.verification_key())

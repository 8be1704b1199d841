"""Backup, restore and migration of a ledger that goes on: the copy audits clean, and continues where it was taken."""

import json
import threading

import pytest
from ledger_values import hold, move
from packed_values import record, submit_packed
from settled_ledger import build, withdraw

from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger, audit_file
from openledger.ledger.__main__ import main
from openledger.ledger.claims import load_claims
from openledger.ledger.reader import LedgerReader
from openledger.ledger.receipts import encode_receipt
from openledger.ledger.restore import restore
from openledger.ledger.witness import Witness, serve_witness

KEY = SigningKey(b"k" * 32)


def filled(ledger):
    """Every kind of batch: values, statements, holds, records."""
    ledger.submit([move("start", 1000)])
    ledger.commit([move("stated", 1)], {"why": "x"})
    ledger.submit([hold("h", 5)])
    submit_packed(ledger, [record(number, 1) for number in range(1, 50)])
    return ledger.verification_key()


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_backup_of_a_ledger_that_is_written_is_one_moment_of_it(ledger, path, tmp_path):
    key, over = filled(ledger), threading.Event()

    def write():
        while not over.is_set():
            submit_packed(ledger, [record(10**6 + write.count + place, 1) for place in range(5)])
            write.count += 5
            if write.count > 900:
                return

    write.count = 0
    thread = threading.Thread(target=write)
    thread.start()
    reports = []
    for number in range(3):
        with LedgerReader(path) as reader:
            reader.backup(tmp_path / f"backup{number}.db")
        reports.append(audit_file(tmp_path / f"backup{number}.db", key).num_batches)
    over.set()
    thread.join()
    assert reports == sorted(reports)
    again = Ledger(tmp_path / "backup0.db", None, KEY, "openledger/test")
    assert again.submit([move("stated", 1), move("new", 1)]) == ["exists_with_different_statement", "created"]
    again.audit()
    again.close()
    with pytest.raises(Conflict) as caught:
        ledger.backup(tmp_path / "backup0.db")
    assert caught.value.code == "file_exists"


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_a_backup_of_postgresql_names_its_own_tools(ledger, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        ledger.backup(tmp_path / "backup")
    assert caught.value.code == "backup_by_server"


def test_a_sqlite_ledger_moves_through_its_export_to_either_storage(storage, tmp_path, clock):
    source = Ledger(tmp_path / "source.db", clock, KEY, "openledger/test")
    build(source)
    source.rotate_key(SigningKey(b"n" * 32))
    source.submit([move("later", 1, "genesis", "user:a")])
    source.export(tmp_path / "export")
    before, note, ring = source.balances(), source.checkpoint(), source.key_ring()
    source.close()
    done = []
    report = restore(tmp_path / "export", storage, ring, done.append)
    assert report == audit_file(tmp_path / "source.db", ring)
    assert done[-1] == report.num_batches
    moved = Ledger(storage, clock, SigningKey(b"n" * 32), "openledger/test")
    assert (moved.balances(), moved.checkpoint(), moved.key_ring()) == (before, note, ring)
    assert moved.submit([move("later", 1, "genesis", "user:a"), move("more", 1, "genesis", "user:a")]) == [
        "exists",
        "created",
    ]
    moved.audit()
    moved.close()


def test_a_restored_ledger_has_its_holds_records_and_history(storage, tmp_path, clock, ledger):
    key = filled(ledger)
    ledger.export(tmp_path / "export")
    copy = tmp_path / "copy.db"
    restore(tmp_path / "export", copy, key)
    again = Ledger(copy, clock, KEY, "openledger/test")
    for account in ("user:a", "user:b"):
        assert again.transfers(account) == ledger.transfers(account)
    assert again.submit([move("v", 5, "user:a", "user:b", kind="void", pending_id="h")]) == ["created"]
    again.audit()
    again.close()


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_an_interrupted_restore_goes_on_and_another_ledger_is_not_written_over(ledger, storage, tmp_path, monkeypatch):
    from openledger.ledger import restore as module

    key = filled(ledger)
    ledger.export(tmp_path / "export")
    monkeypatch.setattr(module, "_BATCHES_A_COMMIT", 2)
    copy = tmp_path / "copy.db"

    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "export", copy, key, interrupt)
    assert restore(tmp_path / "export", copy, key) == audit_file(storage, key)
    assert restore(tmp_path / "export", copy, key) == audit_file(storage, key)
    ledger.close()
    other = Ledger(tmp_path / "other.db", None, KEY, "openledger/test")
    build(other)
    other.close()
    with pytest.raises(Conflict) as caught:
        restore(tmp_path / "export", tmp_path / "other.db", key)
    assert caught.value.code == "another_ledger"
    audit_file(tmp_path / "other.db", key)


def test_a_changed_export_is_not_restored(ledger, tmp_path):
    key = filled(ledger)
    ledger.export(tmp_path / "export")
    text = (tmp_path / "export").read_text().replace('"amount_nano":1000', '"amount_nano":2000', 1)
    (tmp_path / "export").write_text(text)
    with pytest.raises(Corrupt):
        restore(tmp_path / "export", tmp_path / "copy.db", key)
    assert not (tmp_path / "copy.db").exists()


def test_the_commands_copy_prove_rotate_and_restore(tmp_path, clock, capsys):
    ledger = Ledger(tmp_path / "ledger.db", clock, tmp_path / "ledger.key", "openledger/test")
    build(ledger)
    key = ledger.verification_key()
    source = str(tmp_path / "ledger.db")
    (tmp_path / "receipt").write_bytes(encode_receipt(ledger.receipt("pay0")))
    for words in (
        ["export", "-o", str(tmp_path / "export"), source],
        ["backup", "-o", str(tmp_path / "backup.db"), source],
        ["audit", "--key", key, str(tmp_path / "backup.db")],
        ["receipt", "--key", key, "--export", str(tmp_path / "export"), str(tmp_path / "receipt")],
        ["verify", "--key", key, str(tmp_path / "receipt")],
        ["prove", "--transfer", "pay0", "-o", str(tmp_path / "proof"), source],
        ["verify", "--key", key, str(tmp_path / "proof")],
        ["restore", "--key", key, "--to", str(tmp_path / "copy.db"), "--dry-run", str(tmp_path / "export")],
        ["payouts", "--key", key, "-o", str(tmp_path / "payouts.csv"), source],
    ):
        assert main(words) == 0, (words, capsys.readouterr())
    assert not (tmp_path / "copy.db").exists()
    ledger.close()
    rotate = ["rotate", "--signing-key", str(tmp_path / "ledger.key"), "--new-key", str(tmp_path / "new.key")]
    assert main([*rotate, "--name", "openledger/test", "--json", source]) == 0
    out = capsys.readouterr().out
    ring = json.loads(out[out.index("{\n") :])["key_ring"]
    (tmp_path / "ring").write_text(ring)
    assert main(["verify", "--key", str(tmp_path / "ring"), str(tmp_path / "proof")]) == 0
    assert main(["prove", "--transfer", "nothing", "-o", str(tmp_path / "x"), source]) == 6
    assert main(["backup", "-o", str(tmp_path / "x"), str(tmp_path / "nothing")]) == 6


def test_the_commands_write_claims_and_cosigned_checkpoints(tmp_path, clock, capsys):
    ledger = Ledger(tmp_path / "ledger.db", clock, KEY, "openledger/test")
    build(ledger)
    withdraw(ledger, ("user:a", 3, "0x" + "11" * 20))
    key, source = ledger.verification_key(), str(tmp_path / "ledger.db")
    ledger.close()
    words = ["claims", "--key", key, "-o", str(tmp_path / "claims.json"), source]
    assert main([*words, "--round", "2"]) == 6
    assert main([*words, "--round", "1"]) == 0
    tree = load_claims(json.loads((tmp_path / "claims.json").read_text()))
    assert tree.amounts_nano == {"0x" + "11" * 20: 3}
    witness = Witness(tmp_path / "witness.db", "w.example/1", SigningKey(b"w" * 32), [key], clock)
    server = serve_witness(witness, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    asked = f"http://127.0.0.1:{server.server_port}={witness.verification_key()}"
    assert main(["cosign", "--witness", asked, "-o", str(tmp_path / "cosigned"), source]) == 0
    assert main(["cosign", "--witness", "nowhere", "-o", str(tmp_path / "x"), source]) == 2
    server.shutdown()
    thread.join()
    server.server_close()
    witness.close()
    prove = ["prove", "--transfer", "pay0", "--checkpoint", str(tmp_path / "cosigned"), "-o", str(tmp_path / "proof")]
    assert main([*prove, source]) == 0
    verify = ["verify", "--key", key, "--witness", witness.verification_key(), str(tmp_path / "proof")]
    assert main(verify) == 0
    assert "1 of 1 witnesses cosigned it" in capsys.readouterr().out

"""`python -m openledger.ledger`: offline checks that print what they checked."""

import json
import subprocess
import sys

import pytest
from settled_ledger import build

from openledger.core.signing import SigningKey
from openledger.ledger import Ledger, encode_proof
from openledger.ledger.__main__ import main
from openledger.ledger.receipts import encode_receipt


@pytest.fixture
def folder(tmp_path, clock):
    ledger = Ledger(tmp_path / "ledger.db", clock, SigningKey(b"k" * 32), "openledger/test")
    build(ledger)
    (tmp_path / "proof.json").write_bytes(encode_proof(ledger.proof("pay0")))
    (tmp_path / "receipt.json").write_bytes(encode_receipt(ledger.receipt("pay0")))
    (tmp_path / "key").write_text(ledger.verification_key() + "\n")
    ledger.export(tmp_path / "export.jsonl")
    ledger.close()
    return tmp_path


def test_verify_prints_each_thing_it_checked(folder, capsys):
    assert main(["verify", str(folder / "proof.json"), "--key", str(folder / "key")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "verified"
    assert len(lines) >= 6
    assert all(line.startswith("ok  ") for line in lines[:-1])


def test_the_key_may_be_given_as_text(folder):
    assert main(["verify", str(folder / "proof.json"), "--key", (folder / "key").read_text().strip()]) == 0


@pytest.mark.parametrize("name", ["ledger.db", "export.jsonl"])
def test_audit_reads_the_file_and_the_export(folder, capsys, name):
    assert main(["audit", str(folder / name), "--key", str(folder / "key"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["num_settlements"] == 1


def test_a_changed_proof_fails_with_the_code_of_corruption(folder, capsys):
    path = folder / "proof.json"
    path.write_bytes(path.read_bytes().replace(b'"amount_nano":', b'"amount_nano":1', 1))
    assert main(["verify", str(path), "--key", str(folder / "key")]) == 9
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not_in_batch" in captured.err


def test_verify_checks_a_receipt_too(folder, capsys):
    path = folder / "receipt.json"
    data = path.read_bytes()
    assert main(["verify", str(path), "--key", str(folder / "key")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok  receipt of openledger/test for pay0, signature good",
        "verified",
    ]
    path.write_bytes(data.replace(b'"seq":', b'"seq":1', 1))
    assert main(["verify", str(path), "--key", str(folder / "key")]) == 9
    assert "wrong_signature" in capsys.readouterr().err


def test_failure_as_json_is_the_one_error_shape(folder, capsys):
    (folder / "proof.json").write_bytes(b"{}")
    assert main(["verify", str(folder / "proof.json"), "--key", str(folder / "key"), "--json"]) == 9
    result = json.loads(capsys.readouterr().out)
    assert (result["verified"], result["error"]["code"]) == (False, "malformed_proof")


@pytest.mark.parametrize(("key", "code"), [("no+key", 2), ("nothing-there", 6)])
def test_a_bad_key_has_its_own_exit_code(folder, key, code):
    assert main(["verify", str(folder / "proof.json"), "--key", key]) == code


def test_the_command_needs_neither_ray_nor_torch(folder):
    program = (
        "import sys, runpy\n"
        "sys.argv = ['ledger', 'verify', 'proof.json', '--key', 'key']\n"
        "try: runpy.run_module('openledger.ledger', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'ray', 'torch', 'numpy', 'transformers', 'openledger.economy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("verified\n")

"""The audit: clean over what the ledger wrote, and the first wrong entry by name over anything else."""

import json
import random

import apsw
import pytest
from ledger_values import hold, move
from settled_ledger import POOL, build, build_pool, payout_transfers, settlement_statement, transfer

from openledger.core.errors import Corrupt, NotFound, OpenLedgerError
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger, audit_file
from openledger.ledger.checkpoints import verification_key

KEY = SigningKey(b"k" * 32)
VKEY = verification_key("openledger/test", KEY.public_key)


OF_B = "WHERE number = (SELECT number FROM accounts WHERE account_id = 'user:b')"


def changed_body(seq, old, new):
    """SQL that changes the first `old` in the transfers of batch `seq`."""
    place = f"instr(CAST(body AS TEXT), '{old}')"
    text = f"substr(CAST(body AS TEXT), 1, {place} - 1) || '{new}' || substr(CAST(body AS TEXT), {place} + {len(old)})"
    return f"UPDATE batches SET body = CAST({text} AS BLOB) WHERE seq = {seq}"


@pytest.fixture
def settled(path, clock):
    ledger = Ledger(path, clock, KEY, "openledger/test")
    build(ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def export(settled, tmp_path):
    settled.export(tmp_path / "export.jsonl")
    return tmp_path / "export.jsonl"


def test_file_and_export_give_the_same_clean_report(settled, export, path):
    report = settled.audit()
    assert report == audit_file(path, VKEY) == audit_file(export, VKEY)
    assert (report.num_answers, report.num_settlements, report.issued_nano) == (2, 1, 10_000)
    assert report.num_transfers == 14


def test_a_running_ledger_can_be_audited_and_goes_on(settled, path):
    audit_file(path, VKEY)
    assert settled.commit([transfer("more", "genesis", "user:a", 1)]) == ["created"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        (changed_body(1, '"amount_nano":', '"amount_nano":1'), "wrong_leaf", "batch 1"),
        (changed_body(6, '"code":"', '"code":"o'), "wrong_leaf", "batch 6"),
        (changed_body(6, '"code":', '"cide":'), "malformed_transfer", "batch 6"),
        (changed_body(6, '"code":', '"code": '), "malformed_transfer", "batch 6"),
        ("UPDATE batches SET form = 'packed' WHERE seq = 6", "malformed_transfer", "batch 6"),
        ("UPDATE batches SET time_ms = time_ms + 1 WHERE seq = 2", "wrong_leaf", "batch 2"),
        ("UPDATE batches SET statement = NULL WHERE seq = 3", "wrong_leaf", "batch 3"),
        ("UPDATE batches SET statement = x'00' WHERE seq = 3", "malformed_statement", "batch 3"),
        ("DELETE FROM transfers WHERE id = CAST('pay1' AS BLOB)", "wrong_place", "batch 6"),
        ("UPDATE transfers SET place = place + 1 WHERE id = CAST('pay1' AS BLOB)", "wrong_place", "batch 6"),
        ("INSERT INTO transfers VALUES (x'00', 0)", "wrong_count", "transfers"),
        ("UPDATE batches SET links = x'' WHERE seq = 5", "wrong_links", "batch 5"),
        (f"UPDATE sums SET last_seq = 1 {OF_B}", "wrong_links", "user:b"),
        ("UPDATE accounts SET key = x'00' WHERE account_id = 'user:b'", "wrong_links", "user:b"),
        ("DELETE FROM batches WHERE seq = 4", "missing_batch", "batch 4"),
        ("DELETE FROM nodes WHERE level = 0 AND position = 4", "missing_node", "node 0/4"),
        ("UPDATE nodes SET hash = zeroblob(32) WHERE level = 1 AND position = 0", "wrong_node", "node 1/0"),
        (
            f"UPDATE sums SET credits_posted = credits_posted + 1 {OF_B}",
            "wrong_balance",
            "user:b",
        ),
        ("UPDATE accounts SET kind = 'pool' WHERE account_id = 'user:b'", "wrong_balance", "user:b"),
        ("UPDATE holds SET state = 'pending' WHERE id = CAST('hold1' AS BLOB)", "wrong_hold", "hold1"),
        ("UPDATE head SET size = size - 1", "wrong_root", "checkpoint"),
        ("UPDATE head SET note = replace(note, 'openledger', 'openledges')", "wrong_key", "checkpoint"),
        ("INSERT INTO nodes VALUES (9, 9, x'00')", "wrong_count", "nodes"),
        ("UPDATE holds SET amount = amount + 1 WHERE id = CAST('hold1' AS BLOB)", "wrong_hold", "hold1"),
        ("INSERT INTO batches VALUES (99, 1, 'json', x'', NULL, x'')", "wrong_count", "batches"),
    ],
)
def test_a_change_in_the_file_is_named(settled, path, change, code, param):
    settled.close()
    connection = apsw.Connection(str(path))
    connection.execute(change)
    connection.close()
    with pytest.raises(Corrupt) as caught:
        audit_file(path, VKEY)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_bits_flipped_in_the_raw_file_are_found_or_change_nothing(settled, path, tmp_path):
    settled.export(tmp_path / "before")
    settled.close()
    data, chance = path.read_bytes(), random.Random(7)
    found = 0
    for _ in range(60):
        place = data.index(b"user:", chance.randrange(len(data) - 20_000)) + chance.randrange(5)
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            audit_file(path, VKEY)
        except OpenLedgerError:
            found += 1
            continue
        Ledger(path, None, KEY, "openledger/test").export(tmp_path / "after")
        assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert found > 30


def test_changed_bytes_of_an_export_are_found(export):
    data = export.read_bytes()
    for place in range(0, len(data), 23):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        export.write_bytes(changed)
        with pytest.raises(Corrupt):
            audit_file(export, VKEY)


@pytest.mark.parametrize("cut", ["first", "middle", "last"])
def test_an_export_that_lacks_a_line_is_refused(export, cut):
    lines = export.read_bytes().splitlines(keepends=True)
    del lines[{"first": 0, "middle": 3, "last": -1}[cut]]
    export.write_bytes(b"".join(lines))
    with pytest.raises(Corrupt):
        audit_file(export, VKEY)


def test_an_export_cut_back_to_an_earlier_state_does_not_match_its_checkpoint(export):
    lines = [json.loads(line) for line in export.read_text().splitlines()]
    lines[0]["size"] -= 1
    del lines[-2]
    text = "".join(json.dumps(v, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for v in lines)
    export.write_text(text)
    with pytest.raises(Corrupt) as caught:
        audit_file(export, VKEY)
    assert caught.value.code == "wrong_root"


def test_another_key_does_not_pass(export):
    with pytest.raises(Corrupt) as caught:
        audit_file(export, verification_key("openledger/test", SigningKey(b"o" * 32).public_key))
    assert caught.value.code == "wrong_key"


def test_no_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        audit_file(tmp_path / "nothing", VKEY)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"shares_ppb": {"ctr_a": 10**9, "ctr_b": 0, "unattributed": 0}}, "wrong_shares"),
        (
            {"accounts": {"ctr_a": "user:c", "ctr_b": "user:b", "unattributed": "unattributed"}},
            "pool_and_payouts_differ",
        ),
    ],
)
def test_a_settlement_that_does_not_follow_is_named(ledger_with_pool, change, code):
    statement = settlement_statement(ledger_with_pool)
    ledger_with_pool.commit(payout_transfers(statement), {**statement, **change})
    with pytest.raises(Corrupt) as caught:
        ledger_with_pool.audit()
    assert (caught.value.code, caught.value.param) == (code, "batch 6")


def test_a_settlement_that_leaves_out_an_answer_is_named(ledger_with_pool):
    """The operator settles over half of the pool's answers, with arithmetic that holds in itself."""
    usages = ledger_with_pool.usages
    ledger_with_pool.usages = lambda pool: usages(pool)[:1]
    statement = settlement_statement(ledger_with_pool)
    ledger_with_pool.commit(payout_transfers(statement), statement)
    with pytest.raises(Corrupt) as caught:
        ledger_with_pool.audit()
    assert (caught.value.code, caught.value.param) == ("wrong_answers_root", "batch 6")


@pytest.mark.parametrize(("debit", "credit"), [(POOL, "user:c"), ("genesis", POOL)])
def test_money_through_a_pool_without_a_reason_is_named(ledger_with_pool, debit, credit):
    ledger_with_pool.commit([transfer("odd", debit, credit, 1)])
    with pytest.raises(Corrupt) as caught:
        ledger_with_pool.audit()
    assert caught.value.code == "unexplained_pool"


@pytest.fixture
def ledger_with_pool(path, clock):
    ledger = Ledger(path, clock, KEY, "openledger/test")
    build_pool(ledger)
    yield ledger
    ledger.close()


def test_a_fee_whose_parts_do_not_sum_is_named(ledger):
    ledger.commit([move("t1", 5)], {"format": "openledger.usage/1"})
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == "malformed_statement"


class RestlessClock:
    """Every look at it is a millisecond later, as a real clock may be."""

    def __init__(self):
        self.time_ms = 1_700_000_000_000

    def now_ms(self):
        self.time_ms += 1
        return self.time_ms


def test_a_holds_expiry_is_reckoned_from_the_time_that_its_leaf_says(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", RestlessClock())
    ledger.create_accounts(
        [
            Account(account_id="genesis", kind="genesis", may_go_negative=True),
            Account(account_id="user:a", kind="user"),
            Account(account_id="user:b", kind="user"),
        ]
    )
    ledger.commit([move("t1", 10)])
    ledger.commit([hold("h1", 5, timeout_ms=1000)])
    assert ledger.audit().num_transfers == 2
    ledger.close()

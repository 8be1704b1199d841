"""Removals in the log: stated once, signed, and found by the audit where they are not."""

from dataclasses import replace

import pytest

from openledger.core.clock import ManualClock
from openledger.core.errors import Corrupt
from openledger.core.merkle import leaf_hash, root
from openledger.core.signed import withdrawal_bytes
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import Removal
from openledger.ledger import Ledger
from openledger.ledger.removals import removal_accounts, removal_statement, removal_transfers, removals_account
from openledger.ledger.transfers import CREATED, EXISTS

KEY = SigningKey(b"a" * 32)
IDS = ("row_a", "row_b")


def withdrawal() -> Removal:
    rows_root, person = root([leaf_hash(name.encode()) for name in IDS]).hex(), contributor_id(KEY.public_key)
    signature = KEY.sign(withdrawal_bytes("docs", person, rows_root, len(IDS), "1"))
    return Removal(
        removal_id="rmv_1", datanet="docs", kind="withdrawn", by=person, reason="", row_ids=IDS, rows_root=rows_root,
        signed={"public_key": KEY.public_key, "nonce": "1", "signature": signature}, removed_ms=1,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    ledger.create_accounts(removal_accounts("docs"))
    yield ledger
    ledger.close()


def record(ledger, removal):
    statement = removal_statement(removal)
    return ledger.commit(removal_transfers(statement), statement)


def test_a_removal_is_logged_once_and_audited(ledger):
    assert record(ledger, withdrawal()) == [CREATED, CREATED]
    before = ledger.checkpoint()
    assert record(ledger, withdrawal()) == [EXISTS, EXISTS]
    assert ledger.checkpoint() == before
    ledger.audit()


def test_its_account_lists_it_and_no_money_moved(ledger):
    record(ledger, withdrawal())
    assert [entry.transfer.transfer_id for entry in ledger.transfers(removals_account("docs"))][-1] == "rmv_1"
    assert ledger.balance(removals_account("docs")).posted_nano == 0


def test_the_log_says_which_rows_and_nothing_of_what_they_said(ledger):
    statement = removal_statement(withdrawal())
    assert (statement["num_rows"], statement["rows_root"]) == (2, withdrawal().rows_root)
    assert set(statement) == {
        "format", "removal_id", "datanet", "kind", "by", "reason", "num_rows", "rows_root", "signed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"by": "ctr_other"}, "removal_unsigned"),
        ({"rows_root": "ab" * 32}, "removal_unsigned"),
        ({"signed": {"nonce": "1"}}, "malformed_statement"),
        ({"kind": "lost"}, "malformed_statement"),
    ],
)
def test_the_audit_finds_a_removal_that_nobody_signed(ledger, change, code):
    record(ledger, replace(withdrawal(), **change))
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == code


def test_the_audit_finds_other_transfers_than_the_removals_own(ledger):
    statement = removal_statement(withdrawal())
    first, second = removal_transfers(statement)
    ledger.commit([replace(first, amount_nano=2), replace(second, amount_nano=2)], statement)
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == "removal_differs"


def test_an_owners_removal_needs_no_signature(ledger):
    record(ledger, replace(withdrawal(), kind="removed", by="user:owner", reason="court_order", signed={}))
    ledger.audit()

"""A disk that fails in the middle of a write: nothing half-applied, no success told, whichever call fails."""

import apsw
import pytest
from ledger_values import move
from packed_values import record, submit_packed

from openledger.core.errors import Unavailable
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger, audit_file

BASE = "unix"
KEY = SigningKey(b"k" * 32)


class Disk(apsw.VFS):
    """SQLite's own way to the disk, but call number `fails_at` goes wrong as `failure` says."""

    def __init__(self):
        super().__init__("failing", BASE, makedefault=True)
        self.failure, self.fails_at, self.count = "", 0, 0

    def xOpen(self, name, flags):  # noqa: N802, as apsw calls it
        return File(self, name, flags)

    def strikes(self, *failures):
        if self.failure not in failures:
            return False
        self.count += 1
        return self.count == self.fails_at


class File(apsw.VFSFile):
    def __init__(self, disk, name, flags):
        self.disk = disk
        super().__init__(BASE, name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        if self.disk.strikes("short write", "no space"):
            if self.disk.failure == "no space":
                raise apsw.FullError("no space left on device")
            super().xWrite(data[: len(data) // 2], offset)
            raise apsw.IOError("only half of it was written")
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802
        if self.disk.strikes("failed sync"):
            raise apsw.IOError("fsync failed")
        super().xSync(flags)


@pytest.fixture
def disk():
    made = Disk()
    yield made
    made.unregister()


def opened(path):
    return Ledger(path, None, KEY, "openledger/test")


@pytest.fixture
def prepared(path, disk):
    ledger = opened(path)
    genesis = Account(account_id="genesis", kind="genesis", may_go_negative=True)
    ledger.create_accounts([genesis, *(Account(account_id=f"user:{name}", kind="user") for name in "ab")])
    ledger.submit([move("start", 1000)])
    yield path
    disk.failure = ""


def as_values(ledger, turn):
    return ledger.submit([move(f"t{turn}.{place}", 1, "user:a", "user:b") for place in range(20)])


def as_records(ledger, turn):
    return submit_packed(ledger, [record(1000 * turn + place, 1) for place in range(1, 21)])


@pytest.mark.parametrize("send", [as_values, as_records])
@pytest.mark.parametrize("failure", ["short write", "no space", "failed sync"])
def test_a_batch_is_there_whole_or_not_at_all_whichever_call_fails(prepared, disk, failure, send):
    key = opened(prepared).verification_key()
    paid, turn, failed, succeeded = 0, 0, 0, 0
    while succeeded < 2:  # until the failing call lies beyond the last that a batch makes
        turn += 1
        ledger = opened(prepared)
        disk.failure, disk.fails_at, disk.count = failure, turn, 0
        try:
            send(ledger, turn)
            was_told = True
        except Unavailable:
            was_told = False
        struck = disk.count >= turn
        disk.failure = ""
        del ledger  # as a crash would leave it, its connection isn't closed in order
        again = opened(prepared)
        there = again.balance("user:b").posted_nano - paid
        assert there in ((20,) if was_told else (0, 20))
        assert set(send(again, turn)) <= {"created", "exists"}
        again.close()
        paid += 20
        failed, succeeded = failed + (struck and not was_told), succeeded + (not struck)
    assert failed >= 1
    assert audit_file(prepared, key).num_transfers == 1 + 20 * turn

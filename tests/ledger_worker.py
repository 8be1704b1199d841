"""A process that pays and says so; the crash tests kill it.

`python ledger_worker.py LEDGER FIRST LAST ids|no-ids DIE_AT`: commits batches FIRST to LAST - 1, printing each number
once it is answered. At batch DIE_AT it dies between the ledger's answer and its own print.
"""

import os
import secrets
import signal
import sys
from pathlib import Path

from ledger_values import move

from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger

TRANSFERS_PER_BATCH = 3


def main(path: str, first: str, last: str, ids: str, die_at: str) -> None:
    ledger = Ledger(Path(path), None, SigningKey(b"k" * 32), "openledger/test")
    genesis = Account(account_id="genesis", kind="genesis", may_go_negative=True)
    ledger.create_accounts([genesis, Account(account_id="user:a", kind="user")])
    for batch in range(int(first), int(last)):
        name = f"b{batch}" if ids == "ids" else secrets.token_hex(8)
        results = ledger.commit([move(f"{name}.{place}", batch + place + 1) for place in range(TRANSFERS_PER_BATCH)])
        assert set(results) <= {"created", "exists"}, results
        if batch == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        print(batch, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

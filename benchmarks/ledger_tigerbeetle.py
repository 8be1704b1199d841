"""TigerBeetle as a peer of benchmarks/ledger.py: one replica on this machine, asked through its stock Python client.

Its client takes objects, not bytes; how much of a transfer's time is spent making them is part of what is measured.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openledger.core.errors import InvalidInput, Unavailable

_CACHE = "512MiB"
_START_S = 60
_MOST_ACCOUNTS = 8000
Columns = Sequence[Sequence[Any]]  # ids (16 bytes each), debits, credits, amounts


def start(folder: Path, num_accounts: int) -> tuple[Callable[[Columns], None], Callable[[], None]]:
    """How to commit a batch, and how to end it all. Raises ImportError without the client, InvalidInput without the
    server's binary, Unavailable where that doesn't start."""
    import tigerbeetle

    binary = os.environ.get("OPENLEDGER_TIGERBEETLE") or shutil.which("tigerbeetle")
    if binary is None:
        raise InvalidInput(
            "TigerBeetle's wheel has no server",
            code="no_server",
            fix="put its binary on PATH, or name it in OPENLEDGER_TIGERBEETLE",
        )
    server, port = _serve(binary, folder)
    client = tigerbeetle.ClientSync(cluster_id=0, replica_addresses=str(port))

    def close() -> None:
        client.close()
        server.terminate()
        server.wait()

    try:
        for first in range(0, num_accounts, _MOST_ACCOUNTS):
            numbers = range(first, min(first + _MOST_ACCOUNTS, num_accounts))
            _check(client.create_accounts([_account(number) for number in numbers]), tigerbeetle.CreateAccountStatus)
    except BaseException:
        close()
        raise
    return lambda batch: _check(client.create_transfers(_transfers(batch)), tigerbeetle.CreateTransferStatus), close


def _serve(binary: str, folder: Path) -> tuple["subprocess.Popen[bytes]", int]:
    data, log = folder / "0_0.tigerbeetle", folder / "tigerbeetle.log"
    form = [binary, "format", "--cluster=0", "--replica=0", "--replica-count=1", str(data)]
    subprocess.run(form, check=True, capture_output=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    with log.open("wb") as told:
        words = [binary, "start", f"--addresses=127.0.0.1:{port}", f"--cache-grid={_CACHE}", str(data)]
        server = subprocess.Popen(words, stdout=told, stderr=told)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        time.sleep(0.1)
    server.kill()
    server.wait()
    raise Unavailable(f"TigerBeetle didn't start: {log.read_text()[-500:]}", code="storage_failed")


def _account(number: int) -> Any:
    import tigerbeetle

    return tigerbeetle.Account(id=number + 1, ledger=1, code=1)


def _transfers(batch: Columns) -> list[Any]:
    import tigerbeetle

    return [
        tigerbeetle.Transfer(
            id=int.from_bytes(name, "big"),
            debit_account_id=debit + 1,
            credit_account_id=credit + 1,
            amount=amount,
            ledger=1,
            code=1,
        )
        for name, debit, credit, amount in zip(*batch, strict=True)
    ]


def _check(results: Sequence[Any], statuses: Any) -> None:
    refused = [result.status for result in results if result.status != statuses.CREATED]
    assert not refused, refused[:3]

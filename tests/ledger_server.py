"""A process that holds a ledger as its actor does, for the crash tests to kill, freeze and thaw.

`python ledger_server.py SOCKET STORAGE KEY [unfenced] [late]`: a parent that has everything imported forks a child; the
child opens the ledger and serves packed batches over a Unix socket. When it dies, the parent forks another, which has
the same listening socket: clients that connect meanwhile wait. Prints each child's process id. An answer is `+` and
results, or `-` and an error's code.
"""

import os
import socket
import struct
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from openledger.core.errors import OpenLedgerError
from openledger.ledger import Ledger
from openledger.ledger.opening import is_postgres

NAME = "openledger/test"
_LENGTH = struct.Struct("<I")


def main(address: str, storage: str, key: str, *options: str) -> None:
    for module in ("ledger", "setwise", "postgres" if is_postgres(storage) else "sqlite"):
        import_module(f"openledger.ledger.{module}")  # once, not in each child
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    while True:
        child = os.fork()
        if not child:
            serve(listener, storage if is_postgres(storage) else Path(storage), Path(key), options)
        print(child, flush=True)
        os.waitpid(child, 0)


def serve(listener: socket.socket, storage: Path | str, key: Path, options: tuple[str, ...]) -> None:
    ledger = open_patiently(storage, key)
    if "unfenced" in options:
        ledger._journal.store._check_epoch = lambda current: None
    lock = threading.Lock()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, ledger, lock, "late" in options), daemon=True).start()


def open_patiently(storage: Path | str, key: Path) -> Ledger:
    """A database that was killed needs a moment."""
    while True:
        try:
            return Ledger(storage, None, key, NAME)
        except OpenLedgerError:
            time.sleep(0.05)


def answer(connection: socket.socket, ledger: Ledger, lock: threading.Lock, late: bool) -> None:
    while (data := receive(connection)) is not None:
        with lock:
            try:
                results = b"+" + ledger.submit_packed(data)
            except OpenLedgerError as error:
                results = b"-" + error.code.encode()
        if late:
            time.sleep(0.05)
        send(connection, results)


def send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes | None:
    """None where the other side is gone."""
    head = _exactly(connection, _LENGTH.size)
    return None if head is None else _exactly(connection, _LENGTH.unpack(head)[0])


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            return None
        data += part
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])

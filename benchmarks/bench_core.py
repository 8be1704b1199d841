"""How fast the parts of core are that every payment passes through, on one core.

python benchmarks/bench_core.py
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from openledger.core import merkle
from openledger.core.hashing import digest_json
from openledger.core.money import split
from openledger.core.signing import SigningKey, verify

SECONDS = 1.0


def main() -> None:
    table = Table("operation", "input", "calls per second", title="core, one core, one process")
    for name, shape, call in cases():
        table.add_row(name, shape, f"{calls_per_s(call):,.0f}")
    Console().print(table)


def cases() -> list[tuple[str, str, Callable[[], object]]]:
    key = SigningKey.generate()
    message = b"x" * 1024
    signature = key.sign(message)
    weights = {f"ctr_{number:04}": number + 1 for number in range(1000)}
    transfer = {"debit": "pool:a:p0001", "credit": "contributor:b", "amount_nano": 10**9, "id": "trf_0"}
    leaves = [merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(1024)]
    return [
        ("sign (Ed25519)", "1 KiB", lambda: key.sign(message)),
        ("verify (Ed25519)", "1 KiB", lambda: verify(key.public_key, signature, message)),
        ("split a payout", "1,000 contributors", lambda: split(10**12 + 1, weights)),
        ("digest of canonical JSON", "one transfer", lambda: digest_json(transfer)),
        ("Merkle root", "1,024 leaves", lambda: merkle.root(leaves)),
    ]


def calls_per_s(call: Callable[[], object]) -> float:
    call()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        call()
        count += 1
    return count / elapsed


if __name__ == "__main__":
    main()

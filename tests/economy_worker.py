"""A process that sells answers and says so; the crash tests kill it.

`python economy_worker.py FOLDER FIRST`: sells answers number FIRST, FIRST + 1, ... to three tenants in turn, printing
each answer's id once it was acknowledged. The third tenant wants nothing kept.
"""

import sys
from pathlib import Path

from economy_values import Town, answer

from openledger.core.clock import SystemClock

TENANTS = ("user:alice", "user:bob", "user:carol")
UNKEPT = TENANTS[2]


def main(folder: str, first: str) -> None:
    town = Town(Path(folder), SystemClock())
    for tenant in TENANTS:
        town.economy.grant(tenant, 10**9, f"start of {tenant}")
    town.economy.set_retention(UNKEPT, keep=False)
    for number in range(int(first), 10**9):
        tenant = TENANTS[number % len(TENANTS)]
        authorized = town.authorize(f"k{number}", account=tenant)
        town.economy.complete(answer(authorized, token=number))
        print(tenant, number, authorized.answer_id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

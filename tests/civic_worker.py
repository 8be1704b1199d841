"""A process that lives through an economy's affairs, step by step, and says so; the crash tests kill it.

`python civic_worker.py FOLDER FIRST LAST DIE_AT`: takes steps FIRST to LAST - 1, printing each number once it is
acknowledged. At step DIE_AT it dies between the economy's answer and its own print. What a step does, and when, follows
from its number alone, so that any run of the same steps has to end with the same books.
"""

import os
import signal
import sys
from pathlib import Path

from economy_values import Town, answer, scores

from openledger.core.clock import ManualClock
from openledger.core.errors import OpenLedgerError
from openledger.core.money import NANO_PER_OPEN

OPEN = NANO_PER_OPEN
START_MS, STEP_MS = 1_700_000_000_000, 36 * 60 * 60_000
ROUND = 10
ADDRESS = "0x" + "cd" * 20


class Affairs:
    def __init__(self, folder: Path, first: int = 0):
        self.clock = ManualClock(START_MS + first * STEP_MS)
        self.town = Town(folder, self.clock)
        for name in ("user:alice", "user:bob"):
            self.town.economy.grant(name, 10_000 * OPEN, f"start of {name}")

    def step(self, number: int) -> None:
        """Refusals are part of it: the same step is refused again, for the same reason."""
        self.clock.time_ms = START_MS + number * STEP_MS
        period = f"p{number // ROUND + 1:04d}"
        actions = [
            lambda: self.sell(number),
            lambda: self.sell(number),
            lambda: self.town.economy.stake("user:bob", "adapter:py", 200 * OPEN, f"s{number}"),
            lambda: self.town.economy.withdraw("user:bob", 2 * OPEN, ADDRESS, f"w{number}"),
            lambda: self.town.economy.refund(self.sell(number - 3), "a step"),
            lambda: self.town.economy.propose("user:bob", f"p{number}", "", self.change(number), f"p{number}"),
            lambda: self.town.economy.vote("user:bob", self.town.economy.proposals()[0]["proposal"], "for"),
            lambda: self.town.economy.unstake("user:bob", "adapter:py", 50 * OPEN, f"u{number}"),
            lambda: self.town.economy.settle(scores(period), {}),
            lambda: self.town.economy.refund(self.sell(number - 9), "after its settlement"),
        ]
        try:
            actions[number % ROUND]()
        except OpenLedgerError as error:
            if error.http_status >= 500:
                raise

    def sell(self, number: int) -> str:
        authorized = self.town.authorize(f"k{number}")
        self.town.economy.complete(answer(authorized))
        return authorized.answer_id

    def change(self, number: int) -> dict[str, object]:
        """Another part for the owner each time, and the treasury's with it."""
        owner_ppm = 150_000 + 10_000 * (number // ROUND % 5)
        return {"kind": "parameters", "changes": {"owner_ppm": owner_ppm, "treasury_ppm": 300_000 - owner_ppm}}

    def books(self) -> dict[str, int]:
        return {balance.account_id: balance.posted_nano for balance in self.town.ledger.balances()}


def main(folder: str, first: str, last: str, die_at: str) -> None:
    affairs = Affairs(Path(folder), int(first))
    for number in range(int(first), int(last)):
        affairs.step(number)
        if number == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

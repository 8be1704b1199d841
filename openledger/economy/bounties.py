"""What bounties are paid from: settled pools, and what is left unattributed of each.

    named    a proposal's pools, the oldest that have something left, where the proposer names none
    check    when it is executed: whether they still have it, and nobody can dispute them any more

A pool gives what its settlement left unattributed, less what disputes, refunds and earlier bounties took. All of it is
read from the log, by the same state with which the audit checks it (`ledger.disputes`).
"""

from collections.abc import Mapping
from typing import Any

from openledger.core.errors import Conflict
from openledger.core.money import format_money, format_open
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.ledger.accounts import UNATTRIBUTED, pool_account
from openledger.ledger.disputes import Disputes, escrow_account
from openledger.ledger.governance import pools_of
from openledger.ledger.statements import SETTLEMENTS, format_of

_ENTRIES = 10**6


class BountyBook:
    def __init__(self, ledger: LedgerPort, register: RegisterBook):
        self._ledger = ledger
        self._register = register

    def named(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """`action` with its `object` and the pools that pay it. Raises Conflict (`bounty_cap_reached`,
        `bounty_exceeds_unattributed`) where there isn't that much."""
        amount_nano = action.get("amount_nano")
        if action.get("kind") != "bounty" or type(amount_nano) is not int or amount_nano < 1:
            return dict(action)
        state = self._register.refresh()
        state.governance.check_cap(amount_nano, state.parameters)
        free, given = self._free(window_ms=0), {"object": "", **action}
        if "from_nano" not in given:
            given["from_nano"] = _oldest_first(free, amount_nano)
        elif isinstance(given["from_nano"], Mapping):
            _check(given, free)
        return given

    def check(self, action: Mapping[str, Any]) -> None:
        """Raises Conflict (`bounty_exceeds_unattributed`) where a pool that a bounty names can't give it now."""
        if pools_of(action):
            _check(action, self._free(self._register.parameters().dispute_window_ms))

    def _free(self, window_ms: int) -> dict[tuple[str, str], int]:
        """By (adapter, period), in the order of their settlements."""
        told, now_ms = self._read(), self._register.now_ms()
        told.bounties_nano = dict(self._register.refresh().governance.pools_nano)
        return {key: told.spendable_nano(key, window_ms, now_ms) for key in told.pools}

    def _read(self) -> Disputes:
        """Every settlement that left something, its disputes, and the refunds that took of it."""
        seqs = {entry.seq for entry in self._ledger.transfers(UNATTRIBUTED, _ENTRIES)}
        for seq in list(seqs):
            statement = self._ledger.batch(seq).statement or {}
            if format_of(statement) in SETTLEMENTS:
                escrow = escrow_account(statement["adapter"], statement["period"])
                seqs.update(entry.seq for entry in self._ledger.transfers(escrow, _ENTRIES))
        told = Disputes()
        for seq in sorted(seqs):
            told.take(self._ledger.batch(seq))
        return told


def _oldest_first(free: Mapping[tuple[str, str], int], amount_nano: int) -> dict[str, int]:
    pools, missing_nano = {}, amount_nano
    for key, free_nano in free.items():
        part_nano = min(missing_nano, free_nano)
        if part_nano:
            pools[pool_account(*key)] = part_nano
            missing_nano -= part_nano
    if missing_nano:
        raise _too_much(amount_nano - missing_nano, amount_nano)
    return pools


def _check(action: Mapping[str, Any], free: Mapping[tuple[str, str], int]) -> None:
    for key, amount_nano in pools_of(action).items():
        if type(amount_nano) is int and amount_nano > free.get(key, 0):
            raise _too_much(free.get(key, 0), amount_nano, f" in {pool_account(*key)}")


def _too_much(free_nano: int, amount_nano: int, where: str = "") -> Conflict:
    return Conflict(
        f"{format_money(free_nano)} are unattributed{where} and free; the bounty takes {format_open(amount_nano)}",
        code="bounty_exceeds_unattributed",
        param="amount_nano",
        fix="ask for less, or wait until more is settled and no dispute can claim it",
    )

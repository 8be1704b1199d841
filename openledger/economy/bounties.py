"""What bounties are paid from: settled pools, and what is left unattributed of each.

    named    a proposal's pools, the oldest that have something left, where the proposer names none
    check    when it is executed: whether they still have it, and nobody can dispute them any more

A pool gives what its settlement left unattributed, less what disputes, refunds and earlier bounties took. All of it is
read from the log, by the same state with which the audit checks it (`ledger.disputes`), and kept until something moves
on `unattributed`, for nothing else changes it. Bounties of before there were named pools are the oldest pools' that
have something free.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from openledger.core.errors import Conflict, Corrupt, NotFound
from openledger.core.money import format_money, format_open
from openledger.economy.pool_history import PoolHistory
from openledger.economy.port import LedgerPort, newest_first
from openledger.economy.register import RegisterBook
from openledger.ledger.accounts import UNATTRIBUTED, pool_account, pool_key
from openledger.ledger.governance import check_asked, pools_of
from openledger.ledger.transfers import Entry

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Free:
    nano: int
    settled_ms: int


class BountyBook:
    """Keeps in memory which pools were settled with something left, and reads a pool only where it is asked of it."""

    def __init__(self, ledger: LedgerPort, register: RegisterBook, pools: PoolHistory):
        self._ledger = ledger
        self._register = register
        self._pools = pools
        self._left: list[tuple[str, str]] = []  # in the order of their settlements
        self._next_seq = 0
        self._free: dict[tuple[str, str], _Free] = {}

    def named(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """`action` with its `object` and the pools that pay it. Raises InvalidInput for a bounty that can't be, before
        any pool is read, Conflict (`bounty_cap_reached`, `bounty_exceeds_unattributed`) where there isn't that much."""
        if action.get("kind") != "bounty":
            return dict(action)
        check_asked(action)
        state = self._register.refresh()
        state.governance.check_cap(action["amount_nano"], state.parameters)
        given = {"object": "", **action}
        if "from_nano" in given:
            self._check(given, window_ms=0)
        else:
            given["from_nano"] = self._oldest_first(action["amount_nano"])
        return given

    def check(self, action: Mapping[str, Any]) -> None:
        """Raises Conflict (`bounty_exceeds_unattributed`) where a pool that a bounty names can't give it now."""
        if action.get("kind") == "bounty":
            self._check(action, self._register.parameters().dispute_window_ms)

    def _check(self, action: Mapping[str, Any], window_ms: int) -> None:
        self._refresh()
        owed = self._owed() if pools_of(action) else {}
        for key, amount_nano in pools_of(action).items():
            free_nano = max(0, self._spendable_nano(key, window_ms) - owed.get(key, 0))
            if amount_nano > free_nano:
                raise _too_much(free_nano, amount_nano, f" in {pool_account(*key)}")

    def _oldest_first(self, amount_nano: int) -> dict[str, int]:
        """A pool of which nothing is left never has anything again, and isn't read any more."""
        available_nano = self._register.available_nano(UNATTRIBUTED)
        if available_nano < amount_nano:
            raise _too_much(available_nano, amount_nano)
        owed, pools, missing_nano = self._owed(), {}, amount_nano
        for key in self._refresh():
            part_nano = min(missing_nano, self._spendable_nano(key, window_ms=0) - owed.get(key, 0))
            if part_nano > 0:
                pools[pool_account(*key)] = part_nano
                missing_nano -= part_nano
            if not missing_nano:
                return pools
        raise _too_much(amount_nano - missing_nano, amount_nano)

    def _owed(self) -> dict[tuple[str, str], int]:
        """What bounties took before they named their pools, as the oldest pools' that have something free."""
        owed, missing_nano = {}, sum(spent.amount_nano for spent in self._register.refresh().governance.spent
                                     if not spent.pools_nano)  # fmt: skip
        for key in self._refresh() if missing_nano else []:
            owed[key] = min(missing_nano, self._spendable_nano(key, window_ms=0))
            missing_nano -= owed[key]
            if not missing_nano:
                break
        return owed

    def _spendable_nano(self, key: tuple[str, str], window_ms: int) -> int:
        """What a pool can give now: nothing where it wasn't settled, or its history can't be read."""
        free = self._free.get(key) or self._read(key)
        return free.nano if free is not None and self._register.now_ms() >= free.settled_ms + window_ms else 0

    def _read(self, key: tuple[str, str]) -> _Free | None:
        try:
            told = self._pools.read(*key)
        except NotFound:
            return None
        except Corrupt as error:
            _log.error("%s pays no bounty, it can't be read: %s (%s)", pool_account(*key), error.message, error.code)
            return None
        if key in self._left and told.funds(key).left_nano <= 0:
            self._left.remove(key)
        self._free[key] = _Free(nano=told.free_nano(key), settled_ms=told.pools[key].settled_ms)
        return self._free[key]

    def _refresh(self) -> list[tuple[str, str]]:
        """The pools that may have something left, with those that were settled since."""
        for entry in reversed(self._since()):
            self._free.clear()
            if entry.transfer.debit.startswith("pool:"):
                self._left.append(pool_key(entry.transfer.debit))
            self._next_seq = entry.seq + 1
        return list(self._left)

    def _since(self) -> list[Entry]:
        """What moved on `unattributed` since the last time, newest first."""
        moved = newest_first(self._ledger, UNATTRIBUTED)
        return list(takewhile(lambda entry: entry.seq >= self._next_seq, moved))


def _too_much(free_nano: int, amount_nano: int, where: str = "") -> Conflict:
    return Conflict(
        f"{format_money(free_nano)} are unattributed{where} and free; the bounty takes {format_open(amount_nano)}",
        code="bounty_exceeds_unattributed",
        param="amount_nano",
        fix="ask for less, or wait until more is settled and no dispute can claim it",
    )

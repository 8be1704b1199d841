"""A settled pool's history, from the log: its settlement, its disputes, and what refunds and bounties took of it.

Replayed in the order of the log, as the audit does it (`ledger.disputes`): what a claim could contest, or a refund
take, depends on what was taken before it. Keeps nothing of its own.
"""

import apsw

from openledger.core.errors import NotFound
from openledger.economy.port import LedgerPort, newest_first
from openledger.economy.refunds import refunds_of_pool
from openledger.economy.register import RegisterBook
from openledger.economy.settlement import payout_id
from openledger.ledger.disputes import Disputes, escrow_account
from openledger.ledger.governance import Spent
from openledger.ledger.register import place_id


class PoolHistory:
    """Over one ledger, and the economy's database, which knows the pool's refunded answers."""

    def __init__(self, ledger: LedgerPort, connection: apsw.Connection, register: RegisterBook):
        self._ledger = ledger
        self._db = connection
        self._register = register

    def read(self, adapter: str, period: str) -> Disputes:
        """The state of this one pool. Raises NotFound (`not_settled`), Corrupt for a history that can't be."""
        settled = self._ledger.find(payout_id(adapter, period))
        if settled is None:
            raise NotFound(
                f"{adapter} wasn't settled in {period}",
                code="not_settled",
                param="period",
                fix="a pool can be disputed once its period is settled; the payouts name adapter and period",
            )
        key, told, bounties = (adapter, period), Disputes(), self._bounties(adapter, period)
        entries = list(newest_first(self._ledger, escrow_account(adapter, period)))
        entries += refunds_of_pool(self._ledger, self._db, adapter, period)
        for seq in sorted({settled.seq, *(entry.seq for entry in entries), *bounties}):
            if seq in bounties:
                spent = bounties[seq]
                told.spend({key: spent.pools_nano[key]}, spent.window_ms, spent.time_ms)
            else:
                told.take(self._ledger.batch(seq))
        return told

    def _bounties(self, adapter: str, period: str) -> dict[int, Spent]:
        """Those that took of the pool, by their place in the log."""
        found = [spent for spent in self._register.refresh().governance.spent if (adapter, period) in spent.pools_nano]
        entries = [(self._ledger.find(place_id(spent.number)), spent) for spent in found]
        return {entry.seq: spent for entry, spent in entries if entry is not None}

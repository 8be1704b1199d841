"""The book of stakes: what accounts stake, what comes back, what it earned, and what is slashed.

Writes `ledger.stakes`' statements into the register. The book itself keeps only which pools of stakers there are,
durably before an answer pays into one, until the period after theirs is closed. A log that was put back and may lack
more than that is in another period than economy.db; then all pools that have answers are remembered once more.
"""

from collections.abc import Sequence
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import NotFound, idempotency_conflict
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.ledger import stakes
from openledger.ledger.accounts import TREASURY
from openledger.ledger.register import place_id
from openledger.ledger.statements import Statement

SCHEMA = """
CREATE TABLE IF NOT EXISTS staked_pools(
  adapter TEXT NOT NULL, period TEXT NOT NULL, PRIMARY KEY (adapter, period)
) STRICT, WITHOUT ROWID;
"""
_KEPT_PERIODS = 2  # the open one, and the one whose end a log in the same period may lack


class StakeBook:
    def __init__(self, ledger: LedgerPort, register: RegisterBook, connection: apsw.Connection):
        self._ledger = ledger
        self._register = register
        self._db = connection

    def stake(self, account: str, of: str, amount_nano: int, key: str) -> Statement:
        """Put OPEN behind `adapter:NAME` or `datanet:NAME`; the same key again gives the first statement.

        Raises InvalidInput, Conflict (`idempotency_conflict`, `object_full`), InsufficientFunds.
        """
        given = {"account": account, "object": of, "amount_nano": amount_nano, "key": key}
        return self._known(stakes.STAKE, given) or self._register.write(stakes.STAKE, lambda *_: given)

    def unstake(self, account: str, of: str, amount_nano: int, key: str) -> Statement:
        """Begin the cool-down of a part or all of a stake. Raises Conflict (`not_staked`, `stake_too_small`)."""
        given = {"account": account, "object": of, "amount_nano": amount_nano, "key": key}
        known = self._known(stakes.UNSTAKE, given)
        return known or self._register.write(
            stakes.UNSTAKE,
            lambda state, now_ms: {**given, "ends_ms": now_ms + state.parameters.in_force["stake_cooldown_ms"]},
        )

    def slash(self, of: str, cause: str, evidence: str) -> Statement:
        """Take what the rules say of every position on an object, into escrow. For the operator; `evidence` is the
        SHA-256 of what shows the cause."""
        return self._register.write(
            stakes.SLASH,
            lambda state, now_ms: {
                "object": of,
                "cause": cause,
                "evidence": evidence,
                "taken_nano": state.stakes.slashed_nano(
                    stakes.check_object(of), state.parameters.in_force["slash_ppm"]
                ),
                "ends_ms": now_ms + state.parameters.in_force["slash_appeal_ms"],
            },
        )

    def account_for(self, adapter: str, datanet: str, period: str) -> str:
        """Where the stakers' part of an answer goes: to a pool of theirs, remembered durably, or to the treasury where
        nobody has staked anything."""
        if not self._register.state.stakes.is_backed(adapter, datanet):
            return TREASURY
        self.remember((adapter, period))
        return stakes.reward_account(adapter, period)

    def remember(self, *pools: tuple[str, str]) -> None:
        """That stakers have to be paid of each (adapter, period) once the period is closed, if anything is there."""
        with writing(self._db):
            self._db.executemany("INSERT OR IGNORE INTO staked_pools VALUES (?, ?)", pools)

    def reward_due(self) -> int:
        """Pay the stakers of every closed period that waits; how many pools."""
        query = "SELECT adapter, period FROM staked_pools ORDER BY period, adapter"
        known = [(str(adapter), str(period)) for adapter, period in self._db.execute(query)]
        state = self._register.state
        closed = [pool for pool in known if pool[1] != state.parameters.current]
        num_paid = sum([self._reward(*pool) for pool in closed if pool not in state.stakes.rewarded])
        newest = int(state.parameters.current[1:]) - _KEPT_PERIODS
        self._forget([pool for pool in closed if int(pool[1][1:]) <= newest])
        return num_paid

    def return_due(self, now_ms: int) -> int:
        """Give back what has cooled down; how many positions."""
        due = [number for number, one in self._register.state.stakes.cooling.items() if one.ends_ms <= now_ms]
        for number in due:
            self._register.write(stakes.RETURN, lambda *_, number=number: {"unstake": number})
        return len(due)

    def end_slashes(self, now_ms: int) -> int:
        """Give to the treasury what was slashed and isn't appealed; how many."""
        state = self._register.state
        due = [
            number
            for number, slash in state.stakes.slashes.items()
            if slash.state == "appealable"
            and slash.ends_ms < now_ms
            and not state.governance.is_appealed(number, state.stakes, now_ms)
        ]
        for number in due:
            self._register.write(stakes.SLASH_END, lambda *_, number=number: {"slash": number})
        return len(due)

    def view(self, account: str) -> dict[str, Any]:
        """What `account` has staked, what cools down, what was slashed of it, and its voting power now."""
        state = self._register.state
        return {
            "account": account,
            "staked_nano": state.stakes.of_account(account),
            "cooling": [
                {"object": one.object, "amount_nano": one.amount_nano, "ends_ms": one.ends_ms}
                for one in state.stakes.cooling.values()
                if one.account == account
            ],
            "slashed": [
                {"slash": number, "object": slash.object, "cause": slash.cause, "state": slash.state,
                 "amount_nano": slash.taken_nano[account], "ends_ms": slash.ends_ms}
                for number, slash in state.stakes.slashes.items()
                if account in slash.taken_nano
            ],
            "delegate": state.stakes.powers.delegate_of(account),
            "power_nano": state.stakes.powers.of(account, self._register.now_ms()),
        }  # fmt: skip

    def _reward(self, adapter: str, period: str) -> bool:
        """Whether there was anything to pay."""
        pool_nano = self._waiting_nano(adapter, period)
        if pool_nano:
            self._write_reward(adapter, period, pool_nano)
        return pool_nano > 0

    def _forget(self, pools: Sequence[tuple[str, str]]) -> None:
        """Each of them is paid, or empty."""
        if pools:
            with writing(self._db):
                self._db.executemany("DELETE FROM staked_pools WHERE adapter = ? AND period = ?", pools)

    def _write_reward(self, adapter: str, period: str, pool_nano: int) -> None:
        account = stakes.reward_account(adapter, period)
        datanets = sorted({usage["datanet"] for usage in self._ledger.usages(account)})
        book = self._register.state.parameters
        values = book.of_period(period)[1]
        weights = self._register.state.stakes.weights(
            adapter, datanets, book.periods[period], values["datanet_stake_ppm"]
        )
        self._register.write(
            stakes.REWARD,
            lambda *_: {
                "adapter": adapter,
                "period": period,
                "datanets": datanets,
                "pool_nano": pool_nano,
                "weights": weights,
                "payouts_nano": stakes.reward_payouts(pool_nano, weights),
            },
        )

    def _waiting_nano(self, adapter: str, period: str) -> int:
        try:
            return self._ledger.balance(stakes.reward_account(adapter, period)).posted_nano
        except NotFound:
            return 0

    def _known(self, form: str, given: dict[str, Any]) -> Statement | None:
        number = self._register.refresh().stakes.keys.get((given["account"], given["key"]))
        entry = None if number is None else self._ledger.find(place_id(number))
        if entry is None:
            return None
        statement = self._ledger.batch(entry.seq).statement or {}
        if statement.get("format") != form or any(statement[name] != value for name, value in given.items()):
            raise idempotency_conflict()
        return statement

"""The book of vesting: genesis, the monthly releases, and what the community's part adds to a settlement."""

from collections.abc import Sequence
from typing import Any

from openledger.core.errors import NotFound
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.ledger import emissions, vesting
from openledger.ledger.accounts import GENESIS
from openledger.ledger.emissions import emission
from openledger.ledger.statements import Statement
from openledger.ledger.vesting import Bucket, genesis_statement, kept_nano


class VestingBook:
    def __init__(self, ledger: LedgerPort, register: RegisterBook):
        self._ledger = ledger
        self._register = register

    def found(self, buckets: Sequence[Bucket], start_ms: int) -> None:
        """Put the whole supply into `buckets`, once; vesting is counted from `start_ms`.

        Raises Conflict (`genesis_done`), InvalidInput for buckets that aren't the supply.
        """
        issued_nano = -self._ledger.balance(GENESIS).posted_nano
        told = genesis_statement(start_ms, buckets, issued_nano + kept_nano(buckets, issued_nano))
        form = told.pop("format")
        self._register.write(form, lambda *_: told)

    def release_due(self, now_ms: int) -> int:
        """Release every month that has come, in order; how many releases."""
        due = self._register.state.vesting.due(now_ms)
        for bucket, month, amount_nano in due:
            given = {"bucket": bucket, "month": month, "amount_nano": amount_nano}
            self._register.write(vesting.RELEASE, lambda *_, given=given: given)
        return len(due)

    def emit(self, settlement: Statement) -> int:
        """Pay what the rule adds to a settled pool, once; nano-OPEN in all, 0 where the rule gives nothing.

        What the community's account hasn't isn't paid: the emission is left out then, and can be asked for again.
        """
        adapter, period = settlement["adapter"], settlement["period"]
        state = self._register.refresh()
        if period not in state.parameters.periods:
            return 0
        if (adapter, period) in state.emissions.pools:
            return state.emissions.pools[adapter, period]
        values = state.parameters.of_period(period)[1]
        due = emission(settlement["payouts_nano"], state.emissions.left_nano(period, values), values)
        if not due or self._community_nano() < sum(due.values()):
            return 0
        told = {
            "rule": emissions.RULE,
            "adapter": adapter,
            "period": period,
            "paid_nano": dict(settlement["payouts_nano"]),
            "accounts": {name: settlement["accounts"][name] for name in due},
            "emission_nano": due,
        }
        self._register.write(emissions.EMISSION, lambda *_: told)
        return sum(due.values())

    def view(self) -> dict[str, Any]:
        """The plan, what of it was released, when each bucket releases next, and what emissions paid in each period,
        which is apart from what fees paid."""
        book = self._register.state.vesting
        return {
            "start_ms": book.start_ms,
            "circulating_nano": book.circulating_nano(),
            "emitted_nano": dict(self._register.state.emissions.periods_nano),
            "buckets": [self._entry(bucket) for bucket in book.buckets.values()],
        }

    def _entry(self, bucket: Bucket) -> dict[str, Any]:
        book = self._register.state.vesting
        month = book.last[bucket.name] + 1
        more = month <= bucket.last_month
        return {
            "name": bucket.name,
            "recipient": bucket.recipient,
            "total_nano": bucket.total_nano,
            "released_nano": bucket.initial_nano + bucket.released_nano(month - 1),
            "next_month": month if more else None,
            "next_ms": vesting.month_start_ms(book.start_ms, month) if more else None,
            "next_nano": bucket.amount_nano(month) if more else None,
        }

    def _community_nano(self) -> int:
        try:
            return self._ledger.balance(vesting.COMMUNITY).available_nano
        except NotFound:
            return 0

"""The audit of the economy: what its statements have to agree with, beyond the rules that each follows by itself.

    usage          divided by the split of the version that it names; a stakers' part waits for its stakers
    settlement     under the version that its period opened with
    stake reward   of just what answers paid the stakers, once, and nothing comes after it
    emission       beside a settlement, by what that paid
    refund         of an answer that was sold and not refunded, each part from where it went; who gives less than it
                   owes has nothing left
    unit           in a currency, nothing leaves genesis but what was paid in (`units`)

One pass, in the order of the log; it keeps what was sold until it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from openledger.core.errors import Corrupt, OpenLedgerError
from openledger.core.money import OPEN
from openledger.ledger import emissions, refunds, stakes
from openledger.ledger.accounts import TREASURY
from openledger.ledger.register import Register
from openledger.ledger.statements import SETTLEMENTS, USAGE, Statement, bounded_fee, format_of, parts_by_account
from openledger.ledger.transfers import Batch
from openledger.ledger.units import check_issued
from openledger.ledger.withdrawals import PAID_OUT, Withdrawals

Pool = tuple[str, str]  # adapter, period
Available = Callable[[str, Pool], int]  # nano-OPEN that an account may still give for a pool's answer, after the batch
_KEPT = (
    "answer_id",
    "account",
    "adapter",
    "period",
    "fee_nano",
    "num_completion_tokens",
    "parts_nano",
    "accounts",
    "commitment",
)


@dataclass(slots=True)
class EconomyAudit:
    """`refunded` are the ids of answers whose fee went back."""

    register: Register = field(default_factory=Register)
    withdrawals: Withdrawals = field(default_factory=Withdrawals)
    sold: dict[str, Statement] = field(default_factory=dict)
    stakers_nano: dict[Pool, int] = field(default_factory=dict)
    datanets: dict[Pool, dict[str, str]] = field(default_factory=dict)
    settlements: dict[Pool, Statement] = field(default_factory=dict)
    rewards: dict[Pool, dict[str, int]] = field(default_factory=dict)
    refunded: set[str] = field(default_factory=set)

    def take(self, batch: Batch, available: Available) -> None:
        """Raises Corrupt, its code saying what is wrong."""
        statement, kind = batch.statement or {}, format_of(batch.statement)
        try:
            if kind == USAGE:
                self._sell(statement)
            elif kind in SETTLEMENTS:
                self.register.parameters.check_settlement(statement)
                self.settlements[statement["adapter"], statement["period"]] = statement
            elif kind == refunds.REFUND:
                self._refund(statement, batch, available)
            elif kind == stakes.REWARD:
                self._reward(statement)
            elif kind == emissions.EMISSION:
                self._emit(statement)
            elif kind == PAID_OUT and self.register.unit == OPEN:
                raise _corrupt(
                    "rounds are paid out in a currency, and this ledger is in OPEN", "unexplained_withdrawal"
                )
        except Corrupt:
            raise
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _corrupt(f"the statement lacks or misstates something: {error}", "malformed_statement") from error
        self.register.take(batch)
        check_issued(batch.transfers, self.register.unit)
        self.withdrawals.take(batch, self.register.unit)

    def leaving(self, refund: Statement) -> tuple[str, str, int]:
        """Pool, commitment and bounded fee of an answer that a refund takes out of an unsettled pool; empty where it
        doesn't."""
        pool = refunds.leaves_pool(refund)
        if not pool:
            return "", "", 0
        usage = self.sold[refund["answer_id"]]
        return pool, usage["commitment"], bounded_fee(usage)

    def _sell(self, usage: Statement) -> None:
        self.register.parameters.check_usage(usage)
        key = (usage["adapter"], usage["period"])
        self.sold[usage["answer_id"]] = {name: usage[name] for name in _KEPT}
        account = usage["accounts"].get("stakers", TREASURY)
        if account == TREASURY:
            return
        if account != stakes.reward_account(*key):
            raise _corrupt("the stakers' part goes to other stakers", "wrong_stakers")
        if key in self.rewards:
            raise _corrupt("these stakers were paid before", "paid_after_reward")
        self.stakers_nano[key] = self.stakers_nano.get(key, 0) + usage["parts_nano"]["stakers"]
        if usage["parts_nano"]["stakers"]:
            self.datanets.setdefault(key, {})[usage["answer_id"]] = usage["datanet"]

    def _reward(self, statement: Statement) -> None:
        key = (statement["adapter"], statement["period"])
        expected = (self.stakers_nano.get(key, 0), sorted({*self.datanets.get(key, {}).values()}))
        if (statement["pool_nano"], statement["datanets"]) != expected:
            raise _corrupt("it isn't what answers paid these stakers", "wrong_rewards")
        self.rewards[key] = dict(statement["payouts_nano"])

    def _emit(self, statement: Statement) -> None:
        settlement = self.settlements.get((statement["adapter"], statement["period"]))
        if settlement is None or statement["paid_nano"] != settlement["payouts_nano"]:
            raise _corrupt("there is no such settlement", "wrong_emission")
        if any(settlement["accounts"][name] != account for name, account in statement["accounts"].items()):
            raise _corrupt("it pays elsewhere than the settlement did", "wrong_emission")

    def _refund(self, statement: Statement, batch: Batch, available: Available) -> None:
        usage = self.sold.get(statement["answer_id"])
        if usage is None or usage["answer_id"] in self.refunded:
            raise _corrupt("no such answer was sold, or it was refunded before", "refund_without_answer")
        key = (usage["adapter"], usage["period"])
        settlement = self.settlements.get(key)
        paid = settlement and parts_by_account(settlement["payouts_nano"], settlement["accounts"])
        emitted = self.register.emissions.accounts_nano.get(key, {})
        emission_due = refunds.emission_owed(usage, settlement["pool_nano"], emitted) if settlement else {}
        refunds.check_refund(statement, usage, paid, self.rewards.get(key), emission_due)
        if list(batch.transfers) != refunds.refund_transfers(statement):
            raise _corrupt("the transfers aren't those of the refund", "refund_differs")
        for name, amount_nano in statement["owed_nano"].items():
            given_nano = statement["taken_nano"].get(name, 0)
            if name not in (TREASURY, usage["account"]) and given_nano < amount_nano and available(name, key):
                raise _corrupt(f"{name} gave less than it owes and had", "wrong_refund")
        for name, amount_nano in emission_due.items():
            if statement.get("emission_nano", {}).get(name, 0) < amount_nano and available(name, key):
                raise _corrupt(f"{name} gave less of its emission back than it had", "wrong_refund")
        stakers = stakes.reward_account(*key)
        if stakers in statement["taken_nano"]:
            self.stakers_nano[key] -= statement["taken_nano"][stakers]
            del self.datanets[key][usage["answer_id"]]
        self.refunded.add(usage["answer_id"])


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")

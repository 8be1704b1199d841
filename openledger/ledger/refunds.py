"""A refund: an answer's whole fee back to its customer, each part from where it went.

    owed by the pool          the contributors' part, before its settlement
    owed by each contributor  split(contributors' part, what the settlement paid)_c, after it
    owed by the stakers       their part, from where it waits, or from each as their reward divided it
    owed by owner, treasury   their parts
    taken_a                   what a owes, or what it has where that is less
    borne by the treasury     fee - sum of what the others gave
    emission back_a           emission_a x contributors' part / pool, rounded down, or what a has left where that is
                              less; to the community, whose vesting paid it beside the settlement

So nobody goes below zero for what was withdrawn meanwhile, and the customer gets the fee to the nano-OPEN, once. An
answer that is refunded before its pool is settled is as if it had not been sold: it is no part of the pool any more.
"""

from collections.abc import Mapping
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.money import format_money, format_open, split
from openledger.ledger.accounts import TREASURY, pool_account
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import Transfer
from openledger.ledger.vesting import COMMUNITY

REFUND = "openledger.refund/1"
CODE = "refund"
EMISSION_CODE = "emission_back"
MAX_REASON = 2000
_FIELDS = {"format", "answer_id", "account", "adapter", "period", "fee_nano", "owed_nano", "taken_nano", "reason"}


def owed(usage: Statement, payouts: Mapping[str, int] | None, rewards: Mapping[str, int] | None) -> dict[str, int]:
    """Nano-OPEN by account. `payouts` are what the answer's settlement paid and `rewards` what its stakers got, both by
    account; None before there were any."""
    due: dict[str, int] = {}
    for role, part_nano in usage["parts_nano"].items():
        account = usage["accounts"].get(role, TREASURY)
        divided = payouts if role == "contributors" else rewards if account.startswith("stakers:") else None
        shares = split(part_nano, divided) if divided and sum(divided.values()) else {account: part_nano}
        for name, amount_nano in shares.items():
            due[name] = due.get(name, 0) + amount_nano
    return {name: amount_nano for name, amount_nano in sorted(due.items()) if amount_nano}


def taken(owed_nano: Mapping[str, int], available_nano: Mapping[str, int]) -> dict[str, int]:
    """What each account gives of what it owes, and the treasury for those that can't."""
    given = {
        name: min(amount_nano, max(0, available_nano.get(name, 0)))
        for name, amount_nano in owed_nano.items()
        if name != TREASURY
    }
    given[TREASURY] = sum(owed_nano.values()) - sum(given.values())
    return {name: amount_nano for name, amount_nano in sorted(given.items()) if amount_nano}


def emission_owed(usage: Statement, pool_nano: int, emission_nano: Mapping[str, int]) -> dict[str, int]:
    """What accounts were emitted, `emission_nano`, for the part that an answer had in its pool of `pool_nano`."""
    part_nano = usage["parts_nano"]["contributors"]
    due = {name: amount_nano * part_nano // pool_nano for name, amount_nano in sorted(emission_nano.items())}
    return {name: amount_nano for name, amount_nano in due.items() if amount_nano}


def refund_statement(
    usage: Statement,
    owed_nano: Mapping[str, int],
    taken_nano: Mapping[str, int],
    reason: str,
    emission_nano: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Raises InvalidInput for a reason that can't be."""
    if not isinstance(reason, str) or not 0 < len(reason) <= MAX_REASON:
        raise InvalidInput(f"a refund says why, in 1 to {MAX_REASON} characters", code="invalid_reason", param="reason")
    return {
        "format": REFUND,
        **{name: usage[name] for name in ("answer_id", "account", "adapter", "period", "fee_nano")},
        "owed_nano": dict(owed_nano),
        "taken_nano": dict(taken_nano),
        "reason": reason,
        **({"emission_nano": dict(emission_nano)} if emission_nano else {}),
    }


def refund_id(answer_id: str, place: int = 0) -> str:
    """Number 0 exists once the answer is refunded."""
    return f"{answer_id}.refund{place}"


def refund_transfers(statement: Statement) -> list[Transfer]:
    """One transfer for each account that gives, by account id, and one for each that gives emission back."""
    answer_id, customer = statement["answer_id"], statement["account"]
    given = [item for item in sorted(statement["taken_nano"].items()) if item[0] != customer]
    moves = [(account, customer, amount_nano, CODE) for account, amount_nano in given]
    emitted = sorted(statement.get("emission_nano", {}).items())
    moves += [(account, COMMUNITY, amount_nano, EMISSION_CODE) for account, amount_nano in emitted]
    return [
        Transfer(
            transfer_id=refund_id(answer_id, place),
            debit=debit,
            credit=credit,
            amount_nano=amount_nano,
            code=code,
            reference=answer_id,
        )
        for place, (debit, credit, amount_nano, code) in enumerate(moves)
    ]


def check_refund(
    statement: Statement,
    usage: Statement,
    payouts: Mapping[str, int] | None,
    rewards: Mapping[str, int] | None,
    emission_due: Mapping[str, int],
) -> None:
    """Raises InvalidInput where what is owed doesn't follow from the answer, or what is taken not from what is owed."""
    if set(statement) - {"emission_nano"} != _FIELDS:
        raise InvalidInput("not the fields of a refund", code="malformed_statement", param="statement")
    due, given = statement["owed_nano"], statement["taken_nano"]
    same = ("answer_id", "account", "adapter", "period", "fee_nano")
    if any(statement[name] != usage[name] for name in same) or due != owed(usage, payouts, rewards):
        raise InvalidInput("it isn't what the answer's parts make", code="wrong_refund", param="owed_nano")
    over = [name for name, amount in given.items() if name != TREASURY and not 0 < amount <= due.get(name, 0)]
    if over or sum(given.values()) != usage["fee_nano"]:
        raise InvalidInput("it takes more than is owed, or not the fee", code="wrong_refund", param="taken_nano")
    emitted = statement.get("emission_nano", {})
    if any(not 0 < amount_nano <= emission_due.get(name, 0) for name, amount_nano in emitted.items()):
        raise InvalidInput("it takes more than was emitted", code="wrong_refund", param="emission_nano")


def lines(statement: Statement) -> list[str]:
    """A refund in words."""
    return [
        f"answer {statement['answer_id']} of {statement['adapter']} in {statement['period']} was refunded:"
        f" {format_money(statement['fee_nano'])} to {statement['account']} ({statement['reason']})",
        *(
            f"{name} owed {format_money(amount_nano)} of it and gave"
            f" {format_open(min(amount_nano, statement['taken_nano'].get(name, 0)))}"
            for name, amount_nano in statement["owed_nano"].items()
        ),
        f"the treasury gave {format_money(statement['taken_nano'].get(TREASURY, 0))} in all",
        *(
            f"{name} gave {format_money(amount_nano)} of its emission back to the community"
            for name, amount_nano in statement.get("emission_nano", {}).items()
        ),
    ]


def leaves_pool(statement: Statement) -> str:
    """The pool that the refund took the answer out of, or empty where that was settled before."""
    pool = pool_account(statement["adapter"], statement["period"])
    return pool if pool in statement["owed_nano"] else ""

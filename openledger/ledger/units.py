"""The unit of account, where it isn't OPEN: stated once, before anything else, and never changed.

    openledger.unit/2   the register's first statement: the currency in whose millionths every amount is, and in which
                        the bounds of parameters are
    openledger.unit/1   the same, as it was written while the bounds of every ledger were those of OPEN

A ledger in a currency has no supply to distribute and nothing that vests. What there is was paid in: the operator
records each deposit as a transfer from genesis whose reference names it, and each round of withdrawals that was paid
out as a transfer back (`withdrawals`). So what genesis has given out is what was paid in less what was paid out. Beside
those, genesis lends the seats of the register and of rounds of nonces, one millionth each; what it holds for other
seats is freed, never posted.
"""

from collections.abc import Sequence

from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.money import OPEN, Unit
from openledger.ledger.accounts import GENESIS
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import Transfer

UNIT_1 = "openledger.unit/1"
UNIT = "openledger.unit/2"
UNITS = frozenset({UNIT_1, UNIT})
FIELDS = {name: {"unit"} for name in UNITS}
PAID_IN = "paid_in"
_SEATS = frozenset({"seat", "nonces_open"})


def check_unit(statement: Statement) -> None:
    """Raises Conflict (`unit_chosen`) for any but the first statement, InvalidInput for a unit that can't be."""
    if Unit(name=statement["unit"]) == OPEN:
        raise InvalidInput("a ledger is in OPEN where nothing else is said", code="invalid_unit", param="unit")
    if statement["number"]:
        raise unit_chosen("another", statement["unit"])


def unit_chosen(known: str, wanted: str) -> Conflict:
    return Conflict(
        f"this ledger's amounts are in {known} already, not in {wanted}",
        code="unit_chosen",
        param="unit",
        fix="the unit is chosen when an installation starts; start another one, in a folder of its own",
    )


def no_supply(unit: Unit) -> Conflict:
    return Conflict(
        f"this ledger is in {unit.name}: there is no supply to distribute",
        code="no_supply",
        param="unit",
        fix="record what was paid in: jobs/operate.py account ACCOUNT --fund AMOUNT --grant REFERENCE",
    )


def check_issued(transfers: Sequence[Transfer], unit: Unit) -> None:
    """Raises Corrupt where something leaves genesis that wasn't paid in."""
    for transfer in transfers:
        issues = transfer.debit == GENESIS and transfer.kind in ("single", "post") and unit != OPEN
        paid_in = transfer.kind == "single" and transfer.code == PAID_IN and transfer.reference != ""
        seated = transfer.kind == "single" and transfer.code in _SEATS and transfer.amount_nano == 1
        if issues and not paid_in and not seated:
            raise Corrupt(
                f"{transfer.transfer_id} issues {unit.name} that nobody paid in",
                code="unexplained_issue",
                param=transfer.transfer_id,
            )

"""Withdrawals: OPEN that leaves the ledger to be claimed elsewhere, and the rounds in which it is handed over.

    openledger.withdrawal/1   account -> holds:claims, for an address on another ledger or, in a currency, for whom the
                              operator pays by another payment
    openledger.claims/1       every withdrawal that waits, as one round: holds:claims -> holds:claims:<round>
    openledger.paid_out/1     a round that was paid in the ledger's currency: holds:claims:<round> -> genesis

A withdrawal belongs to one round and no other, so what a round hands over, as a list of (address, amount) pairs or as a
Merkle tree over it, is handed over once. Amounts of one address are summed within the round.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, OpenLedgerError
from openledger.core.ids import derived_id
from openledger.core.money import OPEN, SUPPLY_NANO, Unit, format_money, format_open, shown_unit
from openledger.ledger.accounts import GENESIS, check_account_id
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

WITHDRAWAL = "openledger.withdrawal/1"
CLAIMS = "openledger.claims/1"
PAID_OUT = "openledger.paid_out/1"
WAITING = "holds:claims"
MAX_ADDRESS = 140
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_PAYEE = re.compile(r"(?!0[xX])[A-Za-z0-9](?:[A-Za-z0-9 .,:/@+_-]*[A-Za-z0-9])?")
_FIELDS = {
    WITHDRAWAL: {"account", "address", "amount_nano", "minimum_nano", "key"},
    CLAIMS: {"round", "withdrawals"},
    PAID_OUT: {"round", "amount_nano", "reference"},
}


@dataclass(slots=True)
class Withdrawals:
    """What waits, by transfer id in the log's order, and how many rounds there were."""

    waiting: dict[str, tuple[str, int]] = field(default_factory=dict)
    rounds: int = 0
    unpaid_nano: dict[int, int] = field(default_factory=dict)  # by round

    def take(self, batch: Batch, unit: Unit = OPEN) -> None:
        """`unit` is the ledger's. Raises Corrupt, its code saying what is wrong; batches of other kinds pass."""
        statement, kind = batch.statement or {}, format_of(batch.statement)
        if kind not in _FIELDS:
            if any(_touches(transfer) for transfer in batch.transfers):
                raise _corrupt("money is withdrawn without saying why", "unexplained_withdrawal")
            return
        try:
            expected = self._planned(kind, statement, unit)
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _corrupt(f"the statement lacks or misstates something: {error}", "malformed_statement") from error
        if batch.transfers != (expected,):
            raise _corrupt("the transfer isn't the one that the statement calls for", "withdrawal_differs")
        if kind == WITHDRAWAL:
            self.waiting[expected.transfer_id] = (statement["address"], statement["amount_nano"])
        elif kind == CLAIMS:
            self.waiting.clear()
            self.rounds += 1
            self.unpaid_nano[self.rounds] = expected.amount_nano
        else:
            del self.unpaid_nano[statement["round"]]

    def _planned(self, kind: str, statement: Statement, unit: Unit) -> Transfer:
        if set(statement) != {"format", *_FIELDS[kind]}:
            raise InvalidInput("not the fields of a withdrawal", code="malformed_statement", param="statement")
        if kind == WITHDRAWAL:
            check_withdrawal(statement, unit)
            return withdrawal_transfer(statement)
        if kind == PAID_OUT:
            if self.unpaid_nano.get(statement["round"]) != statement["amount_nano"] or not statement["reference"]:
                raise Conflict("no such round waits to be paid out", code="wrong_round", param="round")
            return paid_out_transfer(statement)
        if statement["round"] != self.rounds + 1:
            raise Conflict("rounds are counted", code="wrong_round", param="round")
        if statement["withdrawals"] != [[name, *told] for name, told in self.waiting.items()]:
            raise Conflict("the round isn't what was waiting", code="wrong_claims", param="withdrawals")
        return claims_transfer(statement)


def check_withdrawal(statement: Statement, unit: Unit = OPEN) -> None:
    """Raises InvalidInput for an address, an account or an amount that can't be; below the minimum
    (`below_minimum`) it says what is missing."""
    check_account_id(statement["account"], "account")
    check_address(statement["address"], unit)
    amount_nano, minimum_nano = statement["amount_nano"], statement["minimum_nano"]
    if type(amount_nano) is not int or type(minimum_nano) is not int or not 0 < amount_nano <= SUPPLY_NANO:
        raise InvalidInput(
            f"{amount_nano!r} is no amount: a whole number of {shown_unit().smallest} from 1",
            code="invalid_amount",
            param="amount_nano",
        )
    if amount_nano < minimum_nano:
        raise InvalidInput(
            f"a withdrawal is at least {format_money(minimum_nano)}; this is"
            f" {format_open(minimum_nano - amount_nano)} less",
            code="below_minimum",
            param="amount_nano",
            fix="wait until more is there; nothing is lost meanwhile",
        )


def check_address(address: Any, unit: Unit = OPEN) -> str:
    """`address` if an EVM chain could have it or, in a currency, if it can say whom to pay. Raises InvalidInput."""
    on_chain = isinstance(address, str) and _ADDRESS.fullmatch(address) and int(address, 16)
    if not on_chain and not (unit != OPEN and _is_payee(address)):
        or_text = f", or by what the operator knows whom to pay, in 1 to {MAX_ADDRESS} letters, digits and .,:/@+_-"
        raise InvalidInput(
            f"{address!r} is no address",
            code="invalid_address",
            param="address",
            fix=f"write 0x and 40 hex digits, not all of them 0{'' if unit == OPEN else or_text}",
        )
    return str(address)


def is_on_chain(address: str) -> bool:
    """Whether a chain could have the address of a withdrawal; what else names a payee is paid by another payment."""
    return _ADDRESS.fullmatch(address) is not None


def _is_payee(address: Any) -> bool:
    return isinstance(address, str) and len(address) <= MAX_ADDRESS and _PAYEE.fullmatch(address) is not None


def _one_way(address: str) -> str:
    """Addresses on a chain are the same in capitals; what else names a payee stays as it is."""
    return address.lower() if is_on_chain(address) else address


def withdrawal_id(account: str, key: str) -> str:
    return derived_id("wdr", account, key)


def withdrawal_transfer(statement: Statement) -> Transfer:
    return Transfer(
        transfer_id=withdrawal_id(statement["account"], statement["key"]),
        debit=statement["account"],
        credit=WAITING,
        amount_nano=statement["amount_nano"],
        code="withdrawal",
        reference=_one_way(statement["address"]),
    )


def transfer_of(statement: Statement) -> Transfer:
    """The one that carries a withdrawal, a round or its payment."""
    kinds = {WITHDRAWAL: withdrawal_transfer, CLAIMS: claims_transfer, PAID_OUT: paid_out_transfer}
    return kinds[format_of(statement)](statement)


def claims_id(number: int) -> str:
    return f"claims.{number}"


def claims_account(number: int) -> str:
    """What was handed over in one round."""
    return f"{WAITING}:{number}"


def claims_transfer(statement: Statement) -> Transfer:
    return Transfer(
        transfer_id=claims_id(statement["round"]),
        debit=WAITING,
        credit=claims_account(statement["round"]),
        amount_nano=sum(amount_nano for _, _, amount_nano in statement["withdrawals"]),
        code="claims",
        reference=str(statement["round"]),
    )


def paid_out_id(number: int) -> str:
    return f"paid_out.{number}"


def paid_out_transfer(statement: Statement) -> Transfer:
    return Transfer(
        transfer_id=paid_out_id(statement["round"]),
        debit=claims_account(statement["round"]),
        credit=GENESIS,
        amount_nano=statement["amount_nano"],
        code="paid_out",
        reference=statement["reference"],
    )


def pairs(withdrawals: Sequence[Sequence[Any]]) -> list[tuple[str, int]]:
    """(address, nano-OPEN) of a round, by address; one pair for each address, those on a chain in lower case."""
    gathered: dict[str, int] = {}
    for _, address, amount_nano in withdrawals:
        gathered[_one_way(address)] = gathered.get(_one_way(address), 0) + amount_nano
    return sorted(gathered.items())


def withdrawal_lines(statement: Mapping[str, Any]) -> list[str]:
    return [f"{statement['account']} withdraws {format_money(statement['amount_nano'])} to {statement['address']}"]


def _touches(transfer: Transfer) -> bool:
    return transfer.debit.startswith(WAITING) or transfer.credit.startswith(WAITING)


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")

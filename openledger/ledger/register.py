"""The register: what the economy's statements make of parameters, supply, stake and votes, in the order of the log.

Statements stand in numbered places. The transfer that carries a statement has the place as its id, and ids are
permanent: of two writers that both want place n one is refused, reads what the other wrote, and tries the next. So the
register needs no lock, and an old process that comes back can't write over what happened since.

Every batch is the carrier and then the moves of money that the statement calls for. A statement says only what was
decided; what follows is planned from the state before it, by the same functions for whoever writes it (`plan`) and for
the audit (`take`). A statement that can't be planned is refused by name, and changes nothing.

The carrier holds one nano-OPEN of the register's own account and frees it: no money moves. The account got it from
genesis, once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, OpenLedgerError
from openledger.core.money import OPEN, Unit
from openledger.ledger import emissions, governance, parameters, stakes, units, vesting
from openledger.ledger.accounts import GENESIS, HOLDS
from openledger.ledger.emissions import Emissions
from openledger.ledger.governance import Governance
from openledger.ledger.parameters import ParameterBook
from openledger.ledger.refunds import REFUND
from openledger.ledger.stakes import Stakes
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer, TransferKind
from openledger.ledger.vesting import Move, Vesting

ACCOUNT = "holds:register"
SEAT_NANO = 1
_FIELDS = {
    **units.FIELDS,
    **parameters.FIELDS,
    **vesting.FIELDS,
    **stakes.FIELDS,
    **governance.FIELDS,
    **emissions.FIELDS,
}
FORMATS = frozenset(_FIELDS)
_GUARDED = (ACCOUNT, "holds:stake:", "holds:slash:", f"{GENESIS}:", vesting.COMMUNITY, vesting.ECOSYSTEM)
_CLOCKS_APART_MS = 3_600_000  # between who writes a statement and the ledger that dates it


@dataclass(slots=True)
class Register:
    """The state after `number` statements, the last of them made at `time_ms`."""

    number: int = 0
    time_ms: int = 0
    parameters: ParameterBook = field(default_factory=ParameterBook)
    vesting: Vesting = field(default_factory=Vesting)
    stakes: Stakes = field(default_factory=Stakes)
    governance: Governance = field(default_factory=Governance)
    emissions: Emissions = field(default_factory=Emissions)
    unit: Unit = OPEN

    def plan(self, statement: Statement) -> list[Transfer]:
        """The batch that writes `statement` next. Raises what its subject raises, InvalidInput for a shape that can't
        be, Conflict (`clock_went_backwards`) for a time before the last statement's."""
        kind, fields = format_of(statement), _FIELDS.get(format_of(statement), set())
        if set(statement) != {"format", "number", "time_ms", *fields}:
            raise InvalidInput("not the fields of a statement", code="malformed_statement", param="statement")
        if statement["number"] != self.number or type(statement["time_ms"]) is not int:
            raise Conflict(f"place {self.number} is the next", code="place_taken", param="number")
        if statement["time_ms"] < self.time_ms:
            raise Conflict(
                "this was made before the last statement of the register",
                code="clock_went_backwards",
                param="time_ms",
                fix="set the clock of the machine",
            )
        moves = _PLANS[kind](self, statement)
        return [*carrier(self.number), *(_transfer(self.number, place, move) for place, move in enumerate(moves))]

    def apply(self, statement: Statement) -> None:
        """Take what was planned, and written, into the state."""
        _APPLY[format_of(statement)](self, statement)
        self.number += 1
        self.time_ms = statement["time_ms"]

    def take(self, batch: Batch) -> None:
        """The audit's way: plan again, compare, apply. Raises Corrupt; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in FORMATS:
            _check_unguarded(batch)
            return
        try:
            planned = tuple(self.plan(statement))
        except Corrupt:
            raise
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _corrupt(f"the statement lacks or misstates something: {error}", "malformed_statement") from error
        if batch.transfers != planned:
            raise _corrupt("the transfers aren't those that the statement calls for", "moves_differ")
        if abs(batch.time_ms - statement["time_ms"]) > _CLOCKS_APART_MS:
            raise _corrupt("the statement's time is far from its batch's", "wrong_time")
        self.apply(statement)


def place_id(number: int) -> str:
    """The id of the transfer that carries statement `number`."""
    return f"register.{number:09d}"


def seat() -> Transfer:
    """The one transfer that gives the register its nano-OPEN."""
    return Transfer(transfer_id="register.seat", debit=GENESIS, credit=ACCOUNT, amount_nano=SEAT_NANO, code="seat")


def carrier(number: int) -> list[Transfer]:
    name = place_id(number)
    return [_carried(name, "pending", "", "place"), _carried(f"{name}.end", "void", name, "place_end")]


def _carried(transfer_id: str, kind: TransferKind, pending_id: str, code: str) -> Transfer:
    return Transfer(
        transfer_id=transfer_id,
        debit=ACCOUNT,
        credit=HOLDS,
        amount_nano=SEAT_NANO,
        code=code,
        kind=kind,
        pending_id=pending_id,
    )


def _transfer(number: int, place: int, move: Move) -> Transfer:
    debit, credit, amount_nano, code = move
    return Transfer(
        transfer_id=f"{place_id(number)}.{place}",
        debit=debit,
        credit=credit,
        amount_nano=amount_nano,
        code=code,
        reference=place_id(number),
    )


def _check_unguarded(batch: Batch) -> None:
    for transfer in batch.transfers:
        if transfer == seat():
            continue
        refunded = format_of(batch.statement) == REFUND
        back = refunded and transfer.credit == vesting.COMMUNITY
        guarded = transfer.debit.startswith(_GUARDED) or (transfer.credit.startswith(_GUARDED) and not back)
        if guarded or (transfer.debit.startswith("stakers:") and not refunded):
            raise _corrupt("money of stake, vesting or votes moves without saying why", "unexplained_move")


def _stake_values(register: Register) -> parameters.Values:
    return register.parameters.in_force


def _plan_unit(register: Register, statement: Statement) -> list[Move]:
    units.check_unit(statement)
    return []


def _apply_unit(register: Register, statement: Statement) -> None:
    register.unit = Unit(name=statement["unit"])
    if format_of(statement) == units.UNIT:
        register.parameters.bounds = parameters.bounds_in(register.unit)


def _plan_genesis(register: Register, statement: Statement) -> list[Move]:
    if register.unit != OPEN:
        raise units.no_supply(register.unit)
    return register.vesting.plan_genesis(statement)


def _plan_first(register: Register, statement: Statement) -> list[Move]:
    register.parameters.check_first(statement)
    return []


def _plan_period(register: Register, statement: Statement) -> list[Move]:
    register.parameters.check_period(statement)
    return []


def _plan_reward(register: Register, statement: Statement) -> list[Move]:
    _, values = register.parameters.of_period(statement["period"])
    return register.stakes.plan_reward(statement, register.parameters.periods[statement["period"]], values)


def _plan_slash_end(register: Register, statement: Statement) -> list[Move]:
    moves = register.stakes.plan_slash_end(statement, statement["time_ms"])
    if register.governance.is_appealed(statement["slash"], register.stakes, statement["time_ms"]):
        raise Conflict("the slash is appealed, and that isn't decided", code="still_appealed", param="slash")
    return moves


def _plan_delegate(register: Register, statement: Statement) -> list[Move]:
    register.stakes.plan_delegate(statement["account"], statement["delegate"])
    return []


def _plan_proposal(register: Register, statement: Statement) -> list[Move]:
    register.governance.check_proposal(
        statement, register.number, register.stakes, register.parameters, statement["time_ms"]
    )
    return []


def _plan_vote(register: Register, statement: Statement) -> list[Move]:
    register.governance.check_vote(statement, register.stakes, statement["time_ms"])
    return []


def _plan_cancel(register: Register, statement: Statement) -> list[Move]:
    register.governance.check_cancel(statement, register.stakes, statement["time_ms"])
    return []


_PLANS: dict[str, Callable[[Register, Any], list[Move]]] = {
    **dict.fromkeys(units.UNITS, _plan_unit),
    parameters.PARAMETERS: _plan_first,
    parameters.PERIOD: _plan_period,
    vesting.GENESIS_FORMAT: _plan_genesis,
    vesting.RELEASE: lambda r, s: r.vesting.plan_release(s, s["time_ms"]),
    stakes.STAKE: lambda r, s: r.stakes.plan_stake(s, _stake_values(r)),
    stakes.UNSTAKE: lambda r, s: r.stakes.plan_unstake(s, _stake_values(r), s["time_ms"]),
    stakes.RETURN: lambda r, s: r.stakes.plan_return(s, s["time_ms"]),
    stakes.REWARD: _plan_reward,
    stakes.SLASH: lambda r, s: r.stakes.plan_slash(s, _stake_values(r), r.number, s["time_ms"]),
    stakes.SLASH_END: _plan_slash_end,
    governance.DELEGATE: _plan_delegate,
    governance.PROPOSE: _plan_proposal,
    governance.VOTE: _plan_vote,
    governance.CANCEL: _plan_cancel,
    governance.EXECUTE: lambda r, s: r.governance.plan_execution(s, r.stakes, r.parameters, s["time_ms"]),
    emissions.EMISSION: lambda r, s: r.emissions.plan(s, r.parameters),
}
_APPLY: dict[str, Callable[[Register, Any], None]] = {
    **dict.fromkeys(units.UNITS, _apply_unit),
    parameters.PARAMETERS: lambda r, s: r.parameters.adopt(s["version"], s["values"]),
    parameters.PERIOD: lambda r, s: r.parameters.open(s["period"], s["version"], s["time_ms"]),
    vesting.GENESIS_FORMAT: lambda r, s: r.vesting.apply_genesis(s),
    vesting.RELEASE: lambda r, s: r.vesting.apply_release(s),
    stakes.STAKE: lambda r, s: r.stakes.apply_stake(s, r.number, s["time_ms"]),
    stakes.UNSTAKE: lambda r, s: r.stakes.apply_unstake(s, r.number, s["time_ms"]),
    stakes.RETURN: lambda r, s: r.stakes.apply_return(s),
    stakes.REWARD: lambda r, s: r.stakes.apply_reward(s),
    stakes.SLASH: lambda r, s: r.stakes.apply_slash(s, _stake_values(r), r.number, s["time_ms"]),
    stakes.SLASH_END: lambda r, s: r.stakes.decide_slash(s["slash"], "final"),
    governance.DELEGATE: lambda r, s: r.stakes.apply_delegate(s["account"], s["delegate"], s["time_ms"]),
    governance.PROPOSE: lambda r, s: r.governance.apply_proposal(s, r.stakes, r.parameters),
    governance.VOTE: lambda r, s: r.governance.apply_vote(s),
    governance.CANCEL: lambda r, s: r.governance.cancel(s["proposal"]),
    governance.EXECUTE: lambda r, s: r.governance.apply_execution(s, r.stakes, r.parameters),
    emissions.EMISSION: lambda r, s: r.emissions.apply(s),
}


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")

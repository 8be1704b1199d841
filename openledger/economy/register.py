"""The register's one way in: plan a statement on the newest state, write it in the next place, or read what came first.

The state is kept in memory and made of the log alone; opening it reads every statement once.
"""

from collections.abc import Callable, Sequence
from typing import Any

from openledger.core.clock import Clock
from openledger.core.errors import (
    Conflict,
    NotFound,
    OpenLedgerError,
    Unavailable,
)
from openledger.core.money import Unit
from openledger.economy.accounts import AccountBook, insufficient
from openledger.economy.parameters import Parameters
from openledger.economy.periods import period_name
from openledger.economy.port import LedgerPort
from openledger.ledger import accounts as names
from openledger.ledger import parameters, units
from openledger.ledger.register import ACCOUNT, Register, place_id, seat
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import CREATED, EXISTS, Transfer

Fields = Callable[[Register, int], dict[str, Any]]
_CLOCK_TOLERANCE_MS = 60_000
_MAX_TRIES = 8


class RegisterBook:
    """Over one ledger. Several may write: places are taken one by one, whoever is late reads and tries again."""

    def __init__(self, ledger: LedgerPort, clock: Clock):
        self._ledger = ledger
        self._clock = clock
        self.accounts = AccountBook(ledger)
        self._state = Register()
        self._sets: dict[int, Parameters] = {}
        self._begin()

    @property
    def state(self) -> Register:
        """As of the last write or `refresh`."""
        return self._state

    def now_ms(self) -> int:
        """The register's time: the clock's, never before the last statement."""
        return max(self._clock.now_ms(), self._state.time_ms)

    def refresh(self) -> Register:
        """Read what others wrote since."""
        while (entry := self._ledger.find(place_id(self._state.number))) is not None:
            self._state.take(self._ledger.batch(entry.seq))
        return self._state

    def write(self, form: str, fields: Fields) -> Statement:
        """Write the statement of format `form` that `fields` makes of the state and the time.

        Raises what planning it raises, InsufficientFunds where an account hasn't what it calls for, Unavailable
        (`clock_went_backwards`) where the clock is further behind than two machines may be apart; nothing is changed
        then.
        """
        self._check_clock()
        for _ in range(_MAX_TRIES):
            now_ms = self.now_ms()
            place = {"format": form, "number": self._state.number, "time_ms": now_ms}
            statement = {**place, **fields(self._state, now_ms)}
            transfers = self._state.plan(statement)
            self._check_funds(transfers)
            self.open_accounts(*(item.credit for item in transfers))
            results = self._ledger.commit(transfers, statement)
            if all(result in (CREATED, EXISTS) for result in results):
                self._state.apply(statement)
                return statement
            if self._ledger.find(place_id(statement["number"])) is None:
                raise self._refusal(results, transfers)
            self.refresh()
        raise Unavailable("the register is being written by others", code="register_busy", fix="try again")

    def parameters(self, period: str = "") -> Parameters:
        """The set in force in `period`; of the open one where it isn't given, or older than the register."""
        book = self._state.parameters
        version = book.periods[period if period in book.periods else book.current].version
        if version not in self._sets:
            self._sets[version] = Parameters(version=version, **book.versions[version])
        return self._sets[version]

    def choose(self, unit: Unit | None) -> None:
        """Begin the register of an empty one in `unit`. Raises Conflict (`unit_chosen`) where it is in another."""
        if unit is None or unit == self._state.unit:
            return
        if self._state.number:
            raise units.unit_chosen(self._state.unit.name, unit.name)
        self.write(units.UNIT, lambda *_: {"unit": unit.name})

    def begin(self, first: Parameters, period: str) -> str:
        """The open period, with `first` as the parameters of a register that has none yet. Periods up to `period`,
        which is open elsewhere, are opened where a restored log lacks them."""
        if not self._state.parameters.versions:
            self.write(parameters.PARAMETERS, lambda *_: {"version": first.version, "values": first.values})
        if not self._state.parameters.current:
            self.open_period(period)
        while (opened := int(self._state.parameters.current[1:])) < int(period[1:]):
            self.open_period(period_name(opened + 1))
        return self._state.parameters.current

    def open_period(self, period: str) -> None:
        self.write(parameters.PERIOD, lambda state, _: {"period": period, "version": state.parameters.newest})

    def open_accounts(self, *account_ids: str) -> None:
        """See `AccountBook.open`."""
        self.accounts.open(*account_ids)

    def _check_funds(self, transfers: Sequence[Transfer]) -> None:
        """Before anything is opened for them: whether whoever pays has it."""
        own: dict[str, int] = {}
        for transfer in transfers:
            if transfer.kind == "single":
                own[transfer.debit] = own.get(transfer.debit, 0) - transfer.amount_nano
                own[transfer.credit] = own.get(transfer.credit, 0) + transfer.amount_nano
        for name, change_nano in own.items():
            if change_nano < 0 and name != names.GENESIS:
                missing_nano = -change_nano - self.available_nano(name)
                if missing_nano > 0:
                    raise insufficient(name, -change_nano, missing_nano)

    def available_nano(self, account: str) -> int:
        """What an account may spend; 0 where there is none."""
        try:
            return max(0, self._ledger.balance(account).available_nano)
        except NotFound:
            return 0

    def _check_clock(self) -> None:
        behind_ms = self._state.time_ms - self._clock.now_ms()
        if behind_ms > _CLOCK_TOLERANCE_MS:
            raise Unavailable(
                f"the clock is {behind_ms} ms behind the register's last statement",
                code="clock_went_backwards",
                fix="set the clock of the machine; nothing was written",
            )

    def _begin(self) -> None:
        self.open_accounts(names.GENESIS, names.HOLDS, names.TREASURY, names.UNATTRIBUTED, ACCOUNT)
        (result,) = self._ledger.commit([seat()])
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the register has nothing to its name: {result}", code=result, param="register")
        self.refresh()

    def _refusal(self, results: Sequence[str], transfers: Sequence[Transfer]) -> OpenLedgerError:
        for result, transfer in zip(results, transfers, strict=True):
            if result == "exceeds_credits":
                missing_nano = transfer.amount_nano - self.available_nano(transfer.debit)
                return insufficient(transfer.debit, transfer.amount_nano, missing_nano)
            if result not in (CREATED, EXISTS, "linked_transfer_failed"):
                return Conflict(f"the ledger refused {transfer.transfer_id}: {result}", code=result)
        return Conflict("a part of this exists already, with something else", code="linked_transfer_failed")

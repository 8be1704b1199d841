"""The economy's parameter sets as the log holds them: numbered versions, each with what adopted it, and the periods.

    openledger.parameters/1   the first version, which the economy starts with; later ones come with executed proposals
    openledger.period/1       a period opens, and names the version that is in force in it

A version is in force from the first period that opens after it was adopted, and for all of that period. So an answer is
charged under the version of the period it was authorized in, and a pool is settled under the version its period opened
with, however late. Everything else (stake terms, a proposal's delays) follows the version of the open period.

A set may lack a name of `ADDED`, which logs of before don't know: it then has the value there, under which nothing
changes until a vote says otherwise.

Bounds are the ledger's: no vote passes them. In a currency they are as many whole units as they are OPEN, from the
entry on that says so (`units`). Beyond the single values: the parts of a fee and of a pool are whole; the cool-down
outlasts a vote and its timelock, or borrowed stake could decide and be gone; and an emission can't give a
buyer who is all parties at once more than the treasury keeps of what he pays.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN, SUPPLY_NANO, Unit
from openledger.core.shares import RULES
from openledger.ledger.accounts import check_account_id
from openledger.ledger.statements import Statement

PARAMETERS = "openledger.parameters/1"
PERIOD = "openledger.period/1"
FIELDS = {PARAMETERS: {"version", "values"}, PERIOD: {"period", "version"}}
Values = Mapping[str, Any]
Bounds = Mapping[str, tuple[int, int]]

_MINUTE_MS = 60_000
DAY_MS = 24 * 60 * _MINUTE_MS
_YEAR_MS = 366 * DAY_MS
_WHOLE_PPM = 10**6
_PPM = (0, _WHOLE_PPM)
BOUNDS: dict[str, tuple[int, int]] = {
    "contributors_ppm": _PPM,
    "owner_ppm": _PPM,
    "stakers_ppm": _PPM,
    "treasury_ppm": _PPM,
    "compute_ppm": _PPM,
    "reviewers_ppm": _PPM,
    "licensor_ppm": _PPM,
    "use_ppm": _PPM,
    "improvement_ppm": _PPM,
    "verbatim_ppm": (0, 0),
    "citation_ppm": (0, 0),
    "minimum_fee_nano": (1, NANO_PER_OPEN),
    "max_price_nano": (1, SUPPLY_NANO),
    "z_milli": (0, 100_000),
    "hold_timeout_ms": (1, DAY_MS),
    "posting_grace_ms": (0, 90 * DAY_MS),
    "dispute_deposit_nano": (1, SUPPLY_NANO),
    "dispute_window_ms": (0, _YEAR_MS),
    "dispute_resolve_ms": (1, _YEAR_MS),
    "dispute_tolerance_ppm": _PPM,
    "dispute_readable_ppm": _PPM,
    "retention_ms": (1, 10 * _YEAR_MS),
    "refund_window_ms": (0, _YEAR_MS),
    "payout_minimum_nano": (1, 10**6 * NANO_PER_OPEN),
    "contribution_deposit_nano": (0, 10**3 * NANO_PER_OPEN),
    "datanet_fee_nano": (0, 10**6 * NANO_PER_OPEN),
    "adapter_fee_nano": (0, 10**6 * NANO_PER_OPEN),
    "emission_match_ppm": _PPM,
    "emission_cap_nano": (0, SUPPLY_NANO),
    "stake_minimum_nano": (1, 10**6 * NANO_PER_OPEN),
    "stake_cooldown_ms": (DAY_MS, _YEAR_MS),
    "datanet_stake_ppm": _PPM,
    "slash_ppm": (0, 500_000),
    "slash_appeal_ms": (DAY_MS, 90 * DAY_MS),
    "bounty_cap_nano": (0, SUPPLY_NANO),
    "vote_delay_ms": (0, 30 * DAY_MS),
    "vote_period_ms": (DAY_MS, 90 * DAY_MS),
    "vote_timelock_ms": (0, 30 * DAY_MS),
    "vote_grace_ms": (DAY_MS, 90 * DAY_MS),
    "vote_threshold_nano": (1, SUPPLY_NANO // 100),
    "vote_quorum_ppm": (10_000, _WHOLE_PPM),
    "spend_quorum_ppm": (10_000, _WHOLE_PPM),
    "reputation_start_ppm": (0, 500_000),
    "reputation_step_ppm": (1_000, 500_000),
    "quota_low_rows": (1, 10**6),
    "quota_high_rows": (1, 10**6),
    "review_low_ppm": _PPM,
    "review_high_ppm": _PPM,
    "witnesses_required": (0, 63),
    "open_proposals": (0, 1000),
}
ADDED = {"witnesses_required": 0, "open_proposals": 0}
CHOICES = {"shares_rule": RULES}
ACCOUNTS = ("compute_account", "reviewers_account", "licensor_account")
FEE_ROLES = ("contributors", "owner", "stakers", "treasury", "compute", "reviewers", "licensor")
_PERIOD = re.compile(r"p[0-9]{4,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A period as it was opened. `ends_ms` is when the next one opened, 0 while it is the open one."""

    version: int
    opened_ms: int
    ends_ms: int = 0


@dataclass(slots=True)
class ParameterBook:
    """Every adopted version, and every period with its own. `current` is the open period, empty before the first."""

    versions: dict[int, Values] = field(default_factory=dict)
    periods: dict[str, Opened] = field(default_factory=dict)
    current: str = ""
    bounds: Bounds = field(default_factory=lambda: BOUNDS)

    @property
    def newest(self) -> int:
        """The version that was adopted last; 0 before the first."""
        return max(self.versions, default=0)

    @property
    def in_force(self) -> Values:
        """The values of the open period. Raises Conflict before the first one opened."""
        if not self.current:
            raise Conflict("no period is open yet", code="no_period", param="period")
        return self.versions[self.periods[self.current].version]

    def of_period(self, period: str) -> tuple[int, Values]:
        """Version and values under which `period` is settled. Raises NotFound where the log doesn't know it."""
        opened = self.periods.get(period)
        if opened is None:
            raise NotFound(f"the log doesn't say when {period} opened", code="period_not_found", param="period")
        return opened.version, self.versions[opened.version]

    def check_first(self, statement: Statement) -> None:
        """Raises Conflict for a second first version, InvalidInput for values out of bounds."""
        if self.versions:
            raise Conflict("a later version comes with a proposal", code="not_governed", param="version")
        if type(statement["version"]) is not int or statement["version"] < 1:
            raise InvalidInput("versions are counted from 1", code="invalid_parameters", param="version")
        check_values(statement["values"], self.bounds)

    def check_period(self, statement: Statement) -> None:
        """Raises Conflict unless `statement` opens a later period than the last, under the newest version."""
        period = statement["period"]
        if not isinstance(period, str) or not _PERIOD.fullmatch(period):
            raise InvalidInput(f"{period!r} is no period", code="invalid_period", param="period", fix="like p0001")
        if self.current and number_of(period) != number_of(self.current) + 1:
            raise Conflict(f"{period} doesn't follow {self.current}", code="period_out_of_order", param="period")
        if statement["version"] != self.newest or not self.versions:
            raise Conflict(f"{period} opens under version {self.newest}", code="wrong_version", param="version")

    def adopt(self, version: int, values: Values) -> None:
        self.versions[version] = {**ADDED, **values}

    def open(self, period: str, version: int, time_ms: int) -> None:
        last = self.periods.get(self.current)
        if last is not None:
            self.periods[self.current] = Opened(version=last.version, opened_ms=last.opened_ms, ends_ms=time_ms)
        self.periods[period] = Opened(version=version, opened_ms=time_ms)
        self.current = period

    def changed(self, changes: Values) -> dict[str, Any]:
        """The newest version's values with `changes`. Raises InvalidInput for what can't be changed so."""
        if not isinstance(changes, Mapping) or not changes:
            raise InvalidInput("a change names parameters and their values", code="invalid_proposal", param="changes")
        unknown = sorted(set(changes) - BOUNDS.keys() - CHOICES.keys() - set(ACCOUNTS))
        if unknown:
            raise InvalidInput(
                f"no parameter is called {', '.join(map(str, unknown))}",
                code="unknown_parameter",
                param="changes",
                fix="'openledger govern parameters' lists them",
            )
        values = {**self.versions[self.newest], **changes}
        check_values(values, self.bounds)
        return values

    def check_usage(self, usage: Statement) -> None:
        """Raises Corrupt where a fee was divided otherwise than the version that it names says."""
        version = usage.get("parameters")
        if not self.versions or type(version) is not int or version < min(self.versions):
            return  # sold before the log had parameters
        if version not in self.versions:
            raise Corrupt(f"there is no version {version}", code="wrong_version", param="statement")
        values = self.versions[version]
        if usage["split"] != fee_split(values) or usage["minimum_fee_nano"] != values["minimum_fee_nano"]:
            raise Corrupt(f"the fee isn't divided as version {version} says", code="wrong_split", param="statement")

    def check_settlement(self, settlement: Statement) -> None:
        """Raises Corrupt where a pool was settled under another version than its period opened with."""
        opened = self.periods.get(settlement["period"])
        if opened is not None and settlement["parameters"] != opened.version:
            raise Corrupt(
                f"{settlement['period']} opened under version {opened.version}", code="wrong_version", param="statement"
            )


def fee_split(values: Values) -> dict[str, int]:
    """Role to parts per million of a fee; the roles that came later are there only where they get something."""
    parts = {role: values[f"{role}_ppm"] for role in FEE_ROLES}
    return {role: part for role, part in parts.items() if part or role in FEE_ROLES[:4]}


def number_of(period: str) -> int:
    return int(period[1:])


def bounds_in(unit: Unit) -> dict[str, tuple[int, int]]:
    """`BOUNDS`, with as many whole units as they have OPEN; what there can be at most is the same number in each."""
    return {
        name: (least, unit.as_many(most) if name.endswith("_nano") and most != SUPPLY_NANO else most)
        for name, (least, most) in BOUNDS.items()
    }


def check_values(values: Values, bounds: Bounds = BOUNDS) -> None:
    """Raises InvalidInput naming the first parameter that is missing, unknown or out of `bounds`."""
    names = {*BOUNDS, *CHOICES, *ACCOUNTS}
    if not isinstance(values, Mapping) or not names - ADDED.keys() <= set(values) <= names:
        raise InvalidInput("not the parameters of the economy", code="invalid_parameters", param="parameters")
    values = {**ADDED, **values}
    for name in ("contributors", "owner", "stakers", "treasury"):  # before bounds: a split says more than a bound
        if type(values[f"{name}_ppm"]) is not int or values[f"{name}_ppm"] < 0:
            raise _split_error("a fee", "split", -1)
    _check_whole(fee_split(values), "a fee", "split")
    _check_whole({name: values[f"{name}_ppm"] for name in ("use", "improvement")}, "a pool", "pool_split")
    for name, (least, most) in bounds.items():
        _check_bound(name, values[name], least, most)
    for name, known in CHOICES.items():
        if values[name] not in known:
            raise InvalidInput(
                f"{name} is one of {', '.join(known)}, not {values[name]!r}", code="invalid_parameters", param=name
            )
    for name in ACCOUNTS:
        if values[name] != "":
            check_account_id(values[name], name)
    _check_together(values)


def _check_bound(name: str, value: Any, least: int, most: int) -> None:
    if name in ("verbatim_ppm", "citation_ppm") and (type(value) is not int or value != 0):
        channel = name.removesuffix("_ppm")
        raise InvalidInput(
            f"{channel} can't weigh {value!r} in the shares: its scores have no error and no gain",
            code="unsupported_channel_weight",
            param=name,
            fix="leave it at 0",
        )
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(
            f"{name} is a whole number from {least} to {most}, not {value!r}",
            code="invalid_parameters",
            param=name,
            fix="stay within the bounds; no proposal can pass them",
        )


def _check_together(values: Values) -> None:
    if values["retention_ms"] < values["dispute_window_ms"] + values["dispute_resolve_ms"] + DAY_MS:
        raise InvalidInput(
            "content is kept for less time than a dispute of it can last",
            code="invalid_parameters",
            param="retention_ms",
            fix="keep it for dispute_window_ms + dispute_resolve_ms and at least one day",
        )
    if values["stake_cooldown_ms"] < values["vote_period_ms"] + values["vote_timelock_ms"]:
        raise InvalidInput(
            "stake could be gone before the vote it decided is executed",
            code="invalid_parameters",
            param="stake_cooldown_ms",
            fix="make it at least vote_period_ms + vote_timelock_ms",
        )
    if values["contributors_ppm"] * values["emission_match_ppm"] > values["treasury_ppm"] * _WHOLE_PPM:
        raise InvalidInput(
            "an emission would give back more than the treasury keeps of a fee: buying from oneself would pay",
            code="invalid_parameters",
            param="emission_match_ppm",
            fix="keep contributors_ppm x emission_match_ppm at most treasury_ppm x 1000000",
        )


def _check_whole(parts: Mapping[str, Any], whole: str, param: str) -> None:
    if any(type(part) is not int or part < 0 for part in parts.values()) or sum(parts.values()) != _WHOLE_PPM:
        raise _split_error(whole, param, sum(part for part in parts.values() if isinstance(part, int)))


def _split_error(whole: str, param: str, total: int) -> InvalidInput:
    said = f"sum to {total} parts per million" if total >= 0 else "are no shares of it"
    return InvalidInput(
        f"the parts of {whole} {said}",
        code="invalid_split",
        param=param,
        fix=f"give non-negative whole numbers that sum to {_WHOLE_PPM}",
    )

"""Stake: OPEN that an account puts behind an adapter or a Datanet, what it earns, and how it is lost.

    stake          account -> holds:stake:<object>; it counts from this moment
    unstake        it counts no more, and comes back when the cool-down is over
    stake_return   the cool-down is over: back to the account
    stake_reward   a period's stakers' part of one adapter, once the period is closed
    slash          a part of every position on the object, cooling ones too, into escrow while it can be appealed
    slash_end      nobody appealed in time, or without success: to the treasury

    weight_a = sum over positions of a of  ppm x (integral of the staked amount over the period, nano-OPEN x ms)
    payout_a = split(stakers' part, weight)_a

ppm is 10^6 for stake on the adapter itself and `datanet_stake_ppm` for stake on a Datanet it was trained on. Sums are
exact: integers of any length, then one split by largest remainders. Slashing follows the parameters alone: whoever
calls for it says why and shows evidence, and can't choose how much.

Stake is voting power. `Powers` keeps who had how much when, so that a vote counts what was there at its snapshot.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound, idempotency_conflict
from openledger.core.ids import NAME_PATTERN
from openledger.core.money import SUPPLY_NANO, format_money, shown_unit, split
from openledger.ledger.accounts import TREASURY, check_account_id
from openledger.ledger.parameters import Opened, Values
from openledger.ledger.statements import Statement
from openledger.ledger.vesting import Move

STAKE = "openledger.stake/1"
UNSTAKE = "openledger.unstake/1"
RETURN = "openledger.stake_return/1"
REWARD = "openledger.stake_reward/1"
SLASH = "openledger.slash/1"
SLASH_END = "openledger.slash_end/1"
FIELDS = {
    STAKE: {"account", "object", "amount_nano", "key"},
    UNSTAKE: {"account", "object", "amount_nano", "ends_ms", "key"},
    RETURN: {"unstake"},
    REWARD: {"adapter", "period", "datanets", "pool_nano", "weights", "payouts_nano"},
    SLASH: {"object", "cause", "evidence", "taken_nano", "ends_ms"},
    SLASH_END: {"slash"},
}
CAUSES = frozenset({"false_lineage", "poisoned_rows", "false_scores", "withheld_nonce"})
MAX_STAKERS = 4000  # a reward is one batch, and a batch is limited
_OBJECT = re.compile(rf"(adapter|datanet):{NAME_PATTERN.pattern}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WHOLE_PPM = 10**6
Track = list[tuple[int, int]]  # (from when on, how much), by time
SlashState = Literal["appealable", "returned", "final"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """Stake on its way back."""

    account: str
    object: str
    amount_nano: int
    ends_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slash:
    """What a slash took, by account, and until when it can be appealed."""

    object: str
    cause: str
    evidence: str
    taken_nano: Mapping[str, int]
    ends_ms: int
    state: SlashState = "appealable"


@dataclass(slots=True)
class Powers:
    """Voting power over time: of each delegate, and of all."""

    tracks: dict[str, Track] = field(default_factory=dict)
    total: Track = field(default_factory=list)
    delegates: dict[str, str] = field(default_factory=dict)

    def of(self, delegate: str, time_ms: int) -> int:
        return _at(self.tracks.get(delegate, []), time_ms)

    def total_at(self, time_ms: int) -> int:
        return _at(self.total, time_ms)

    def delegate_of(self, account: str) -> str:
        """Who votes with `account`'s stake: itself, unless it named somebody."""
        return self.delegates.get(account, account)

    def change(self, account: str, difference_nano: int, time_ms: int) -> None:
        """`account` has more or less staked from now on."""
        _step(self.tracks.setdefault(self.delegate_of(account), []), difference_nano, time_ms)
        _step(self.total, difference_nano, time_ms)

    def delegate(self, account: str, delegate: str, staked_nano: int, time_ms: int) -> None:
        _step(self.tracks.setdefault(self.delegate_of(account), []), -staked_nano, time_ms)
        self.delegates[account] = delegate
        _step(self.tracks.setdefault(delegate, []), staked_nano, time_ms)


@dataclass(slots=True)
class Stakes:
    """Every position by object and account, with its history; `keys` are the numbers of the statements that callers'
    keys stand for."""

    positions: dict[str, dict[str, Track]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    cooling: dict[int, Cooling] = field(default_factory=dict)
    slashes: dict[int, Slash] = field(default_factory=dict)
    rewarded: set[tuple[str, str]] = field(default_factory=set)
    powers: Powers = field(default_factory=Powers)
    keys: dict[tuple[str, str], int] = field(default_factory=dict)

    def staked_nano(self, account: str, of: str) -> int:
        return _now(self.positions.get(of, {}).get(account, []))

    def of_account(self, account: str) -> dict[str, int]:
        """Object to what `account` has staked on it now."""
        held = {of: self.staked_nano(account, of) for of in sorted(self.positions)}
        return {of: amount_nano for of, amount_nano in held.items() if amount_nano}

    def on_object(self, of: str) -> dict[str, int]:
        """Account to what it has staked on the object now."""
        held = {account: _now(track) for account, track in sorted(self.positions.get(of, {}).items())}
        return {account: amount_nano for account, amount_nano in held.items() if amount_nano}

    def behind(self, delegate: str) -> dict[str, int]:
        """Account to what it has staked now, of all whose stake `delegate` votes with."""
        named = [account for account, named in self.powers.delegates.items() if named == delegate]
        accounts = {*named, *([delegate] if self.powers.delegate_of(delegate) == delegate else [])}
        held = {account: sum(self.of_account(account).values()) for account in sorted(accounts)}
        return {account: amount_nano for account, amount_nano in held.items() if amount_nano}

    def is_backed(self, adapter: str, datanet: str) -> bool:
        """Whether anything is staked on the adapter or its Datanet, so that there are stakers to earn."""
        return bool(self.totals.get(f"adapter:{adapter}") or self.totals.get(f"datanet:{datanet}"))

    def weights(self, adapter: str, datanets: Iterable[str], period: Opened, datanet_ppm: int) -> dict[str, int]:
        """Account to ppm x nano-OPEN x ms over a closed period; accounts without any are left out."""
        ppm = {f"adapter:{adapter}": _WHOLE_PPM, **{f"datanet:{name}": datanet_ppm for name in datanets}}
        gathered: dict[str, int] = {}
        for of, factor in ppm.items():
            for account, track in self.positions.get(of, {}).items():
                weight = factor * _integral(track, period.opened_ms, period.ends_ms)
                if weight:
                    gathered[account] = gathered.get(account, 0) + weight
        return gathered

    def plan_stake(self, statement: Statement, values: Values) -> list[Move]:
        """Raises InvalidInput below the minimum or for what can't be staked on, Conflict where an object is full."""
        account, of, amount_nano = _checked(statement)
        if amount_nano < values["stake_minimum_nano"]:
            raise InvalidInput(
                f"a stake is at least {format_money(values['stake_minimum_nano'])}",
                code="stake_too_small",
                param="amount_nano",
            )
        if len(self.on_object(of)) >= MAX_STAKERS and not self.staked_nano(account, of):
            raise Conflict(f"{of} has {MAX_STAKERS} stakers", code="object_full", param="object")
        self._check_key(statement)
        return [(account, stake_account(of), amount_nano, "stake")]

    def apply_stake(self, statement: Statement, number: int, time_ms: int) -> None:
        self._change(statement["account"], statement["object"], statement["amount_nano"], time_ms)
        self.keys[statement["account"], statement["key"]] = number

    def plan_unstake(self, statement: Statement, values: Values, time_ms: int) -> list[Move]:
        """Raises Conflict for more than is staked, or where a rest below the minimum would stay."""
        account, of, amount_nano = _checked(statement)
        staked_nano = self.staked_nano(account, of)
        if amount_nano > staked_nano:
            raise Conflict(
                f"{account} has {format_money(staked_nano)} staked on {of}", code="not_staked", param="amount_nano"
            )
        if 0 < staked_nano - amount_nano < values["stake_minimum_nano"]:
            raise Conflict("what would stay is below the minimum", code="stake_too_small", param="amount_nano",
                           fix="unstake all of it, or less")  # fmt: skip
        if statement["ends_ms"] != time_ms + values["stake_cooldown_ms"]:
            raise InvalidInput("the cool-down ends at another time", code="wrong_cooldown", param="ends_ms")
        self._check_key(statement)
        return []

    def apply_unstake(self, statement: Statement, number: int, time_ms: int) -> None:
        account, of, amount_nano = statement["account"], statement["object"], statement["amount_nano"]
        self._change(account, of, -amount_nano, time_ms)
        self.cooling[number] = Cooling(
            account=account, object=of, amount_nano=amount_nano, ends_ms=statement["ends_ms"]
        )
        self.keys[account, statement["key"]] = number

    def plan_return(self, statement: Statement, time_ms: int) -> list[Move]:
        """Raises NotFound where nothing cools under that number (any more), Conflict before the cool-down is over."""
        cooling = self.cooling.get(statement["unstake"])
        if cooling is None:
            raise NotFound("no such stake is cooling down", code="unstake_not_found", param="unstake")
        if time_ms < cooling.ends_ms:
            raise Conflict("the cool-down isn't over", code="still_cooling", param="unstake")
        if not cooling.amount_nano:
            return []
        return [(stake_account(cooling.object), cooling.account, cooling.amount_nano, "stake_return")]

    def apply_return(self, statement: Statement) -> None:
        del self.cooling[statement["unstake"]]

    def plan_reward(self, statement: Statement, period: Opened, values: Values) -> list[Move]:
        """Raises Conflict for a second reward of one pool or an open period, InvalidInput for wrong weights."""
        adapter, name, pool_nano = statement["adapter"], statement["period"], statement["pool_nano"]
        if (adapter, name) in self.rewarded:
            raise Conflict(f"the stakers of {adapter} were paid for {name}", code="already_rewarded", param="period")
        if not period.ends_ms:
            raise Conflict(f"{name} is still open", code="period_open", param="period")
        if type(pool_nano) is not int or pool_nano < 1:
            raise InvalidInput("there is nothing to pay", code="invalid_amount", param="pool_nano")
        weights = self.weights(adapter, statement["datanets"], period, values["datanet_stake_ppm"])
        if statement["weights"] != weights or statement["payouts_nano"] != reward_payouts(pool_nano, weights):
            raise InvalidInput("the payouts don't follow from the stakes", code="wrong_rewards", param="payouts_nano")
        source = reward_account(adapter, name)
        return [
            (source, account, amount_nano, "stake_reward")
            for account, amount_nano in sorted(statement["payouts_nano"].items())
            if amount_nano
        ]

    def apply_reward(self, statement: Statement) -> None:
        self.rewarded.add((statement["adapter"], statement["period"]))

    def plan_slash(self, statement: Statement, values: Values, number: int, time_ms: int) -> list[Move]:
        """Raises InvalidInput for a cause or evidence that can't be, Conflict for the same evidence twice, NotFound
        where nothing is staked."""
        of, cause, evidence = statement["object"], statement["cause"], statement["evidence"]
        check_object(of)
        if cause not in CAUSES or not isinstance(evidence, str) or not _DIGEST.fullmatch(evidence):
            raise InvalidInput(
                f"stake is slashed for {', '.join(sorted(CAUSES))}, on evidence named by its SHA-256",
                code="invalid_slash",
                param="cause",
            )
        if any((slash.object, slash.evidence) == (of, evidence) for slash in self.slashes.values()):
            raise Conflict(f"{of} was slashed on that evidence", code="already_slashed", param="evidence")
        taken = self.slashed_nano(of, values["slash_ppm"])
        if not taken:
            raise NotFound(f"nothing that could be slashed is staked on {of}", code="nothing_staked", param="object")
        if statement["taken_nano"] != taken or statement["ends_ms"] != time_ms + values["slash_appeal_ms"]:
            raise InvalidInput("the rules take something else", code="wrong_slash", param="taken_nano")
        return [(stake_account(of), escrow_account(number), sum(taken.values()), "slash")]

    def slashed_nano(self, of: str, slash_ppm: int) -> dict[str, int]:
        """What a slash of the object takes now, by account; each position rounded down."""
        taken: dict[str, int] = {}
        held = [*self.on_object(of).items()]
        held += [(one.account, one.amount_nano) for one in self.cooling.values() if one.object == of]
        for account, amount_nano in held:
            taken[account] = taken.get(account, 0) + _part(amount_nano, slash_ppm)
        return {account: amount_nano for account, amount_nano in sorted(taken.items()) if amount_nano}

    def apply_slash(self, statement: Statement, values: Values, number: int, time_ms: int) -> None:
        of, ppm = statement["object"], values["slash_ppm"]
        for account, amount_nano in self.on_object(of).items():
            self._change(account, of, -_part(amount_nano, ppm), time_ms)
        for key, one in self.cooling.items():
            if one.object == of:
                rest_nano = one.amount_nano - _part(one.amount_nano, ppm)
                self.cooling[key] = Cooling(account=one.account, object=of, amount_nano=rest_nano, ends_ms=one.ends_ms)
        told = {name: statement[name] for name in ("object", "cause", "evidence", "taken_nano", "ends_ms")}
        self.slashes[number] = Slash(**told)

    def plan_slash_end(self, statement: Statement, time_ms: int) -> list[Move]:
        """Raises NotFound, Conflict before the appeal window is over or after the slash was decided."""
        slash = self.open_slash(statement["slash"])
        if time_ms <= slash.ends_ms:
            raise Conflict("the slash can still be appealed", code="still_appealable", param="slash")
        return [(escrow_account(statement["slash"]), TREASURY, sum(slash.taken_nano.values()), "slash_end")]

    def return_moves(self, number: int) -> list[Move]:
        """What an appeal that was upheld gives back: to the account, free, not staked again."""
        taken = self.open_slash(number).taken_nano
        return [(escrow_account(number), account, amount, "slash_return") for account, amount in sorted(taken.items())]

    def open_slash(self, number: Any) -> Slash:
        slash = self.slashes.get(number) if type(number) is int else None
        if slash is None:
            raise NotFound(f"there is no slash {number!r}", code="slash_not_found", param="slash")
        if slash.state != "appealable":
            raise Conflict(f"slash {number} is decided", code="slash_decided", param="slash")
        return slash

    def decide_slash(self, number: int, state: SlashState) -> None:
        slash = self.slashes[number]
        self.slashes[number] = Slash(
            object=slash.object,
            cause=slash.cause,
            evidence=slash.evidence,
            taken_nano=slash.taken_nano,
            ends_ms=slash.ends_ms,
            state=state,
        )

    def plan_delegate(self, account: str, delegate: str) -> None:
        """Raises InvalidInput for names that can't be, Forbidden for the house's own accounts."""
        check_account_id(account, "account")
        check_account_id(delegate, "delegate")
        if not is_person(account) or not is_person(delegate):
            raise Forbidden(
                "only persons vote", code="not_a_voter", param="delegate", fix="name an account like user:bob"
            )

    def apply_delegate(self, account: str, delegate: str, time_ms: int) -> None:
        staked_nano = sum(self.of_account(account).values())
        self.powers.delegate(account, delegate, staked_nano, time_ms)

    def _change(self, account: str, of: str, difference_nano: int, time_ms: int) -> None:
        _step(self.positions.setdefault(of, {}).setdefault(account, []), difference_nano, time_ms)
        self.totals[of] = self.totals.get(of, 0) + difference_nano
        self.powers.change(account, difference_nano, time_ms)

    def _check_key(self, statement: Statement) -> None:
        check_key(statement["key"])
        if (statement["account"], statement["key"]) in self.keys:
            raise idempotency_conflict()


def check_object(of: Any) -> str:
    """`of` if one can stake on it. Raises InvalidInput."""
    if not isinstance(of, str) or not _OBJECT.fullmatch(of) or ".." in of:
        raise InvalidInput(
            f"{of!r} is nothing to stake on",
            code="invalid_object",
            param="object",
            fix="write adapter:NAME or datanet:NAME",
        )
    return of


def is_person(account: str) -> bool:
    return account.partition(":")[0] in ("user", "contributor")


def check_key(key: Any) -> None:
    """Raises InvalidInput for a key that can't be."""
    if not isinstance(key, str) or not 0 < len(key) <= 255:
        raise InvalidInput(
            "an idempotency key has 1 to 255 characters", code="invalid_idempotency_key", param="idempotency_key"
        )


def stake_account(of: str) -> str:
    """Where the stake on one object lies."""
    return f"holds:stake:{of}"


def reward_account(adapter: str, period: str) -> str:
    """Where the stakers' parts of one adapter's fees in one period wait."""
    return f"stakers:{adapter}:{period}"


def escrow_account(number: int) -> str:
    """Where what slash `number` took waits while it can be appealed."""
    return f"holds:slash:{number}"


def reward_payouts(pool_nano: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Who gets what of the stakers' part; the treasury all of it where nobody had anything staked for any time."""
    return split(pool_nano, weights) if weights else {TREASURY: pool_nano}


def _checked(statement: Statement) -> tuple[str, str, int]:
    account, amount_nano = statement["account"], statement["amount_nano"]
    if not is_person(check_account_id(account, "account")):
        raise InvalidInput(f"{account!r} is nobody's account", code="invalid_account", param="account")
    if type(amount_nano) is not int or not 0 < amount_nano <= SUPPLY_NANO:
        raise InvalidInput(
            f"{amount_nano!r} is no amount: a whole number of {shown_unit().smallest} from 1", code="invalid_amount",
            param="amount_nano",
        )  # fmt: skip
    return account, check_object(statement["object"]), amount_nano


def _part(amount_nano: int, ppm: int) -> int:
    return amount_nano * ppm // _WHOLE_PPM


def _now(track: Track) -> int:
    return track[-1][1] if track else 0


def _at(track: Track, time_ms: int) -> int:
    place = bisect_right(track, time_ms, key=lambda step: step[0])
    return track[place - 1][1] if place else 0


def _step(track: Track, difference_nano: int, time_ms: int) -> None:
    amount_nano = _now(track) + difference_nano
    if track and track[-1][0] == time_ms:
        track[-1] = (time_ms, amount_nano)
    else:
        track.append((time_ms, amount_nano))


def _integral(track: Track, from_ms: int, to_ms: int) -> int:
    """Sum of amount x time over [from, to)."""
    total = 0
    for place, (start_ms, amount_nano) in enumerate(track):
        end_ms = track[place + 1][0] if place + 1 < len(track) else to_ms
        total += amount_nano * max(0, min(end_ms, to_ms) - max(start_ms, from_ms))
    return total

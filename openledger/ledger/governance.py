"""Governance: proposals, votes and what they execute, in the words and states of OpenZeppelin's Governor.

    proposed --delay--> snapshot --period--> deadline --timelock--> eta --grace--> expires
    Pending             Active               Queued (or Defeated)  executed, else Expired

    Pending     nobody votes yet; the proposer may still cancel            Canceled
    Active      votes count by the power that each voter had at the snapshot
    Defeated    the deadline passed without the quorum, or with no more for than against
    Succeeded   passed, and there is nothing to execute (a text)
    Queued      passed; it executes by itself once the timelock is over    Executed
    Expired     passed, and could not be executed within the grace

Power is staked OPEN, one nano-OPEN one vote, with the account or the delegate it named. It is taken at the snapshot:
what is staked later counts nothing. Quorum is For and Abstain together, of all power at the snapshot. The delays,
threshold and quorum of a proposal are those in force when it was made. The treasury pays for anything; `unattributed`
for bounties alone, and at most `bounty_cap_nano` in one period. Whatever spends needs `spend_quorum_ppm`, so that a
minority can't pay itself while the others sleep. Each stake is behind at most `open_proposals` that aren't decided for
each threshold of it, whoever it is delegated to meanwhile, so that nobody hides one among a thousand. The ledger's
rules are nobody's to vote on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound, idempotency_conflict
from openledger.core.money import SUPPLY_NANO, format_money, format_open, shown_unit, split
from openledger.ledger.accounts import TREASURY, UNATTRIBUTED, check_account_id, pool_key
from openledger.ledger.parameters import ParameterBook, Values
from openledger.ledger.stakes import Stakes, check_key, check_object, is_person
from openledger.ledger.statements import Statement
from openledger.ledger.vesting import ECOSYSTEM, Move

PROPOSE = "openledger.proposal/1"
VOTE = "openledger.vote/1"
CANCEL = "openledger.proposal_cancel/1"
EXECUTE = "openledger.proposal_execute/1"
DELEGATE = "openledger.delegate/1"
_TIMES = ("snapshot_ms", "deadline_ms", "eta_ms", "expires_ms")
FIELDS = {
    PROPOSE: {"proposal", "proposer", "title", "text", "action", "key", "quorum_ppm", *_TIMES},
    VOTE: {"proposal", "voter", "support", "power_nano"},
    CANCEL: {"proposal", "account"},
    EXECUTE: {"proposal", "version"},
    DELEGATE: {"account", "delegate"},
}
SUPPORT = ("against", "for", "abstain")
SOURCES = (TREASURY, ECOSYSTEM)
_ACTIONS = {
    "text": set(),
    "parameters": {"changes"},
    "spend": {"source", "recipient", "amount_nano"},
    "bounty": {"recipient", "amount_nano", "bounty", "object", "from_nano"},
    "appeal": {"slash"},
}
_UNNAMED_BOUNTY = {"recipient", "amount_nano", "bounty"}  # of logs from before bounties named their pools
_MAX_POOLS = 1000
_MAX_TITLE, _MAX_TEXT = 200, 20_000
_WHOLE_PPM = 10**6
State = Literal["Pending", "Active", "Canceled", "Defeated", "Succeeded", "Queued", "Expired", "Executed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One proposal and its votes. `votes` are (support, nano-OPEN) by voter; `total_nano` is all power at the
    snapshot, known once that has come."""

    proposal: str
    proposer: str
    title: str
    text: str
    action: Mapping[str, Any]
    quorum_ppm: int
    snapshot_ms: int
    deadline_ms: int
    eta_ms: int
    expires_ms: int
    votes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    ended: Literal["", "Canceled", "Executed"] = ""

    def tally(self) -> dict[str, int]:
        """Nano-OPEN for each kind of support."""
        counted = dict.fromkeys(SUPPORT, 0)
        for support, power_nano in self.votes.values():
            counted[support] += power_nano
        return counted

    def quorum_nano(self, total_nano: int) -> int:
        """What For and Abstain have to make together; rounded up, and at least one nano-OPEN."""
        return max(1, -(-total_nano * self.quorum_ppm // _WHOLE_PPM))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A bounty that was executed: by which statement of the register, and the dispute window in force then.
    `pools_nano` is by adapter and period, and empty in logs from before bounties named their pools."""

    number: int
    time_ms: int
    window_ms: int
    amount_nano: int
    pools_nano: Mapping[tuple[str, str], int]


@dataclass(slots=True)
class Governance:
    proposals: dict[str, Proposal] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    bounties_nano: dict[str, int] = field(default_factory=dict)
    spent: list[Spent] = field(default_factory=list)  # every bounty, in the order of the log
    names_pools: bool = False
    backing: dict[str, Mapping[str, int]] = field(default_factory=dict)  # of the threshold, by proposal and staker

    def find(self, proposal: Any) -> Proposal:
        """Raises NotFound."""
        found = self.proposals.get(proposal) if isinstance(proposal, str) else None
        if found is None:
            raise NotFound(
                f"there is no proposal {proposal!r}",
                code="proposal_not_found",
                param="proposal",
                fix="'openledger govern proposals' lists them",
            )
        return found

    def state(self, proposal: Proposal, stakes: Stakes, time_ms: int) -> State:
        if proposal.ended:
            return proposal.ended
        if time_ms <= proposal.snapshot_ms:
            return "Pending"
        if time_ms <= proposal.deadline_ms:
            return "Active"
        if not _passed(proposal, stakes):
            return "Defeated"
        if proposal.action["kind"] == "text":
            return "Succeeded"
        return "Queued" if time_ms <= proposal.expires_ms else "Expired"

    def due(self, stakes: Stakes, time_ms: int) -> list[Proposal]:
        """What passed and whose timelock is over, the oldest first."""
        found = [one for one in self.proposals.values() if one.eta_ms <= time_ms and not one.ended]
        return sorted(
            (one for one in found if self.state(one, stakes, time_ms) == "Queued"), key=lambda one: one.eta_ms
        )

    def check_proposal(
        self, statement: Statement, number: int, stakes: Stakes, parameters: ParameterBook, time_ms: int
    ) -> None:
        """Raises what `check_proposer` does, InvalidInput for an action that can't be, or times and a quorum that
        aren't those in force."""
        self.check_proposer(statement, stakes, parameters, time_ms)
        self._check_action(statement["action"], stakes, parameters, time_ms)
        values = parameters.in_force
        quorum_ppm = quorum(values, statement["action"])
        expected = {"proposal": proposal_id(number), "quorum_ppm": quorum_ppm, **times(values, time_ms)}
        if any(statement[name] != value for name, value in expected.items()):
            raise InvalidInput("the proposal's terms aren't those in force", code="wrong_terms", param="proposal")

    def check_proposer(self, statement: Statement, stakes: Stakes, parameters: ParameterBook, time_ms: int) -> None:
        """Raises Forbidden below the threshold, InvalidInput for texts that can't be, Conflict for a key that was
        used, or for one proposal more than the proposer's power allows (`too_many_proposals`)."""
        threshold_nano, proposer = parameters.in_force["vote_threshold_nano"], statement["proposer"]
        check_account_id(proposer, "proposer")
        _check_texts(statement)
        check_key(statement["key"])
        if (proposer, statement["key"]) in self.keys:
            raise idempotency_conflict()
        power_nano = stakes.powers.of(proposer, time_ms)
        if power_nano < threshold_nano:
            raise Forbidden(
                f"{proposer} has {format_money(power_nano)} of voting power; a proposal takes"
                f" {format_open(threshold_nano)}",
                code="below_threshold",
                param="proposer",
                fix="stake more, or be delegated to",
            )
        if parameters.in_force["open_proposals"]:
            self._check_free(proposer, stakes, parameters.in_force, time_ms)

    def _check_free(self, proposer: str, stakes: Stakes, values: Values, time_ms: int) -> None:
        """Raises Conflict (`too_many_proposals`) where too much of the stake behind the proposer is behind proposals
        that aren't decided: his own, or those that it was delegated for before."""
        free_nano = sum(self._free(proposer, stakes, values, time_ms).values())
        if free_nano < values["vote_threshold_nano"]:
            raise Conflict(
                f"{format_money(free_nano)} of the stake behind {proposer} is behind no proposal that waits for its"
                f" decision; another takes {format_open(values['vote_threshold_nano'])}",
                code="too_many_proposals",
                param="proposer",
                fix="wait until one is decided, cancel one while it is Pending, or stake more",
            )

    def _free(self, proposer: str, stakes: Stakes, values: Values, time_ms: int) -> dict[str, int]:
        """Nano-OPEN of each staker behind `proposer` that could be behind another proposal."""
        undecided = [
            self.backing[name] for name, one in self.proposals.items() if not one.ended and time_ms <= one.deadline_ms
        ]
        return {
            account: max(0, values["open_proposals"] * staked_nano - sum(one.get(account, 0) for one in undecided))
            for account, staked_nano in stakes.behind(proposer).items()
        }

    def apply_proposal(self, statement: Statement, stakes: Stakes, parameters: ParameterBook) -> None:
        backing = self._backing(statement["proposer"], stakes, parameters.in_force, statement["time_ms"])
        names = [name for name in Proposal.__dataclass_fields__ if name in statement]
        self.proposals[statement["proposal"]] = Proposal(**{name: statement[name] for name in names})
        self.keys[statement["proposer"], statement["key"]] = statement["proposal"]
        self.backing[statement["proposal"]] = backing
        self.names_pools = self.names_pools or "from_nano" in statement["action"]

    def _backing(self, proposer: str, stakes: Stakes, values: Values, time_ms: int) -> dict[str, int]:
        """The threshold, divided by what is free of each stake; by all of it where there is no limit."""
        free, threshold_nano = self._free(proposer, stakes, values, time_ms), values["vote_threshold_nano"]
        weights = free if sum(free.values()) >= threshold_nano else stakes.behind(proposer)
        return split(threshold_nano, weights) if weights else {}

    def check_vote(self, statement: Statement, stakes: Stakes, time_ms: int) -> None:
        """Raises Conflict before the snapshot, after the end (`not_active`) or for a second vote (`already_voted`),
        Forbidden without power at the snapshot, InvalidInput for another support or power."""
        proposal, voter = self.find(statement["proposal"]), statement["voter"]
        if statement["support"] not in SUPPORT:
            raise InvalidInput(
                f"{statement['support']!r} is no vote",
                code="invalid_vote",
                param="support",
                fix="for, against, abstain",
            )
        state = self.state(proposal, stakes, time_ms)
        if state != "Active":
            raise Conflict(
                f"{proposal.proposal} is {state}: votes count while it is Active", code="not_active", param="proposal"
            )
        if voter in proposal.votes:
            raise Conflict(f"{voter} has voted on {proposal.proposal}", code="already_voted", param="proposal")
        power_nano = stakes.powers.of(voter, proposal.snapshot_ms)
        if power_nano < 1:
            raise Forbidden(
                f"{voter} had no voting power at the snapshot of {proposal.proposal}",
                code="no_power_at_snapshot",
                param="voter",
                fix="what is staked or delegated after the snapshot counts for later proposals",
            )
        if statement["power_nano"] != power_nano:
            raise InvalidInput(f"{voter} had {power_nano} at the snapshot", code="wrong_power", param="power_nano")

    def apply_vote(self, statement: Statement) -> None:
        proposal = self.proposals[statement["proposal"]]
        votes = {**proposal.votes, statement["voter"]: (statement["support"], statement["power_nano"])}
        self.proposals[proposal.proposal] = replace(proposal, votes=votes)

    def check_cancel(self, statement: Statement, stakes: Stakes, time_ms: int) -> None:
        """Raises Forbidden for another than the proposer, Conflict once it isn't Pending."""
        proposal = self.find(statement["proposal"])
        if statement["account"] != proposal.proposer:
            raise Forbidden("only its proposer cancels a proposal", code="not_the_proposer", param="account")
        if self.state(proposal, stakes, time_ms) != "Pending":
            raise Conflict("a proposal is canceled while it is Pending", code="not_pending", param="proposal")

    def plan_execution(
        self, statement: Statement, stakes: Stakes, parameters: ParameterBook, time_ms: int
    ) -> list[Move]:
        """Raises Conflict unless the proposal is Queued and its timelock over, or where what it does can't be done
        (any more)."""
        proposal = self.find(statement["proposal"])
        state = self.state(proposal, stakes, time_ms)
        if state != "Queued" or time_ms < proposal.eta_ms:
            raise Conflict(f"{proposal.proposal} is {state}, its timelock over at {proposal.eta_ms}", code="not_queued",
                           param="proposal")  # fmt: skip
        action = proposal.action
        expected = parameters.newest + 1 if action["kind"] == "parameters" else 0
        if statement["version"] != expected:
            raise Conflict(f"it makes version {expected}", code="wrong_version", param="version")
        if action["kind"] == "parameters":
            parameters.changed(action["changes"])
            return []
        if action["kind"] == "spend":
            return [(action["source"], action["recipient"], action["amount_nano"], "spend")]
        if action["kind"] == "bounty":
            self.check_cap(action["amount_nano"], parameters)
            return [(UNATTRIBUTED, action["recipient"], action["amount_nano"], "bounty")]
        return stakes.return_moves(action["slash"])

    def apply_execution(self, statement: Statement, stakes: Stakes, parameters: ParameterBook) -> None:
        proposal = self.proposals[statement["proposal"]]
        action = proposal.action
        if action["kind"] == "parameters":
            parameters.adopt(statement["version"], parameters.changed(action["changes"]))
        elif action["kind"] == "bounty":
            spent_nano = self.bounties_nano.get(parameters.current, 0)
            self.bounties_nano[parameters.current] = spent_nano + action["amount_nano"]
            self.spent.append(_spent(statement, action, parameters))
        elif action["kind"] == "appeal":
            stakes.decide_slash(action["slash"], "returned")
        self.proposals[proposal.proposal] = replace(proposal, ended="Executed")

    def cancel(self, proposal: str) -> None:
        self.proposals[proposal] = replace(self.proposals[proposal], ended="Canceled")

    def is_appealed(self, slash: int, stakes: Stakes, time_ms: int) -> bool:
        """Whether a proposal to return a slash may still be executed."""
        return any(
            one.action == {"kind": "appeal", "slash": slash}
            and self.state(one, stakes, time_ms) in ("Pending", "Active", "Queued")
            for one in self.proposals.values()
        )

    def _check_action(self, action: Any, stakes: Stakes, parameters: ParameterBook, time_ms: int) -> None:
        kind = action.get("kind") if isinstance(action, Mapping) else None
        if not isinstance(kind, str) or kind not in _ACTIONS or not self._has_fields(kind, set(action) - {"kind"}):
            raise _no_action()
        if kind == "parameters":
            parameters.changed(action["changes"])
        elif kind in ("spend", "bounty"):
            _check_spending(action)
            if kind == "bounty":
                self.check_cap(action["amount_nano"], parameters)
        elif kind == "appeal" and stakes.open_slash(action["slash"]).ends_ms < time_ms:
            raise Conflict("the appeal window is over", code="appeal_window_closed", param="slash")

    def _has_fields(self, kind: str, given: set[str]) -> bool:
        unnamed = kind == "bounty" and given == _UNNAMED_BOUNTY and not self.names_pools
        return unnamed or given == _ACTIONS[kind]

    def check_cap(self, amount_nano: int, parameters: ParameterBook) -> None:
        """Raises Conflict (`bounty_cap_reached`) for more than the period may still spend on bounties."""
        left_nano = parameters.in_force["bounty_cap_nano"] - self.bounties_nano.get(parameters.current, 0)
        if amount_nano > left_nano:
            raise Conflict(
                f"{format_money(max(0, left_nano))} can still be spent on bounties in {parameters.current}",
                code="bounty_cap_reached",
                param="amount_nano",
            )


def check_asked(bounty: Mapping[str, Any]) -> None:
    """A bounty as it is asked for, with or without the pools that pay it. Raises InvalidInput; reads no pool."""
    if not _UNNAMED_BOUNTY <= set(bounty) - {"kind"} <= _ACTIONS["bounty"]:
        raise _no_action()
    _check_spending(bounty)


def _spent(statement: Statement, action: Mapping[str, Any], parameters: ParameterBook) -> Spent:
    return Spent(
        number=statement["number"],
        time_ms=statement["time_ms"],
        window_ms=parameters.in_force["dispute_window_ms"],
        amount_nano=action["amount_nano"],
        pools_nano=pools_of(action),
    )


def proposal_id(number: int) -> str:
    return f"prop_{number:06d}"


def pools_of(action: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """What a bounty takes of what the settlement of each (adapter, period) left unattributed; empty for any other
    action."""
    return {pool_key(name): amount_nano for name, amount_nano in action.get("from_nano", {}).items()}


def quorum(values: Values, action: Mapping[str, Any]) -> int:
    """What a proposal needs of all power, in parts per million; what spends money needs more."""
    spends = action.get("kind") in ("spend", "bounty")
    return max(values["vote_quorum_ppm"], values["spend_quorum_ppm"] if spends else 0)


def times(values: Values, time_ms: int) -> dict[str, int]:
    """When a proposal that is made now is decided, and when it executes."""
    snapshot_ms = time_ms + values["vote_delay_ms"]
    deadline_ms = snapshot_ms + values["vote_period_ms"]
    eta_ms = deadline_ms + values["vote_timelock_ms"]
    expires_ms = eta_ms + values["vote_grace_ms"]
    return {"snapshot_ms": snapshot_ms, "deadline_ms": deadline_ms, "eta_ms": eta_ms, "expires_ms": expires_ms}


def _no_action() -> InvalidInput:
    return InvalidInput(
        f"a proposal does one of {', '.join(sorted(_ACTIONS))}, with its own fields",
        code="invalid_proposal",
        param="action",
    )


def _passed(proposal: Proposal, stakes: Stakes) -> bool:
    tally = proposal.tally()
    reached_nano = tally["for"] + tally["abstain"]
    quorum_nano = proposal.quorum_nano(stakes.powers.total_at(proposal.snapshot_ms))
    return reached_nano >= quorum_nano and tally["for"] > tally["against"]


def _check_spending(action: Mapping[str, Any]) -> None:
    amount_nano = action["amount_nano"]
    if type(amount_nano) is not int or not 0 < amount_nano <= SUPPLY_NANO:
        raise InvalidInput(
            f"an amount is a whole number of {shown_unit().smallest} from 1", code="invalid_amount", param="amount_nano"
        )
    if not is_person(check_account_id(action["recipient"], "recipient")):
        raise InvalidInput("money is spent on persons", code="invalid_account", param="recipient", fix="like user:bob")
    if action["kind"] == "spend" and action["source"] not in SOURCES:
        raise InvalidInput(
            f"{action['source']!r} is not for governance to spend",
            code="invalid_source",
            param="source",
            fix=f"one of {', '.join(SOURCES)}; what is unattributed goes to bounties alone",
        )
    if action["kind"] == "bounty":
        _check_bounty(action)


def _check_bounty(action: Mapping[str, Any]) -> None:
    if not _is_text(action["bounty"], _MAX_TITLE):
        raise InvalidInput("a bounty says what it is for", code="invalid_proposal", param="bounty")
    if action.get("object"):
        check_object(action["object"])
    if "from_nano" not in action:
        return
    pools = action["from_nano"]
    whole = isinstance(pools, Mapping) and all(type(part) is int and part > 0 for part in pools.values())
    if not whole or not 0 < len(pools) <= _MAX_POOLS or sum(pools.values()) != action["amount_nano"]:
        raise InvalidInput(
            f"a bounty names 1 to {_MAX_POOLS} pools, and what it takes of each, which sum to it",
            code="invalid_bounty",
            param="from_nano",
            fix="leave from_nano out: the oldest pools that have something left are named then",
        )
    pools_of(action)


def _check_texts(statement: Statement) -> None:
    if not _is_text(statement["title"], _MAX_TITLE):
        raise InvalidInput(f"a title has 1 to {_MAX_TITLE} characters", code="invalid_proposal", param="title")
    if not isinstance(statement["text"], str) or len(statement["text"]) > _MAX_TEXT:
        raise InvalidInput(f"a text has at most {_MAX_TEXT} characters", code="invalid_proposal", param="text")


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= most and len(value) <= most

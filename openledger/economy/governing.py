"""The book of proposals: who proposes, votes, cancels, and what a passed proposal does once its timelock is over.

Writes `ledger.governance`'s statements into the register. Whatever may be asked again gives its first answer.
"""

from collections.abc import Mapping
from typing import Any

from openledger.core.errors import InvalidInput, OpenLedgerError, idempotency_conflict
from openledger.economy.bounties import BountyBook
from openledger.economy.register import RegisterBook
from openledger.ledger import governance
from openledger.ledger.governance import Proposal, proposal_id

_NAMED = ("object", "from_nano")


class GovernanceBook:
    def __init__(self, register: RegisterBook, bounties: BountyBook):
        self._register = register
        self._bounties = bounties

    def propose(self, proposer: str, title: str, text: str, action: Mapping[str, Any], key: str) -> str:
        """The new proposal's id; the same key with the same content gives the first.

        Raises Forbidden (`below_threshold`), InvalidInput for an action that can't be or parameters out of bounds,
        Conflict (`idempotency_conflict`, and for a bounty what `BountyBook` raises).
        """
        if not isinstance(action, Mapping):
            raise InvalidInput("a proposal says what it does", code="invalid_proposal", param="action")
        given: dict[str, Any] = {"proposer": proposer, "title": title, "text": text, "action": dict(action)}
        state = self._register.refresh()
        known = state.governance.keys.get((proposer, key))
        if known is not None and _says(state.governance.find(known), given):
            return known
        state.governance.check_proposer({**given, "key": key}, state.stakes, state.parameters, self._register.now_ms())
        given["action"] = self._bounties.named(action)
        written = self._register.write(
            governance.PROPOSE,
            lambda state, now_ms: {
                **given,
                "key": key,
                "proposal": proposal_id(state.number),
                "quorum_ppm": governance.quorum(state.parameters.in_force, given["action"]),
                **governance.times(state.parameters.in_force, now_ms),
            },
        )
        return str(written["proposal"])

    def vote(self, voter: str, proposal: str, support: str) -> int:
        """Vote with the power of the snapshot, once; how much that is (nano-OPEN). The same vote again gives it again.

        Raises Conflict (`already_voted`, `not_active`), Forbidden (`no_power_at_snapshot`), NotFound.
        """
        known = self._register.refresh().governance.find(proposal).votes.get(voter)
        if known is not None and known[0] == support:
            return known[1]
        written = self._register.write(
            governance.VOTE,
            lambda state, _: {
                "proposal": proposal,
                "voter": voter,
                "support": support,
                "power_nano": state.stakes.powers.of(voter, state.governance.find(proposal).snapshot_ms),
            },
        )
        return int(written["power_nano"])

    def delegate(self, account: str, delegate: str) -> None:
        """Let `delegate` vote with what `account` has staked, from now on; `account` itself takes it back."""
        if self._register.refresh().stakes.powers.delegate_of(account) != delegate:
            given = {"account": account, "delegate": delegate}
            self._register.write(governance.DELEGATE, lambda *_: given)

    def cancel(self, account: str, proposal: str) -> None:
        """Raises Forbidden (`not_the_proposer`), Conflict (`not_pending`), NotFound."""
        if self._register.refresh().governance.find(proposal).ended != "Canceled":
            self._register.write(governance.CANCEL, lambda *_: {"proposal": proposal, "account": account})

    def execute_due(self, now_ms: int) -> list[str]:
        """Execute what passed and whose timelock is over, each once; their ids. What can't be done now (the treasury
        hasn't enough, another change made the values impossible) is tried again until it expires."""
        state = self._register.state
        return [one.proposal for one in state.governance.due(state.stakes, now_ms) if self._execute(one)]

    def _execute(self, proposal: Proposal) -> bool:
        try:
            self._bounties.check(proposal.action)
            self._register.write(governance.EXECUTE, lambda state, _: _execution(proposal, state.parameters.newest))
        except OpenLedgerError as error:
            if error.http_status >= 500:
                raise
            return False
        return True

    def list(self) -> list[dict[str, Any]]:
        """Every proposal as it is now, the newest first."""
        found = self._register.refresh().governance.proposals
        return [self._entry(one) for one in reversed(found.values())]

    def view(self, proposal: str) -> dict[str, Any]:
        """Raises NotFound."""
        return self._entry(self._register.refresh().governance.find(proposal))

    def _entry(self, proposal: Proposal) -> dict[str, Any]:
        state, now_ms = self._register.state, self._register.now_ms()
        total_nano = state.stakes.powers.total_at(proposal.snapshot_ms) if now_ms > proposal.snapshot_ms else None
        return {
            "proposal": proposal.proposal,
            "state": state.governance.state(proposal, state.stakes, now_ms),
            "title": proposal.title,
            "text": proposal.text,
            "action": dict(proposal.action),
            "proposer": proposal.proposer,
            "snapshot_ms": proposal.snapshot_ms,
            "deadline_ms": proposal.deadline_ms,
            "eta_ms": proposal.eta_ms,
            "expires_ms": proposal.expires_ms,
            "votes_nano": proposal.tally(),
            "num_votes": len(proposal.votes),
            "power_nano": total_nano,
            "quorum_nano": None if total_nano is None else proposal.quorum_nano(total_nano),
        }


def _execution(proposal: Proposal, newest: int) -> dict[str, Any]:
    version = newest + 1 if proposal.action["kind"] == "parameters" else 0
    return {"proposal": proposal.proposal, "version": version}


def _says(known: Proposal, given: Mapping[str, Any]) -> bool:
    """The same, but for what was named for the proposer (`BountyBook.named`)."""
    action = {name: value for name, value in known.action.items() if name in given["action"] or name not in _NAMED}
    if any(getattr(known, name) != value for name, value in given.items() if name != "action") or (
        action != given["action"]
    ):
        raise idempotency_conflict("proposal")
    return True

"""Witnesses of a training's constant: who beside the owner gave a nonce for it, as the log tells.

An adapter's initial matrices, the order of its rows and which of them were drawn come from one constant. Where the
owner alone decides it he can try many in private and sell what flatters him; one other person's nonce takes that away
(`ledger.nonces`). So the point of sale asks for `witnesses_required` of them, and takes nobody's word: the constant is
computed again from the nonces in the log, and the round must have been closed for these rows, this base, this recipe.

Whoever has to gain counts as no witness: the round's owner, the adapter's seller, and every account that the log ties
to a key of theirs. Two accounts of one key are one witness. A person with two keys can't be told from two persons.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from openledger.core.errors import Conflict
from openledger.economy.nonces import NonceBook
from openledger.economy.port import LedgerPort
from openledger.economy.signers import SignerBook
from openledger.ledger.nonces import Purpose, Round
from openledger.training.recipe import public_constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run as an adapter's card tells it: on which version, of what, under which constant. `seller` earns the owner's
    part of what the adapter sells."""

    adapter: str
    datanet: str
    version: int
    purpose: Purpose
    constant: str
    seller: str


class WitnessBook:
    """Over one ledger; keeps nothing of its own."""

    def __init__(self, ledger: LedgerPort):
        self._nonces, self._signers = NonceBook(ledger), SignerBook(ledger)

    def check(self, trainings: Sequence[Training], num_required: int) -> None:
        """Raises Conflict (`constant_unwitnessed`) naming the first run whose constant has fewer witnesses."""
        for training in trainings if num_required else ():
            known = self._nonces.find(training.datanet, training.version)
            reason = _why_none(known, training)
            if known is None or reason:
                raise _unwitnessed(training, num_required, reason)
            found = self.witnesses(known, training.seller)
            if len(found) < num_required:
                told = f"it has {len(found)} that are nobody's of its owner or seller, of {num_required} required"
                raise _unwitnessed(training, num_required, told)

    def witnesses(self, known: Round, seller: str) -> tuple[str, ...]:
        """The parties of a round who are neither its owner nor the seller nor have a key of theirs; one of each key."""
        own = {known.owner, seller}
        taken = {key for account in own for key in self._signers.keys_of(account)}
        found = []
        for party in sorted(known.digests.keys() - own):
            keys = self._signers.keys_of(party)
            if not keys & taken:
                found.append(party)
                taken |= keys
        return tuple(found)


def _why_none(known: Round | None, training: Training) -> str:
    """Why the training's constant isn't one that the round drew; empty where it is."""
    if known is None:
        return "no round of nonces was opened for that version"
    if not known.drawn:
        return f"the round isn't drawn: {_due(known.withheld)}"
    if known.purpose != training.purpose:
        return "the round was closed for other rows, another base model or another recipe"
    if public_constant(training.purpose.base_digest, training.datanet, training.version, known.drawn) != (
        training.constant
    ):
        return "its card names another constant than the round's nonces give"
    return ""


def _due(withheld: Collection[str]) -> str:
    return f"{', '.join(withheld)} have yet to reveal" if withheld else "contributions aren't closed"


def _unwitnessed(training: Training, num_required: int, reason: str) -> Conflict:
    """A round serves one version, base and recipe, once: what lacks one gets one, all else takes the next version."""
    return Conflict(
        f"{training.adapter} can't be offered: no witness stands for the constant it was trained by"
        f" ({training.datanet} version {training.version}): {reason}",
        code="constant_unwitnessed",
        param="adapter",
        fix=f"publish a version with a round of nonces and train on it: jobs/train.py --datanet {training.datanet}"
        f" --commit-nonces WITNESS (with --version {training.version} if that version has no round yet), then again"
        " without the option. A version whose round was closed sells that base and recipe alone: train by them, or"
        " publish the next one (a quickstart: in another folder). Or let a vote lower witnesses_required from"
        f" {num_required}: openledger govern propose",
    )

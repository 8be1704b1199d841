"""Witnesses of a training's constant: who beside the owner gave a nonce for it, as the log tells.

An adapter's initial matrices, the order of its rows and which of them were drawn come from one constant. Where the
owner alone decides it he can try many in private and sell what flatters him; one other person's nonce takes that away
(`ledger.nonces`). So the point of sale asks for `witnesses_required` of them, and takes nobody's word: the constant is
computed again from the nonces in the log, and the round must have been closed for these rows, this base, this recipe
(`ledger.offers`, by which the audit asks the same of every offer in the log).

Whoever has to gain counts as no witness: the round's owner, the adapter's seller, and every account that the log ties
to a key of theirs. Two accounts of one key are one witness. A person with two keys can't be told from two persons.
"""

from collections.abc import Sequence

from openledger.economy.nonces import NonceBook
from openledger.economy.port import LedgerPort
from openledger.economy.signers import SignerBook
from openledger.ledger.nonces import Round
from openledger.ledger.offers import Training as Training
from openledger.ledger.offers import check_witnesses


class WitnessBook:
    """Over one ledger; keeps nothing of its own."""

    def __init__(self, ledger: LedgerPort):
        self._nonces, self._signers = NonceBook(ledger), SignerBook(ledger)

    def check(self, trainings: Sequence[Training], num_required: int) -> None:
        """Raises Conflict (`constant_unwitnessed`) naming the first run whose constant has fewer witnesses."""
        check_witnesses(trainings, self.round_of, self.keys_of, num_required)

    def round_of(self, version: tuple[str, int]) -> Round | None:
        """Of a Datanet's version."""
        return self._nonces.find(*version)

    def keys_of(self, account: str) -> set[str]:
        """See `SignerBook.keys_of`."""
        return self._signers.keys_of(account)

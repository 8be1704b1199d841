"""The book of contributors' keys: who speaks for whom, and how that changes. What the log says is true."""

from openledger.core.errors import Conflict, Forbidden
from openledger.core.rekeying import KeyChange, Keys, check_change, keys_before, replaced
from openledger.core.signing import contributor_id
from openledger.economy.port import LedgerPort
from openledger.ledger.contributor_keys import (
    KEYS_ACCOUNT,
    change_id,
    change_in,
    change_statement,
    key_id,
    transfers_of,
)
from openledger.ledger.seats import seat_accounts
from openledger.ledger.transfers import CREATED, EXISTS

_ENTRIES = 10**6


class ContributorKeyBook:
    """Over one ledger. Several may write: each change has one place, and whoever is late is told so."""

    def __init__(self, ledger: LedgerPort):
        self._ledger = ledger
        self._changes: dict[str, list[KeyChange]] = {}  # as far as they were read: the log only grows

    def holder(self, public_key: str) -> str:
        """The contributor for whom the key signs now. Raises Forbidden (`key_replaced`)."""
        contributor = self.held_by(public_key)
        keys = self.keys(contributor)
        if keys is not None and public_key != keys.public_key:
            raise replaced(public_key, contributor)
        return contributor

    def held_by(self, public_key: str) -> str:
        """The contributor for whom the key signs, or signed."""
        entry = self._ledger.find(key_id(public_key))
        if entry is None:
            return contributor_id(public_key)
        return change_in(self._ledger.batch(entry.seq).statement or {}).contributor_id

    def keys(self, contributor: str) -> Keys | None:
        """As they are now; None where they were never changed: then the key that the contributor is named after
        signs, and no recovery key is named."""
        changes = self.changes(contributor)
        return changes[-1].keys() if changes else None

    def changes(self, contributor: str) -> list[KeyChange]:
        """All of them, in order."""
        known = self._changes.get(contributor, [])
        while (found := self.change(contributor, len(known) + 1)) is not None:
            known = self._changes.setdefault(contributor, known)
            known.append(found)
        return list(known)

    def every_change(self) -> list[KeyChange]:
        """Everybody's, in the order of the log."""
        seqs = {entry.seq for entry in self._ledger.transfers(KEYS_ACCOUNT, _ENTRIES)}
        return [change_in(self._ledger.batch(seq).statement or {}) for seq in sorted(seqs)]

    def change(self, contributor: str, number: int) -> KeyChange | None:
        entry = self._ledger.find(change_id(contributor, number))
        return None if entry is None else change_in(self._ledger.batch(entry.seq).statement or {})

    def write(self, change: KeyChange) -> str:
        """The id of the transfer whose proof shows the change. The same again changes nothing.

        Raises what `keys_before` and `check_change` do: nothing is written then.
        """
        if self.change(change.contributor_id, change.number) == change:
            return change_id(change.contributor_id, change.number)
        before = keys_before(change, self.keys(change.contributor_id), self.held_by(change.replaces))
        taken = [key for key in change.signatures if key != change.by and self._ledger.find(key_id(key)) is not None]
        check_change(before, change, taken)
        transfers = transfers_of(change)
        opened = self._ledger.create_accounts(seat_accounts(KEYS_ACCOUNT))
        results = [*opened, *self._ledger.commit(transfers, change_statement(change))]
        if any(result not in (CREATED, EXISTS) for result in results):
            raise Conflict(
                "somebody else took one of the keys",
                code="key_in_use",
                param="public_key",
                fix="make a new one with 'openledger keys new'",
            )
        if self.change(change.contributor_id, change.number) != change:
            keys_before(change, self.keys(change.contributor_id), self.held_by(change.replaces))
        return transfers[0].transfer_id

    def check_second(self, public_key: str, parties: set[str], code: str) -> None:
        """Raises Forbidden (`code`) where the key is, or was, one of the `parties`'."""
        if (holder := self.held_by(public_key)) in parties:
            raise Forbidden(
                f"{holder} is a party and can't decide", code=code, param="public_key", fix="let somebody else decide"
            )

"""The book of contributors' keys: who speaks for whom, and how that changes. What the log says is true."""

from bisect import bisect_right
from itertools import takewhile

from openledger.core.errors import Conflict, Forbidden
from openledger.core.rekeying import KeyChange, Keys, check_change, keys_before, replaced
from openledger.core.signing import contributor_id
from openledger.economy.port import LedgerPort, newest_first
from openledger.ledger.contributor_keys import (
    KEYS_ACCOUNT,
    change_id,
    change_in,
    change_statement,
    key_id,
    transfers_of,
)
from openledger.ledger.seats import seat_accounts
from openledger.ledger.signers import SIGNERS_ACCOUNT
from openledger.ledger.transfers import CREATED, EXISTS


class History:
    """In which entries of the log something moved on an account. What was read once isn't read again."""

    def __init__(self, ledger: LedgerPort, account: str):
        self._ledger, self._account = ledger, account
        self._seqs: list[int] = []

    def after(self, seq: int) -> list[int]:
        """The entries behind `seq`, in their order; all of them behind -1."""
        self._read()
        return self._seqs[bisect_right(self._seqs, seq) :]

    def _read(self) -> None:
        last = self._seqs[-1] if self._seqs else -1
        moved = takewhile(lambda entry: entry.seq > last, newest_first(self._ledger, self._account))
        self._seqs += sorted({entry.seq for entry in moved})


class ContributorKeyBook:
    """Over one ledger. Several may write: each change has one place, and whoever is late is told so."""

    def __init__(self, ledger: LedgerPort):
        self._ledger = ledger
        self._changes: dict[str, list[KeyChange]] = {}  # as far as they were read: the log only grows
        self._history = History(ledger, KEYS_ACCOUNT)
        self._registrations = History(ledger, SIGNERS_ACCOUNT)
        self._registered: tuple[int, set[str]] = -1, set()  # up to which entry, and the keys

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

    def is_signers(self, public_key: str) -> bool:
        """Whether the key is, or was, registered as one by which somebody reviews or scores."""
        last, keys = self._registered
        for seq in self._registrations.after(last):
            keys.add(str((self._ledger.batch(seq).statement or {}).get("public_key")))
            self._registered = seq, keys
        return public_key in keys

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

    def changes_after(self, seq: int, limit: int) -> list[tuple[int, KeyChange]]:
        """The first `limit` of everybody's behind the entry `seq`, each with its own, in the order of the log."""
        seqs = self._history.after(seq)[:limit]
        return [(found, change_in(self._ledger.batch(found).statement or {})) for found in seqs]

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

"""Contributors' keys in the log: who speaks for a contributor from which entry on (`core.rekeying` has the rule).

    contributor-key    the `number`th change of a contributor's keys, signed by whom the rule asks for

No money moves: each batch holds one nano-OPEN of genesis and lets it go, once for the change (its id follows from
contributor and number, so each change is made once) and once for each key that is new (its id follows from the key, so
a key serves once). A key is in force from the entry that names it up to the entry that replaces it: what it signed, and
the log has in between, stays valid. The first change also takes the key that it replaces, if only to name a recovery
key.
"""

from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Corrupt, OpenLedgerError
from openledger.core.ids import derived_id
from openledger.core.rekeying import CHANGED, FORMAT, KeyChange, Keys, change_json, change_of, check_change, keys_before
from openledger.core.signing import contributor_id
from openledger.ledger.seats import seat_transfers
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

FORMATS = frozenset({FORMAT})
KEYS_ACCOUNT = "holds:contributor-keys"
_FIELDS = {"format", *CHANGED, "signatures"}


@dataclass(slots=True)
class ContributorKeys:
    """The keys of a log's contributors as its batches tell them; who never changed any isn't listed."""

    now: dict[str, Keys] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # of each key that serves or served
    recovering: set[str] = field(default_factory=set)  # those among them that sign nothing but changes
    ended: dict[str, int] = field(default_factory=dict)  # by key: the entry that replaced it

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying which rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) != FORMAT:
            if any(KEYS_ACCOUNT in (transfer.debit, transfer.credit) for transfer in batch.transfers):
                raise _corrupt("a key's seat is held without saying whose", "unexplained_key")
            return
        try:
            change = _change(statement)
            before = keys_before(change, self.now.get(change.contributor_id), self.holder(change.replaces))
            check_change(before, change, self.owners.keys())
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        if batch.transfers != tuple(transfers_of(change)):
            raise _corrupt("the transfers aren't those of the change", "key_change_differs")
        self._apply(before, change, batch.seq)

    def holder(self, public_key: str) -> str:
        """The contributor for whom a key signs, or signed."""
        return self.owners.get(public_key) or contributor_id(public_key)

    def sign_for(self, contributor: str, public_key: str, seq: int | None = None) -> bool:
        """Whether the key spoke for `contributor` at the entry `seq`; without it, as of the last one."""
        if self.holder(public_key) != contributor or public_key in self.recovering:
            return False
        end = self.ended.get(public_key)
        return end is None or (seq is not None and seq < end)

    def check(self, contributor: str, public_key: str, seq: int | None = None) -> None:
        """Raises Corrupt (`wrong_key`) unless `sign_for`."""
        if not self.sign_for(contributor, public_key, seq):
            raise _corrupt(f"{public_key} is no key of {contributor} at this place", "wrong_key")

    def _apply(self, before: Keys, change: KeyChange, seq: int) -> None:
        after = change.keys()
        for key in {before.public_key, before.recovery_key, after.public_key, after.recovery_key} - {""}:
            self.owners[key] = change.contributor_id
        for key in {before.public_key, before.recovery_key} - {after.public_key, after.recovery_key, ""}:
            self.ended[key] = seq
        self.recovering |= {after.recovery_key} - {""}
        self.now[change.contributor_id] = after


def change_statement(change: KeyChange) -> dict[str, Any]:
    return {"format": FORMAT, **change_json(change)}


def change_in(statement: Statement) -> KeyChange:
    """The change that a statement of the log tells."""
    return _change(statement)


def transfers_of(change: KeyChange) -> list[Transfer]:
    """The batch that carries `change`. The first transfer's proof shows it."""
    taken = set(change.signatures) - {change.by} | ({change.replaces} if change.number == 1 else set())
    seats = [change_id(change.contributor_id, change.number), *map(key_id, sorted(taken))]
    codes = "contributor_key", "contributor_key_end"
    return [
        transfer
        for name in seats
        for transfer in seat_transfers((name, f"{name}.end"), codes, KEYS_ACCOUNT, change.contributor_id)
    ]


def change_id(contributor: str, number: int) -> str:
    return derived_id("cky", "change", contributor, str(number))


def key_id(public_key: str) -> str:
    return derived_id("cky", "key", public_key)


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What a change's batch says, in words. Raises Corrupt where it doesn't hold in itself."""
    try:
        change = _change(statement)
        _check_alone(change)
    except OpenLedgerError as error:
        raise _corrupt(error.message, error.code) from error
    if transfer not in transfers_of(change):
        raise _corrupt(f"{transfer.transfer_id} isn't what its statement calls for", "key_change_differs")
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    """A change in words."""
    change = _change(statement)
    told = [f"change {change.number} of the keys of {change.contributor_id}, signatures good; no money moves"]
    if change.public_key != change.replaces:
        told.append(f"{change.public_key} signs from here on in place of {change.replaces}")
    if change.recovery_key:
        told.append(f"their keys are changed by {change.recovery_key} alone")
    return told


def by_key(contributor: str, public_key: str) -> str:
    """In words, by which key: nothing where the contributor is named after it."""
    return "" if contributor_id(public_key) == contributor else f" by the key {public_key}, his by a change in the log"


def _change(statement: Statement) -> KeyChange:
    if set(statement) != _FIELDS:
        raise _corrupt("not the fields of a change of keys", "malformed_statement")
    return change_of(statement)


def _check_alone(change: KeyChange) -> None:
    """What holds of a change whose predecessor isn't at hand: everybody who signed it did, the new keys among them."""
    before = Keys(
        contributor_id=change.contributor_id,
        public_key=change.replaces,
        recovery_key=change.by if change.by != change.replaces else "",
        number=change.number - 1,
    )
    check_change(before, change)


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")

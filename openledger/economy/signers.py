"""The book of signers: who decides, by which key. What the log says is true; what was read of it is kept in memory."""

from dataclasses import replace
from typing import Any

from openledger.core.errors import Conflict, Forbidden, NotFound
from openledger.economy.contributor_keys import ContributorKeyBook, History
from openledger.economy.port import LedgerPort
from openledger.ledger import signers
from openledger.ledger.seats import seat_accounts
from openledger.ledger.signers import SIGNERS_ACCOUNT, Role, Signer, Signers, signer_id
from openledger.ledger.transfers import CREATED, EXISTS


class SignerBook:
    def __init__(self, ledger: LedgerPort):
        self._ledger = ledger
        self.keys = ContributorKeyBook(ledger)
        self._history = History(ledger, SIGNERS_ACCOUNT)
        self._read: tuple[int, Signers] = -1, Signers()  # up to which entry, and what it says

    def add(self, signer: Signer, signature: str) -> str:
        """Register a key; the id of the transfer whose proof shows it. May be repeated.

        Raises InvalidInput (`invalid_signature`) where the key did not sign for it, Conflict (`signer_ended`) where it
        was taken back before: a new key then takes its place.
        """
        statement = signers.signer_statement(signer, signature)
        if self._is_ended(signer):
            raise Conflict(
                f"{signer.account} is no longer {signer.role} by this key",
                code="signer_ended",
                param="public_key",
                fix="register a new key",
            )
        return self._write(statement)

    def end(self, signer: Signer) -> str:
        """Let the holder of a key decide nothing from now on, by whichever of his keys the role was registered; what he
        decided stays. May be repeated. Gives the transfer of that key's end, or else of the last one of his that was
        registered. Raises NotFound."""
        known = [one for one in self._of_holder(signer) if self._ledger.find(signer_id(one)) is not None]
        if not known:
            raise NotFound(
                f"{signer.account} is no {signer.role} by this key", code="unknown_signer", param="public_key"
            )
        ended = {one: self._write(signers.end_statement(one)) for one in known}
        return ended.get(signer, ended[known[-1]])

    def end_rest(self) -> int:
        """Write the ends that a dismissal of before lacks: it ended the key that it named, and not the role by its
        holder's other keys. A key that was registered after it stands. How many; may be repeated."""
        known, left = Signers(), set[Signer]()
        for seq in self._history.after(-1):
            before = set(known.ended)
            known.take(self._ledger.batch(seq))
            for ended in known.ended - before:
                left |= known.active.intersection(self._of_holder(ended))
        left -= known.ended
        for signer in sorted(left, key=lambda one: (one.account, one.role, one.datanet, one.public_key)):
            self._write(signers.end_statement(signer))
        return len(left)

    def check(self, role: Role, account: str, public_key: str, datanet: str = "") -> None:
        """Raises Forbidden (`not_a_signer`, `key_replaced`) unless this key decides for `account` now: it was
        registered, or it replaced the one that was, and wasn't ended itself."""
        self.keys.holder(public_key)
        signer = Signer(role=role, account=account, public_key=public_key, datanet=datanet)
        if self._is_ended(signer) or not any(self._is_registered(one) for one in self._of_holder(signer)):
            raise Forbidden(
                f"{account} is no {role}{f' of {datanet}' if datanet else ''} by the key {public_key}",
                code="not_a_signer",
                param="public_key",
                fix="let the Datanet's owner name it first" if datanet else "let the operator register the key first",
            )

    def of(self, account: str) -> list[Signer]:
        """The roles and keys by which `account` decides now."""
        found = [signer for signer in self._known().active if signer.account == account]
        return sorted(found, key=lambda signer: (signer.role, signer.datanet, signer.public_key))

    def keys_of(self, account: str) -> set[str]:
        """The keys that the log ties to `account`, or did before, each as the id of the contributor it stands for, or
        stood for where it was replaced."""
        return self._known().keys_of(account, self.keys.held_by)

    def _known(self) -> Signers:
        """Every registration and end in the log; what was read once isn't read again."""
        last, known = self._read
        for seq in self._history.after(last):
            known.take(self._ledger.batch(seq))
            self._read = seq, known
        return known

    def _of_holder(self, signer: Signer) -> list[Signer]:
        """The same role by each key that is, or was, of the key's holder, in their order."""
        changes = self.keys.changes(self.keys.held_by(signer.public_key))
        keys = [key for one in changes for key in (one.replaces, one.recovery_key, one.public_key) if key]
        return [replace(signer, public_key=key) for key in dict.fromkeys(keys or [signer.public_key])]

    def _is_registered(self, signer: Signer) -> bool:
        return self._ledger.find(signer_id(signer)) is not None and not self._is_ended(signer)

    def _is_ended(self, signer: Signer) -> bool:
        return self._ledger.find(signer_id(signer, "end")) is not None

    def _write(self, statement: dict[str, Any]) -> str:
        house = seat_accounts(SIGNERS_ACCOUNT)
        transfers = signers.transfers_of(statement)
        for result in [*self._ledger.create_accounts(house), *self._ledger.commit(transfers, statement)]:
            if result not in (CREATED, EXISTS, "linked_transfer_failed"):
                raise Conflict(f"the ledger refused the signer: {result}", code=result, param="public_key")
        return transfers[0].transfer_id

"""The book of nonces: who may say what, when, until a Datanet version's public constant is drawn.

    open -> commit (owner, witnesses) -> close (contributions are closed too) -> reveal (each of them) -> constant

Writes the statements of `ledger.nonces` through the ledger's port and keeps nothing of its own. Every step may be
repeated. A nonce itself is kept by its party (`kept_nonce`), durably before its commitment is in the log: a party that
loses it holds the version up, and its deposit stays where it is.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, NotFound, Unavailable
from openledger.core.files import write_secret
from openledger.core.hashing import digest_json
from openledger.core.money import NANO_PER_OPEN, Unit, format_money
from openledger.economy.port import LedgerPort
from openledger.economy.terms import check_payee
from openledger.economy.units import told_in_its_unit, unit_of
from openledger.ledger import nonces
from openledger.ledger.accounts import GENESIS, Account
from openledger.ledger.nonces import Purpose, Round, Rounds, round_account
from openledger.ledger.transfers import CREATED, EXISTS, Transfer
from openledger.training.recipe import public_constant

DEPOSIT_NANO = NANO_PER_OPEN
MAX_PARTIES = 64
_NONCE_CHARACTERS = 64
_ENTRIES = 8 * MAX_PARTIES  # a party leaves at most four on the round's account


@told_in_its_unit
class NonceBook:
    """Rounds of nonces over one ledger. Parties are accounts (`user:...`, `contributor:...`) with the deposit, which is
    as many of the ledger's unit as `deposit_nano` is OPEN.

    Every method raises InvalidInput for values that can't be, NotFound (`round_not_found`) for a round that nobody
    opened, and Conflict for a step out of its order.
    """

    def __init__(self, ledger: LedgerPort, deposit_nano: int = DEPOSIT_NANO):
        self._ledger = ledger
        self._deposit_nano = deposit_nano

    def unit(self) -> Unit:
        """In which all amounts are."""
        return unit_of(self._ledger)

    def find(self, datanet: str, version: int) -> Round | None:
        """The round as the log tells it; `withheld` lists who has yet to reveal. Raises Corrupt for a log that can't
        be."""
        entries = self._ledger.transfers(round_account(datanet, version), _ENTRIES)
        rounds = Rounds()
        for seq in sorted({entry.seq for entry in entries}):
            rounds.take(self._ledger.batch(seq))
        return rounds.by_version.get((datanet, version))

    def open(self, datanet: str, version: int, owner: str) -> Round:
        """Begin the round of a version that is yet to be published."""
        known = self.find(datanet, version)
        if known is not None and known.owner == owner:
            return known
        check_payee(owner, "owner")
        return self._write(known, nonces.open_statement(datanet, version, owner))

    def commit(self, datanet: str, version: int, party: str, digest: str) -> Round:
        """Bind `party` to the nonce behind `digest` (`ledger.nonces.commitment`), and hold its deposit.

        Raises Conflict (`round_closed`) after the close, InsufficientFunds without the deposit.
        """
        known = self.find(datanet, version)
        if known is not None and known.digests.get(party) == digest:
            return known
        check_payee(party, "party")
        if known is not None and len(known.digests) >= MAX_PARTIES:
            raise Conflict(f"a round has at most {MAX_PARTIES} parties", code="round_full", param="party")
        deposit_nano = self.unit().as_many(self._deposit_nano)
        return self._write(known, nonces.commit_statement(datanet, version, party, digest, deposit_nano))

    def close(self, datanet: str, version: int, purpose: Purpose) -> Round:
        """From here on the constant is fixed, and for `purpose`. Raises Conflict (`commitments_missing`) without the
        owner and a witness."""
        known = self.find(datanet, version)
        if known is not None and known.purpose == purpose:
            return known
        return self._write(known, nonces.close_statement(datanet, version, purpose))

    def reveal(self, datanet: str, version: int, party: str, nonce: str) -> Round:
        """Tell `party`'s nonce and release its deposit; at any time after the close, however late. Raises InvalidInput
        (`wrong_nonce`) for one that isn't the commitment's."""
        known = self.find(datanet, version)
        if known is not None and known.nonces.get(party) == nonce:
            return known
        return self._write(known, nonces.reveal_statement(datanet, version, party, nonce))

    def nonces(self, datanet: str, version: int) -> tuple[str, ...]:
        """All nonces, in the order of their parties. Raises Unavailable (`nonces_withheld`) naming who hasn't
        revealed."""
        return self._drawn(datanet, version).drawn

    def constant(self, base_digest: str, datanet: str, version: int) -> str:
        """The version's public constant, once everybody who committed has revealed: the owner and at least one
        witness. Raises Conflict (`other_purpose`) for another base than the round was closed for."""
        known = self._drawn(datanet, version)
        if known.purpose is None or known.purpose.base_digest != base_digest:
            raise Conflict(
                f"the round of {datanet} version {version} was closed for another base model",
                code="other_purpose",
                param="base_digest",
                fix="publish the next version for it",
            )
        return public_constant(base_digest, datanet, version, known.drawn)

    def _drawn(self, datanet: str, version: int) -> Round:
        name, known = f"{datanet} version {version}", self.find(datanet, version)
        if known is None:
            raise NotFound(f"no round of nonces was opened for {name}", code="round_not_found", param="version")
        if known.purpose is None:
            raise Conflict(f"{name} is not closed yet", code="round_not_closed", param="version")
        if known.withheld:
            raise Unavailable(
                f"{name} has no constant yet: {', '.join(known.withheld)} withheld what was committed to",
                code="nonces_withheld",
                param=", ".join(known.withheld),
                fix="wait for the reveal, or publish the next version, with other witnesses",
            )
        return known

    def _write(self, known: Round | None, statement: dict[str, Any]) -> Round:
        nonces.check_shape(statement)
        after = nonces.advance(known, statement)
        self._open_accounts(statement)
        transfers = nonces.transfers_of(statement, known)
        self._raise_for(self._ledger.commit(transfers, statement), transfers)
        return after

    def _open_accounts(self, statement: dict[str, Any]) -> None:
        people = [statement[name] for name in ("owner", "party") if name in statement]
        house = round_account(statement["datanet"], statement["version"])
        accounts = [
            Account(account_id=GENESIS, kind="genesis", may_go_negative=True),
            Account(account_id=house, kind="holds"),
            *(Account(account_id=party, kind=party.partition(":")[0]) for party in people),
        ]
        for account, result in zip(accounts, self._ledger.create_accounts(accounts), strict=True):
            if result not in (CREATED, EXISTS):
                raise Conflict(f"{account.account_id}: {result}", code=result, param="account")

    def _raise_for(self, results: Sequence[str], transfers: Sequence[Transfer]) -> None:
        """What the ledger says where another process was faster than what this one had read."""
        if all(result in (CREATED, EXISTS) for result in results):
            return
        place = next((n for n, r in enumerate(results) if r not in (CREATED, EXISTS, "linked_transfer_failed")), 0)
        result, transfer = results[place], transfers[place]
        if result == "exceeds_credits" and transfer.code == "nonces_commit":
            raise InsufficientFunds(
                f"{transfer.debit} has less than the deposit of {format_money(transfer.amount_nano)}",
                param="party",
                fix="fund the account; the deposit is released when the nonce is revealed",
            )
        if result == "exceeds_credits":
            raise Conflict("the round was closed meanwhile", code="round_closed", param="version")
        raise Conflict(f"the ledger refused {transfer.code}: {result}", code=result, param="version")


def kept_nonce(folder: Path, datanet: str, version: int, party: str) -> str:
    """`party`'s nonce for a version, from `folder`; made (32 random bytes) and put on disk where there is none."""
    known = find_nonce(folder, datanet, version, party)
    if known is not None:
        return known
    made = os.urandom(32).hex()
    write_secret(_nonce_path(folder, datanet, version, party), made.encode())
    return made


def find_nonce(folder: Path, datanet: str, version: int, party: str) -> str | None:
    """Raises Corrupt for a file that holds no nonce."""
    path = _nonce_path(folder, datanet, version, party)
    if not path.exists():
        return None
    text = path.read_text().strip()
    if len(text) != _NONCE_CHARACTERS or set(text) - set("0123456789abcdef"):
        raise Corrupt(f"{path} doesn't hold a nonce", code="corrupt_nonce", param=str(path), fix="restore it")
    return text


def _nonce_path(folder: Path, datanet: str, version: int, party: str) -> Path:
    return folder / f"{datanet}-{version}-{digest_json([datanet, version, party])[:16]}.nonce"

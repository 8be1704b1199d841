"""A round of nonces by hand: its parties, what it is for, and each of its steps as a batch in a ledger."""

from collections.abc import Mapping
from typing import Any

from openledger.economy import Economy
from openledger.economy.nonces import DEPOSIT_NANO as BOOK_DEPOSIT_NANO
from openledger.economy.nonces import NonceBook
from openledger.ledger import Account, Ledger, Transfer
from openledger.ledger.nonces import (
    Purpose,
    Round,
    advance,
    close_statement,
    commit_statement,
    commitment,
    open_statement,
    reveal_statement,
    round_account,
    transfers_of,
)

OWNER, WITNESS, OTHER = "user:a", "user:b", "user:c"
NONCES = {OWNER: "0a" * 32, WITNESS: "0b" * 32, OTHER: "0c" * 32}
PURPOSE = Purpose(row_root="cd" * 32, base_digest="ba" * 32, recipe_digest="ec" * 32)
DEPOSIT_NANO = 100


def opening() -> dict[str, Any]:
    return open_statement("py", 1, OWNER)


def committing(party: str, nonce: str = "") -> dict[str, Any]:
    return commit_statement("py", 1, party, commitment("py", 1, party, nonce or NONCES[party]), DEPOSIT_NANO)


def closing() -> dict[str, Any]:
    return close_statement("py", 1, PURPOSE)


def revealing(party: str) -> dict[str, Any]:
    return reveal_statement("py", 1, party, NONCES[party])


def whole_round() -> list[dict[str, Any]]:
    parties = (OWNER, WITNESS)
    return [opening(), *map(committing, parties), closing(), *map(revealing, parties)]


def draw_round(
    economy: Economy,
    ledger: Ledger,
    datanet: str,
    version: int,
    purpose: Purpose,
    nonces: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """A whole round, by the book; the first party is the owner. May be repeated."""
    told, book = nonces or {OWNER: NONCES[OWNER], WITNESS: NONCES[WITNESS]}, NonceBook(ledger)
    book.open(datanet, version, next(iter(told)))
    for party, nonce in told.items():
        economy.grant(party, BOOK_DEPOSIT_NANO, f"{party}-{datanet}-{version}")
        book.commit(datanet, version, party, commitment(datanet, version, party, nonce))
    book.close(datanet, version, purpose)
    for party, nonce in told.items():
        book.reveal(datanet, version, party, nonce)
    return book.nonces(datanet, version)


class Writer:
    """Writes statements into a ledger as an operator could who doesn't ask whether they may follow one another."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.round: Round | None = None
        house = Account(account_id=round_account("py", 1), kind="holds")
        ledger.create_accounts([house])
        for party in NONCES:
            grant = Transfer(
                transfer_id=f"grant.{party}", debit="genesis", credit=party, amount_nano=DEPOSIT_NANO, code="grant"
            )
            ledger.commit([grant])

    def write(self, *statements: dict[str, Any]) -> list[str]:
        """The ledger's results of the last batch."""
        results: list[str] = []
        for statement in statements:
            results = self.ledger.commit(transfers_of(statement, self.round), statement)
            self.round = advance(self.round, statement)
        return results

    def force(self, statement: dict[str, Any], transfers: list[Transfer] | None = None) -> list[str]:
        """Write a statement that may not follow; the deposit it releases is the one that was made."""
        known = self.round and Round(
            datanet="py", version=1, owner=OWNER, deposits_nano=dict.fromkeys(NONCES, DEPOSIT_NANO)
        )
        return self.ledger.commit(transfers or transfers_of(statement, known), statement)

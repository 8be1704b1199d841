"""Putting sealed rows into the log: that a seal came, and that its rows did. Every step may be repeated."""

from collections.abc import Mapping
from typing import Any

from openledger.core.errors import Conflict
from openledger.economy.port import LedgerPort
from openledger.ledger import seals
from openledger.ledger.seals import SEALS_ACCOUNT
from openledger.ledger.seats import seat_accounts
from openledger.ledger.transfers import CREATED, EXISTS


def log_seal(ledger: LedgerPort, datanet: str, contributor: str, digest: str, expires_ms: int) -> str:
    """The id of the transfer whose proof shows the seal. Raises Conflict where the digest was sealed as another's."""
    return _write(ledger, seals.seal_statement(datanet, contributor, digest, expires_ms))


def log_opening(
    ledger: LedgerPort,
    datanet: str,
    contributor: str,
    digest: str,
    public_key: str,
    signed: Mapping[str, Any],
    signature: str,
    opened_ms: int,
) -> str:
    """The id of the transfer whose proof shows that these signed rows are the sealed ones. Raises InvalidInput where
    they aren't."""
    statement = seals.opening_statement(datanet, contributor, digest, public_key, signed, signature, opened_ms)
    return _write(ledger, statement)


def _write(ledger: LedgerPort, statement: dict[str, Any]) -> str:
    seals.check_statement(statement)
    transfers = seals.transfers_of(statement)
    opened = ledger.create_accounts(seat_accounts(SEALS_ACCOUNT))
    for result in [*opened, *ledger.commit(transfers, statement)]:
        if result not in (CREATED, EXISTS, "linked_transfer_failed"):
            raise Conflict(f"the ledger refused the seal: {result}", code=result, param="digest")
    return transfers[0].transfer_id

"""Removals of rows in the log: `openledger.removal/1` says which rows were forgotten, by whose will, and never what
they said.

No money moves: the batch holds one nano-OPEN of genesis towards the Datanet's account of removals and releases it at
once, so that account's history is the list of removals. A withdrawal carries its contributor's signature, which
everybody can check. Each transfer's id follows from the removal's, so a removal is logged once.
"""

from typing import Any

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signed import withdrawal_bytes
from openledger.core.signing import verify
from openledger.core.values import Removal
from openledger.ledger.accounts import Account
from openledger.ledger.contributor_keys import ContributorKeys
from openledger.ledger.seats import seat_accounts, seat_transfers
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import Transfer

REMOVAL = "openledger.removal/1"
_FIELDS = {"format", "removal_id", "datanet", "kind", "by", "reason", "num_rows", "rows_root", "signed"}


def removal_statement(removal: Removal) -> dict[str, Any]:
    return {
        "format": REMOVAL,
        "removal_id": removal.removal_id,
        "datanet": removal.datanet,
        "kind": removal.kind,
        "by": removal.by,
        "reason": removal.reason,
        "num_rows": len(removal.row_ids),
        "rows_root": removal.rows_root,
        "signed": dict(removal.signed),
    }


def removal_accounts(datanet: str) -> list[Account]:
    return seat_accounts(removals_account(datanet))


def removals_account(datanet: str) -> str:
    return f"holds:removals:{datanet}"


def removal_transfers(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`; the first transfer's proof shows it."""
    name, account = statement["removal_id"], removals_account(statement["datanet"])
    return seat_transfers((name, f"{name}.end"), ("removal", "removal_end"), account, statement["datanet"])


def check_removal(statement: Statement, transfers: tuple[Transfer, ...], keys: ContributorKeys) -> None:
    """Raises Corrupt where the statement lacks something, isn't signed as it says, by one of the `keys` at this place
    of the log, or goes with other transfers."""
    try:
        if set(statement) != _FIELDS or statement["kind"] not in ("withdrawn", "removed"):
            raise InvalidInput("not the fields of a removal")
        expected, signed = removal_transfers(statement), statement["signed"]
        unsigned = statement["kind"] == "withdrawn" and not _is_signed(statement, signed)
    except (InvalidInput, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"not a removal: {error}", code="malformed_statement", param="statement") from error
    if list(transfers) != expected:
        raise Corrupt("the transfers aren't those of the removal", code="removal_differs", param="statement")
    if unsigned:
        raise Corrupt("the contributor didn't sign this withdrawal", code="removal_unsigned", param="statement")
    if statement["kind"] == "withdrawn":
        keys.check(statement["by"], signed["public_key"])


def _is_signed(statement: Statement, signed: dict[str, str]) -> bool:
    message = withdrawal_bytes(
        statement["datanet"], statement["by"], statement["rows_root"], statement["num_rows"], signed["nonce"]
    )
    return verify(signed["public_key"], signed["signature"], message)

"""What a log paid contributors in a period, as a table or as claims. Read from its settlements; decides nothing."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from openledger.core.errors import InvalidInput, NotFound
from openledger.ledger.accounts import UNATTRIBUTED
from openledger.ledger.claims import ClaimTree
from openledger.ledger.export import Claim, read_export
from openledger.ledger.journal import Journal
from openledger.ledger.opening import is_postgres, open_store
from openledger.ledger.statements import SETTLEMENTS, format_of
from openledger.ledger.transfers import Batch

_SQLITE_MAGIC = b"SQLite format 3\x00"


class Payout(NamedTuple):
    period: str
    adapter: str
    account: str
    amount_nano: int
    transfer_id: str


def payouts_in(storage: Path | str, period: str = "") -> list[Payout]:
    """Each payout to a contributor, of one period or of all, in the order of the log."""
    return [payout for batch in batches_in(storage) for payout in _payouts(batch) if period in ("", payout.period)]


def claims_of(payouts: list[Payout], addresses: Mapping[str, str]) -> tuple[ClaimTree, list[str]]:
    """The claims of `payouts`, and the accounts that have no address. Raises InvalidInput where nobody has one."""
    amounts: dict[str, int] = {}
    missing = sorted({payout.account for payout in payouts} - addresses.keys())
    for payout in payouts:
        if payout.account in addresses:
            address = addresses[payout.account]
            amounts[address] = amounts.get(address, 0) + payout.amount_nano
    return ClaimTree(amounts), missing


def csv_of(payouts: list[Payout]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Payout._fields)
    writer.writerows(payouts)
    return text.getvalue()


def read_addresses(path: Path) -> dict[str, str]:
    """Addresses by account, from a JSON object. Raises InvalidInput, NotFound."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"no addresses at {path}: {error.strerror}", code="unknown_file", param="addresses") from error
    except ValueError as error:
        raise _no_addresses(path) from error
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise _no_addresses(path)
    return values


def batches_in(storage: Path | str) -> Iterator[Batch]:
    """The batches of a ledger (file or PostgreSQL URL) or of an export."""
    if is_postgres(storage) or is_database(Path(storage)):
        journal = Journal(open_store(storage, read_only=True))
        try:
            with journal.reading():
                for seq in range(journal.head()[0]):
                    yield journal.batch(seq)
        finally:
            journal.close()
        return
    for entry in read_export(Path(storage)):
        if not isinstance(entry, Claim):
            yield entry[0]


def is_database(path: Path) -> bool:
    """Raises NotFound where there is nothing."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise NotFound(f"no ledger at {path}: {error.strerror}", code="no_ledger", param=str(path)) from error


def _payouts(batch: Batch) -> Iterator[Payout]:
    statement: dict[str, Any] = batch.statement or {}
    if format_of(statement) not in SETTLEMENTS:
        return
    for transfer in batch.transfers:
        if transfer.credit != UNATTRIBUTED:
            yield Payout(
                statement["period"], statement["adapter"], transfer.credit, transfer.amount_nano, transfer.transfer_id
            )


def _no_addresses(path: Path) -> InvalidInput:
    return InvalidInput(
        f"{path} isn't a JSON object of addresses by account",
        code="invalid_addresses",
        param="addresses",
        fix='write {"contributor:ctr_...": "0x..."}',
    )

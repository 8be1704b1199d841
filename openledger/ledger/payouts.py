"""What a log paid contributors, as a table, and what was withdrawn, as claims: read from settlements and rounds.

Decides nothing.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openledger.core.errors import InvalidInput, NotFound
from openledger.core.money import OPEN, Unit
from openledger.ledger.accounts import UNATTRIBUTED
from openledger.ledger.claims import ClaimTree
from openledger.ledger.export import Claim, read_export
from openledger.ledger.journal import Journal
from openledger.ledger.opening import is_postgres, open_store
from openledger.ledger.statements import SETTLEMENTS, format_of
from openledger.ledger.transfers import Batch
from openledger.ledger.units import UNITS
from openledger.ledger.withdrawals import CLAIMS, is_on_chain, pairs

_SQLITE_MAGIC = b"SQLite format 3\x00"


class Payout(NamedTuple):
    period: str
    adapter: str
    account: str
    amount_nano: int
    transfer_id: str
    unit: str


def payouts_in(storage: Path | str, period: str = "") -> list[Payout]:
    """Each payout to a contributor, of one period or of all, in the order of the log."""
    found, unit = list[Payout](), OPEN
    for batch in batches_in(storage):
        unit = _unit_after(batch, unit)
        found += [payout for payout in _payouts(batch, unit) if period in ("", payout.period)]
    return found


class RoundClaims(NamedTuple):
    """A round's claims on a chain, and (payee, amount) of those who have no address there: they are paid by another
    payment, and what is theirs stays in the round's account until that is recorded."""

    tree: ClaimTree
    others: list[tuple[str, int]]


def claims_in(storage: Path | str, number: int) -> RoundClaims:
    """What the round handed over: all of it was taken out of the accounts by withdrawals, and stands in this round
    alone. Raises NotFound (`round_not_found`), InvalidInput (`no_claims`) where nobody in it has an address."""
    unit = OPEN
    for batch in batches_in(storage):
        unit = _unit_after(batch, unit)
        if format_of(batch.statement) == CLAIMS and (batch.statement or {})["round"] == number:
            return _claims_of(number, pairs((batch.statement or {})["withdrawals"]), unit)
    raise NotFound(
        f"there is no round {number}", code="round_not_found", param="round", fix="close one: jobs/operate.py claims"
    )


def _claims_of(number: int, told: list[tuple[str, int]], unit: Unit) -> RoundClaims:
    on_chain = {address: amount for address, amount in told if is_on_chain(address)}
    if not on_chain:
        raise InvalidInput(
            f"nobody in round {number} has an address on a chain",
            code="no_claims",
            param="round",
            fix="pay them by another payment, as the round's CSV names them, and record it: jobs/operate.py paid-out",
        )
    return RoundClaims(ClaimTree(on_chain, unit), [one for one in told if one[0] not in on_chain])


def csv_of(payouts: list[Payout]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Payout._fields)
    writer.writerows(payouts)
    return text.getvalue()


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


def _unit_after(batch: Batch, unit: Unit) -> Unit:
    return Unit(name=(batch.statement or {})["unit"]) if format_of(batch.statement) in UNITS else unit


def _payouts(batch: Batch, unit: Unit) -> Iterator[Payout]:
    statement: dict[str, Any] = batch.statement or {}
    if format_of(statement) not in SETTLEMENTS:
        return
    for transfer in batch.transfers:
        if transfer.credit != UNATTRIBUTED:
            yield Payout(
                period=statement["period"],
                adapter=statement["adapter"],
                account=transfer.credit,
                amount_nano=transfer.amount_nano,
                transfer_id=transfer.transfer_id,
                unit=unit.smallest,
            )

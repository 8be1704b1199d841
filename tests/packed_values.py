"""Short ways to write packed records in the ledger's tests."""

from openledger.ledger import Transfer
from openledger.ledger.packed import pack
from openledger.ledger.transfers import RESULTS


def number_id(number: int) -> str:
    return f"{number:032x}"


def record(number: int, amount_nano: int, debit: str = "user:a", credit: str = "user:b", **more: object) -> Transfer:
    """A transfer that fits a record: its id is a number."""
    pending = more.pop("pending", 0)
    return Transfer(
        transfer_id=number_id(number),
        debit=debit,
        credit=credit,
        amount_nano=amount_nano,
        code="pay",
        pending_id=number_id(pending) if pending else "",  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


def submit_packed(ledger, transfers, linked=()):
    """The names of the results."""
    data = ledger.submit_packed(pack(transfers), bytes(map(int, linked)))
    return [RESULTS[code] for code in data]

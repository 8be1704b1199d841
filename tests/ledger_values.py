"""Short ways to write transfers in the ledger's tests."""

from typing import Any

from openledger.ledger import Account, Transfer


def move(transfer_id: str, amount_nano: int, debit: str = "genesis", credit: str = "user:a", **more: Any) -> Transfer:
    return Transfer(transfer_id=transfer_id, debit=debit, credit=credit, amount_nano=amount_nano, code="grant", **more)


def hold(transfer_id: str, amount_nano: int, timeout_ms: int = 0) -> Transfer:
    return move(transfer_id, amount_nano, "user:a", "user:b", kind="pending", timeout_ms=timeout_ms)


def post(transfer_id: str, amount_nano: int, pending_id: str, credit: str = "user:b") -> Transfer:
    return move(transfer_id, amount_nano, "user:a", credit, kind="post", pending_id=pending_id)


def void(transfer_id: str, amount_nano: int, pending_id: str) -> Transfer:
    return move(transfer_id, amount_nano, "user:a", "user:b", kind="void", pending_id=pending_id)


def accounts() -> list[Account]:
    """Genesis, and the users a, b and c."""
    people = [Account(account_id=f"user:{name}", kind="user") for name in ("a", "b", "c")]
    return [Account(account_id="genesis", kind="genesis", may_go_negative=True), *people]

"""The batch of a statement that moves no money: a nano-OPEN of genesis is held for an account and let go at once.

So the statement has an id that is taken once, a place in the log, and a proof.
"""

from typing import Any

from openledger.ledger.accounts import GENESIS, Account
from openledger.ledger.transfers import Transfer

SEAT_NANO = 1


def seat_accounts(account_id: str) -> list[Account]:
    """What has to be open before the batch."""
    return [
        Account(account_id=GENESIS, kind="genesis", may_go_negative=True),
        Account(account_id=account_id, kind="holds"),
    ]


def seat_transfers(ids: tuple[str, str], codes: tuple[str, str], account_id: str, reference: str) -> list[Transfer]:
    """The hold, whose proof shows the statement, and its release."""
    shared: dict[str, Any] = {
        "debit": GENESIS,
        "credit": account_id,
        "amount_nano": SEAT_NANO,
        "reference": reference,
    }
    return [
        Transfer(transfer_id=ids[0], code=codes[0], kind="pending", **shared),
        Transfer(transfer_id=ids[1], code=codes[1], kind="void", pending_id=ids[0], **shared),
    ]

"""Accounts: who can hold nano-OPEN, and what they hold. Knows the house's own accounts by name, no rule of payment."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from openledger.core.errors import InvalidInput

GENESIS = "genesis"
HOLDS = "holds"
TREASURY = "treasury"
STAKERS = "stakers"
UNATTRIBUTED = "unattributed"
KINDS = frozenset(
    {
        "user",
        "contributor",
        "datanet",
        "adapter",
        "pool",
        "holds",
        "escrow",
        "treasury",
        "stakers",
        "unattributed",
        "genesis",
    }
)
_ACCOUNT_ID = re.compile(r"[a-z0-9][a-z0-9._:-]{0,299}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as it is opened. `may_go_negative` is for genesis alone: down to the whole supply.

    Raises InvalidInput for an id or a kind that can't be.
    """

    account_id: str
    kind: str
    may_go_negative: bool = False

    def __post_init__(self) -> None:
        check_account_id(self.account_id)
        if self.kind not in KINDS:
            raise InvalidInput(
                f"no kind of account is called {self.kind!r}",
                code="invalid_account",
                param="kind",
                fix=f"one of {', '.join(sorted(KINDS))}",
            )
        if self.may_go_negative and self.kind != "genesis":
            raise InvalidInput("only a genesis account may go below zero", code="invalid_account", param="kind")


class Balance(NamedTuple):
    """An account's running sums in nano-OPEN: what is posted, and what holds reserve. A tuple, because every transfer
    makes two of them, and a frozen dataclass takes three times as long to make."""

    account_id: str
    kind: str
    may_go_negative: bool = False
    debits_pending_nano: int = 0
    debits_posted_nano: int = 0
    credits_pending_nano: int = 0
    credits_posted_nano: int = 0

    @property
    def posted_nano(self) -> int:
        """What the account owns, holds on it included."""
        return self.credits_posted_nano - self.debits_posted_nano

    @property
    def available_nano(self) -> int:
        """What it may still spend: posted, less what is held."""
        return self.posted_nano - self.debits_pending_nano


def check_account_id(account_id: str, param: str = "account") -> str:
    """`account_id` if it can be one. Raises InvalidInput otherwise."""
    if not isinstance(account_id, str) or not _ACCOUNT_ID.fullmatch(account_id):
        raise InvalidInput(
            f"{account_id!r} is no account id",
            code="invalid_account",
            param=param,
            fix="write it like user:alice: a-z, 0-9 and . _ : - up to 300 characters",
        )
    return account_id


def account_of(account_id: str) -> Account:
    """The account that an id says: `user:...`, `pool:...`, `holds:stake:...`, or one of the house's own."""
    kind = account_id.partition(":")[0]
    if kind not in KINDS:
        raise InvalidInput(
            f"{account_id!r} is no account id",
            code="invalid_account",
            param="account",
            fix="write it like user:alice or contributor:ctr_...",
        )
    return Account(account_id=account_id, kind=kind, may_go_negative=account_id == GENESIS)


def opened(account: Account) -> Balance:
    return Balance(account_id=account.account_id, kind=account.kind, may_go_negative=account.may_go_negative)


def pool_account(adapter: str, period: str) -> str:
    """Where the contributors' parts of one adapter's fees in one period wait for settlement."""
    return f"pool:{adapter}:{period}"


def pool_key(account_id: str) -> tuple[str, str]:
    """(adapter, period) of a pool's account. Raises InvalidInput for another's."""
    kind, _, rest = account_id.partition(":")
    adapter, _, period = rest.rpartition(":")
    if kind != "pool" or not adapter or pool_account(adapter, period) != check_account_id(account_id, "pool"):
        raise InvalidInput(
            f"{account_id!r} is no pool", code="invalid_account", param="pool", fix="write it like pool:py-docs:p0007"
        )
    return adapter, period

"""What a ledger asks of its storage. `sqlite.SqliteStore` and `postgres.PostgresStore` answer.

Invariants every store keeps:

- **One writer.** Opening for writing raises the epoch that is stored with the data. `writing()` checks, inside its own
  transaction, that the epoch is still the one this store was opened with, and holds whoever would raise it until it
  ends. So of two processes that both believe they are the ledger only the later one writes.
- **Durable or not at all.** When `writing()` ends without an error, everything done inside is on disk. When it raises,
  nothing of it is.
- **Rows, no rules.** A store decides nothing. Transfers stand in the bodies of batches, immutable; `places` is an index
  over their ids, and the rows of accounts and holds are what the log makes of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

FORMAT = "openledger.ledger/2"
MAX_TRANSFERS = 8192  # of a batch: a place is seq x MAX_TRANSFERS + ordinal


class AccountRow(NamedTuple):
    """`number` counts accounts as they are opened; `key` is `packed.account_key`. `last_seq` is the newest batch that
    touched it (-1 for none): with the batches' links it is the account's history."""

    number: int
    account_id: str
    key: bytes
    kind: str
    may_go_negative: int
    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int
    last_seq: int


class HoldRow(NamedTuple):
    """`key` is `packed.id_key` of the pending transfer; `debit` and `credit` are account numbers; `expires_ms` 0 is
    never."""

    key: bytes
    debit: int
    credit: int
    amount: int
    expires_ms: int
    state: str


class BatchRow(NamedTuple):
    """`form` says what `body` is: canonical JSON of transfers, or packed records. `links` are sorted pairs of int64:
    the number of each account touched, and the batch that touched it before (-1 for none)."""

    seq: int
    time_ms: int
    form: str
    body: bytes
    statement: bytes | None
    links: bytes


class Sums(NamedTuple):
    """An account's new sums, in the order that an UPDATE takes them."""

    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int
    last_seq: int
    number: int


class Store(Protocol):
    """Raises Unavailable (`stale_epoch`, `storage_failed`, `database_busy`) or Corrupt from any method."""

    location: str
    epoch: int

    def close(self) -> None: ...

    def writing(self) -> AbstractContextManager[None]: ...

    def reading(self) -> AbstractContextManager[None]: ...

    def meta(self, name: str) -> str: ...

    def set_meta(self, name: str, value: str) -> None: ...

    def head(self) -> tuple[int, int, str]: ...

    def put_head(self, size: int, time_ms: int, note: str) -> None: ...

    def accounts(self, account_ids: Sequence[str]) -> list[AccountRow]: ...

    def accounts_by_key(self, keys: Sequence[bytes]) -> list[AccountRow]: ...

    def accounts_by_number(self, numbers: Sequence[int]) -> list[AccountRow]: ...

    def all_accounts(self) -> Iterator[AccountRow]:
        """By id."""
        ...

    def num_accounts(self) -> int: ...

    def add_accounts(self, rows: Sequence[AccountRow]) -> None: ...

    def put_sums(self, rows: Iterable[Sums | tuple[int, ...]]) -> None: ...

    def add_ids(self, keys: Sequence[bytes], seq: int) -> bool:
        """Index the ids of batch `seq`, in its order. False, and nothing is done, where one is known or comes twice."""
        ...

    def places(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """(seq, ordinal) of the ids that are known."""
        ...

    def holds(self, keys: Sequence[bytes]) -> list[HoldRow]: ...

    def put_holds(self, rows: Iterable[HoldRow]) -> None: ...

    def all_holds(self) -> Iterator[HoldRow]: ...

    def add_batch(self, row: BatchRow) -> None: ...

    def batch(self, seq: int) -> BatchRow | None: ...

    def node(self, level: int, position: int) -> bytes | None: ...

    def add_nodes(self, nodes: Sequence[tuple[int, int, bytes]]) -> None: ...

    def counts(self) -> dict[str, int]:
        """Rows of each table that grows: accounts, transfers, holds, batches, nodes."""
        ...

    def damage(self) -> str:
        """What the database itself finds wrong with its files; empty when nothing, or when it can't tell."""
        ...

    def backup(self, path: Path) -> None:
        """A copy of everything as it stands in one moment, durable at `path`, while others go on writing."""
        ...

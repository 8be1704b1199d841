"""Which store a name stands for."""

from pathlib import Path

from openledger.ledger.store import Store


def open_store(storage: Path | str, *, read_only: bool = False) -> Store:
    """The store that `storage` names: a path, or a PostgreSQL URL."""
    if is_postgres(storage):
        from openledger.ledger.postgres import PostgresStore

        return PostgresStore(str(storage), read_only=read_only)
    from openledger.ledger.sqlite import SqliteStore

    return SqliteStore(Path(storage), read_only=read_only)


def is_postgres(storage: Path | str) -> bool:
    return isinstance(storage, str) and storage.startswith(("postgresql://", "postgres://"))

"""Which store a name stands for."""

from pathlib import Path

from openledger.ledger.store import Store


def open_store(storage: Path | str, *, read_only: bool = False, patience_s: float = 0) -> Store:
    """The store that `storage` names: a path, or a PostgreSQL URL. `patience_s` is how long to wait for a database that
    can't be reached yet."""
    if is_postgres(storage):
        from openledger.ledger.postgres import PostgresStore

        return PostgresStore(str(storage), read_only=read_only, patience_s=patience_s)
    from openledger.ledger.sqlite import SqliteStore

    return SqliteStore(Path(storage), read_only=read_only)


def is_postgres(storage: Path | str) -> bool:
    return isinstance(storage, str) and storage.startswith(("postgresql://", "postgres://"))

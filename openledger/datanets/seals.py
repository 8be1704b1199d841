"""Sealed rows: their place in the order of credit is the seal's, not that of their arrival.

    seal (a digest, signed) -> in the log -> the rows, by its expiry -> credited as of the seal

Owns the seals' and the displaced rows' tables in the registry's file. A seal counts once it is in the log, from where
anybody sees it; who writes there is the platform's affair (`unlogged`, `mark_logged`).

**Place.** Contributions are numbered as they come. A row's place is (n, 0), n its contribution's number, and of sealed
rows (m, s): m the last contribution's number when the seal came, s the seal's own. Places are compared from the left.
So sealed rows stand behind what was there when they were sealed, before all that came after, and in the order of seals
among themselves.

**Displaced.** The gate judges sealed rows against earlier places alone: a copy that came in between doesn't reject its
original. Rows in later places that the gate would have rejected, had the sealed ones been there, are displaced: they
stay accepted, and no adapter is trained on them any more. What was paid for them stays paid.

**What a seal is worth.** Never more than sending the same rows in the open at the same moment, but for one thing: its
owner may keep the rows back. Who seals many guesses and opens the one that another's rows prove right, hides the wrong
ones. So a contributor has at most `MAX_UNOPENED` seals of the last `UNOPENED_MS` without their rows, expired or not.
That binds one key, and keys are free.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import apsw

from openledger.core.errors import Conflict, NotFound
from openledger.core.sealing import Seal, SealReceipt, SealState, seal_digest, sign_seal
from openledger.core.signed import contribution_fields
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution

Place = tuple[int, int]
DAY_MS = 24 * 60 * 60 * 1000
SEAL_MS = 7 * DAY_MS
UNOPENED_MS = 30 * DAY_MS
MAX_UNOPENED = 32
SCHEMA = """
CREATE TABLE IF NOT EXISTS seals (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL, datanet TEXT NOT NULL, contributor_id TEXT NOT NULL,
    public_key TEXT NOT NULL, place_after INTEGER NOT NULL, sealed_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    logged INTEGER NOT NULL DEFAULT 0,
    sequence INTEGER UNIQUE REFERENCES contributions (sequence), opened_ms INTEGER,
    opening_logged INTEGER NOT NULL DEFAULT 0, licence TEXT,
    UNIQUE (contributor_id, digest)
) STRICT;
CREATE INDEX IF NOT EXISTS seals_of_contributor ON seals (contributor_id) WHERE sequence IS NULL;
CREATE TABLE IF NOT EXISTS displaced (row_id TEXT PRIMARY KEY, first TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_COLUMNS = "seals.datanet, seals.contributor_id, digest, sealed_ms, expires_ms, contribution_id"
_IS = "seals.contributor_id = ? AND digest = ?"  # the digest alone can be sent by anybody who reads it on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """That a contribution opens a seal, and which rows it displaces: row id to the sealed row's id."""

    contributor_id: str
    digest: str
    displaced: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloggedSeal:
    """What the log has yet to be told: that a seal came, and, with `signed` (what the contribution's signature covers),
    `signature` and `opened_ms`, that its rows did."""

    datanet: str
    contributor_id: str
    public_key: str
    digest: str
    expires_ms: int
    signed: dict[str, Any] | None = None
    signature: str = ""
    opened_ms: int = 0


def seal_of(key: SigningKey, contribution: Contribution) -> Seal:
    """The seal of signed rows, to be sent before anybody sees them."""
    return sign_seal(key, contribution.datanet, digest_of(contribution))


def digest_of(contribution: Contribution) -> str:
    one = contribution
    signed = contribution_fields(one.datanet, one.contributor_id, one.content_root, len(one.drafts), one.nonce)
    return seal_digest(signed, one.signature)


class SealStore:
    """`writing` is the registry's durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing

    def add(self, seal: Seal, now_ms: int, licence: str) -> SealReceipt:
        """`licence` is the Datanet's now. Durable when it returns; the same seal again gives the first. Raises Conflict
        (`too_many_seals`)."""
        with self._writing():
            if self.find(seal.contributor_id, seal.digest, now_ms) is None:
                self._check_number(seal.contributor_id, now_ms)
                last = self._connection.execute("SELECT coalesce(max(sequence), 0) FROM contributions").get
                self._connection.execute(
                    "INSERT INTO seals (digest, datanet, contributor_id, public_key, place_after, sealed_ms,"
                    " expires_ms, licence) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (seal.digest, seal.datanet, seal.contributor_id, seal.public_key, last, now_ms, now_ms + SEAL_MS,
                     licence),
                )  # fmt: skip
        return self.get(seal.datanet, seal.contributor_id, seal.digest, now_ms)

    def get(self, datanet: str, contributor: str, digest: str, now_ms: int) -> SealReceipt:
        """Raises NotFound (`unknown_seal`)."""
        found = self.find(contributor, digest, now_ms)
        if found is None or found.datanet != datanet:
            raise NotFound(
                f"the Datanet {datanet!r} has no seal {digest} of {contributor}",
                code="unknown_seal",
                param="digest",
                fix="seal the same rows with the same key and nonce, before you show them",
            )
        return found

    def find(self, contributor: str, digest: str, now_ms: int) -> SealReceipt | None:
        query = f"SELECT {_COLUMNS} FROM seals LEFT JOIN contributions USING (sequence) WHERE {_IS}"
        row = self._connection.execute(query, (contributor, digest)).fetchone()
        return None if row is None else _receipt(row, now_ms)

    def place(self, contributor: str, digest: str, now_ms: int) -> Place | None:
        """Where rows that open this seal now stand; None without a seal that waits and is in the log."""
        found = self.find(contributor, digest, now_ms)
        if found is None or found.state != "waiting":
            return None
        query = f"SELECT place_after, number FROM seals WHERE {_IS} AND logged"
        row = self._connection.execute(query, (contributor, digest)).fetchone()
        return None if row is None else (int(row[0]), int(row[1]))

    def key_of(self, contributor: str, digest: str) -> str:
        """The public key that signed the seal; empty without one."""
        row = self._connection.execute(f"SELECT public_key FROM seals WHERE {_IS}", (contributor, digest)).fetchone()
        return "" if row is None else str(row[0])

    def licence_of(self, contributor: str, digest: str) -> str:
        """What the Datanet's licence was when the seal came; empty without one, or where that wasn't kept."""
        row = self._connection.execute(f"SELECT licence FROM seals WHERE {_IS}", (contributor, digest)).fetchone()
        return "" if row is None or row[0] is None else str(row[0])

    def has_any(self, contributor: str) -> bool:
        row = self._connection.execute(
            "SELECT 1 FROM seals WHERE contributor_id = ? LIMIT 1", (contributor,)
        ).fetchone()
        return row is not None

    def open(self, opening: Opening, sequence: int, now_ms: int) -> None:
        """Within the transaction that fixes the contribution's verdicts."""
        values = (sequence, now_ms, opening.contributor_id, opening.digest)
        self._connection.execute(f"UPDATE seals SET sequence = ?, opened_ms = ? WHERE {_IS}", values)
        self.displace(opening.displaced)

    def displace(self, found: Mapping[str, str]) -> None:
        """Within a transaction. A row that is displaced already stays so by the first that did."""
        self._connection.executemany("INSERT OR IGNORE INTO displaced VALUES (?, ?)", sorted(found.items()))

    def displaced(self) -> dict[str, str]:
        """Row id to the id of the sealed row that takes its place."""
        return {str(row): str(first) for row, first in self._connection.execute("SELECT row_id, first FROM displaced")}

    def unlogged(self) -> list[UnloggedSeal]:
        """What the log lacks, in the order in which it happened to each seal."""
        return [*self._unlogged_seals(), *self._unlogged_openings()]

    def mark_logged(self, contributor: str, digest: str, *, opened: bool) -> None:
        column = "opening_logged" if opened else "logged"
        with self._writing():
            self._connection.execute(f"UPDATE seals SET {column} = 1 WHERE {_IS}", (contributor, digest))

    def _unlogged_seals(self) -> Iterable[UnloggedSeal]:
        rows = self._connection.execute(
            "SELECT datanet, contributor_id, public_key, digest, expires_ms FROM seals WHERE NOT logged ORDER BY number"
        )
        for datanet, contributor, public_key, digest, expires_ms in rows:
            yield UnloggedSeal(
                datanet=datanet, contributor_id=contributor, public_key=public_key, digest=digest, expires_ms=expires_ms
            )

    def _unlogged_openings(self) -> Iterable[UnloggedSeal]:
        rows = self._connection.execute(
            "SELECT s.datanet, s.contributor_id, s.public_key, digest, expires_ms, opened_ms, signature, content_root,"
            " nonce, (SELECT count(*) FROM verdicts v WHERE v.sequence = c.sequence)"
            " FROM seals s JOIN contributions c USING (sequence) WHERE NOT opening_logged ORDER BY sequence"
        )
        for datanet, contributor, public_key, digest, expires_ms, opened_ms, signature, root, nonce, num_rows in rows:
            yield UnloggedSeal(
                datanet=datanet,
                contributor_id=contributor,
                public_key=public_key,
                digest=digest,
                expires_ms=expires_ms,
                signed=contribution_fields(datanet, contributor, root, num_rows, nonce),
                signature=signature,
                opened_ms=opened_ms,
            )

    def _check_number(self, contributor: str, now_ms: int) -> None:
        query = "SELECT count(*) FROM seals WHERE contributor_id = ? AND sequence IS NULL AND sealed_ms > ?"
        if int(self._connection.execute(query, (contributor, now_ms - UNOPENED_MS)).get) >= MAX_UNOPENED:
            raise Conflict(
                f"{contributor} has {MAX_UNOPENED} seals of the last 30 days whose rows never came",
                code="too_many_seals",
                param="contributor_id",
                fix="send the rows of an earlier seal, or put more rows under one",
            )


def _receipt(row: tuple[Any, ...], now_ms: int) -> SealReceipt:
    datanet, contributor, digest, sealed_ms, expires_ms, contribution = row
    state: SealState = "expired" if now_ms > expires_ms else "waiting"
    return SealReceipt(
        datanet=datanet,
        contributor_id=contributor,
        digest=digest,
        sealed_ms=sealed_ms,
        expires_ms=expires_ms,
        state="opened" if contribution else state,
        contribution_id=contribution,
    )

"""Authorizations by idempotency key: which answer a key stands for, and what became of its hold.

A record is durable before the ledger is asked, so that a retry after a crash finds the same answer id, and so the same
transfer id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import apsw

from openledger.core.database import writing
from openledger.core.values import AdapterTerms, Authorization
from openledger.economy.pricing import terms_of
from openledger.economy.terms import decode_terms, encode_terms

HoldState = Literal["open", "posted", "released"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS holds(
  answer_id TEXT PRIMARY KEY, account TEXT NOT NULL, idempotency_key TEXT NOT NULL, body_digest TEXT NOT NULL,
  terms TEXT NOT NULL, period TEXT NOT NULL, max_fee_nano INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
  state TEXT NOT NULL, UNIQUE (account, idempotency_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_by_state ON holds(state, expires_ms);
"""
_FIELDS = "answer_id, account, idempotency_key, body_digest, terms, period, max_fee_nano, expires_ms, state"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRecord:
    """`body_digest` covers what was asked for, so that a key can't be used for something else; empty where the hold was
    read back from the log, which doesn't say."""

    answer_id: str
    account: str
    idempotency_key: str
    body_digest: str
    terms: AdapterTerms
    period: str
    max_fee_nano: int
    expires_ms: int
    state: HoldState = "open"

    @property
    def authorization(self) -> Authorization:
        return Authorization(
            answer_id=self.answer_id,
            account=self.account,
            adapter=self.terms.adapter,
            period=self.period,
            max_fee_nano=self.max_fee_nano,
            expires_ms=self.expires_ms,
        )


class HoldStore:
    def __init__(self, connection: apsw.Connection):
        self._db = connection

    def add(self, hold: HoldRecord) -> None:
        values = (
            hold.answer_id,
            hold.account,
            hold.idempotency_key,
            hold.body_digest,
            encode_terms(hold.terms),
            hold.period,
            hold.max_fee_nano,
            hold.expires_ms,
            hold.state,
        )
        with writing(self._db):
            self._db.execute("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def forget(self, answer_id: str) -> None:
        """Drop the record of a hold that the ledger refused, so that its key can be used again."""
        with writing(self._db):
            self._db.execute("DELETE FROM holds WHERE answer_id = ?", (answer_id,))

    def free_key(self, hold: HoldRecord) -> None:
        """Let another hold take the key of a released one, whose record stays under a key that nobody can send."""
        with writing(self._db):
            retired = f"{hold.idempotency_key}\n{hold.answer_id}"
            self._db.execute("UPDATE holds SET idempotency_key = ? WHERE answer_id = ?", (retired, hold.answer_id))

    def find(self, answer_id: str) -> HoldRecord | None:
        return self._one("answer_id = ?", (answer_id,))

    def by_key(self, account: str, idempotency_key: str) -> HoldRecord | None:
        return self._one("account = ? AND idempotency_key = ?", (account, idempotency_key))

    def expired(self, time_ms: int) -> list[HoldRecord]:
        """Open ones whose time is up."""
        query = f"SELECT {_FIELDS} FROM holds WHERE state = 'open' AND expires_ms <= ? ORDER BY answer_id"
        return [_record(row) for row in self._db.execute(query, (time_ms,))]

    def adopt(self, usage: Mapping[str, Any]) -> None:
        """The hold of a sale that only the log knows, under what the log says of its key (`request`)."""
        hold = HoldRecord(
            answer_id=usage["answer_id"],
            account=usage["account"],
            idempotency_key=_read_back(usage["request"]),
            body_digest="",
            terms=terms_of(usage),
            period=usage["period"],
            max_fee_nano=usage["fee_nano"],
            expires_ms=0,
            state="posted",
        )
        self.add(hold)

    def adopted(self, account: str, request: str) -> HoldRecord | None:
        """The one that was read back from the log, by what stands there for its key."""
        return self.by_key(account, _read_back(request))

    def open_terms(self) -> list[AdapterTerms]:
        """Under which there are open ones."""
        query = "SELECT DISTINCT terms FROM holds WHERE state = 'open'"
        return [decode_terms(str(terms)) for (terms,) in self._db.execute(query)]

    def mark(self, answer_id: str, state: HoldState) -> None:
        with writing(self._db):
            self._db.execute("UPDATE holds SET state = ? WHERE answer_id = ?", (state, answer_id))

    def _one(self, where: str, values: tuple[str, ...]) -> HoldRecord | None:
        row = self._db.execute(f"SELECT {_FIELDS} FROM holds WHERE {where}", values).fetchone()
        return None if row is None else _record(row)


def _read_back(request: str) -> str:
    """A key that nobody can send."""
    return f"\n{request}"


def _record(row: tuple[object, ...]) -> HoldRecord:
    answer_id, account, key, body, terms, period, max_fee_nano, expires_ms, state = row
    return HoldRecord(
        answer_id=str(answer_id),
        account=str(account),
        idempotency_key=str(key),
        body_digest=str(body),
        terms=decode_terms(str(terms)),
        period=str(period),
        max_fee_nano=int(str(max_fee_nano)),
        expires_ms=int(str(expires_ms)),
        state=_STATES[str(state)],
    )


_STATES: dict[str, HoldState] = {"open": "open", "posted": "posted", "released": "released"}

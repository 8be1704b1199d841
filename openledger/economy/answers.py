"""The usage journal: answers that were sold and wait for settlement. Durable before the fee is posted.

What was asked and answered is encrypted, and deleted when its pool is settled; the salted commitment and the usage
statement stay. `state`: stored -> posted -> settled, or unpaid where the hold had gone before it could be posted.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import apsw

from openledger.core.hashing import canonical_json, digest_json
from openledger.core.values import Answer
from openledger.economy.payloads import PayloadCipher
from openledger.ledger.database import writing

AnswerState = Literal["stored", "posted", "settled", "unpaid"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers(
  answer_id TEXT PRIMARY KEY, adapter TEXT NOT NULL, period TEXT NOT NULL, pool_nano INTEGER NOT NULL,
  statement BLOB NOT NULL, payload BLOB, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_pool ON answers(adapter, period);
CREATE INDEX IF NOT EXISTS answers_waiting ON answers(state) WHERE state = 'stored';
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """`usage` is the statement that the log will hold; `sealed` is empty once the pool is settled."""

    usage: dict[str, Any]
    sealed: bytes
    state: AnswerState

    @property
    def answer_id(self) -> str:
        return str(self.usage["answer_id"])


def new_salt() -> str:
    return secrets.token_hex(32)


def commitment(answer: Answer, salt: str) -> str:
    """What the log says of an answer's content: nothing, unless one has the salt and the content."""
    return digest_json(
        {
            "salt": salt,
            "answer_id": answer.answer_id,
            "prompt_ids": list(answer.prompt_ids),
            "completion_ids": list(answer.completion_ids),
            "adapter_digest": answer.adapter_digest,
        }
    )


class AnswerStore:
    def __init__(self, connection: apsw.Connection, cipher: PayloadCipher):
        self._db = connection
        self._cipher = cipher

    def add(self, answer: Answer, salt: str, usage: dict[str, Any]) -> StoredAnswer:
        """Store `answer`, encrypted, with its usage statement. Durable when this returns."""
        content = {"salt": salt, "prompt_ids": list(answer.prompt_ids), "completion_ids": list(answer.completion_ids)}
        sealed = self._cipher.seal(answer.answer_id, canonical_json(content))
        pool_nano = usage["parts_nano"]["contributors"]
        row = (answer.answer_id, usage["adapter"], usage["period"], pool_nano, canonical_json(usage), sealed, "stored")
        with writing(self._db):
            self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return StoredAnswer(usage=usage, sealed=sealed, state="stored")

    def find(self, answer_id: str) -> StoredAnswer | None:
        return next(iter(self._select("answer_id = ?", (answer_id,))), None)

    def waiting(self) -> list[StoredAnswer]:
        """Stored, and not yet posted."""
        return self._select("state = 'stored'", ())

    def mark(self, answer_id: str, state: AnswerState) -> None:
        with writing(self._db):
            self._db.execute("UPDATE answers SET state = ? WHERE answer_id = ?", (state, answer_id))

    def in_pool(self, adapter: str, period: str) -> list[Answer]:
        """The decrypted answers that paid into a pool and are not settled. Raises Corrupt where one doesn't decrypt."""
        where = "adapter = ? AND period = ? AND state = 'posted' AND pool_nano > 0"
        return [self.open(stored) for stored in self._select(where, (adapter, period))]

    def pool_nano(self, adapter: str, period: str) -> int:
        """What answers, settled or not, paid into a pool."""
        query = """SELECT coalesce(sum(pool_nano), 0) FROM answers
                   WHERE adapter = ? AND period = ? AND state IN ('posted', 'settled')"""
        row = self._db.execute(query, (adapter, period)).fetchall()[0]
        return int(str(row[0]))

    def unsettled_pools(self) -> list[tuple[str, str]]:
        """(adapter, period) of every pool with money that waits."""
        query = "SELECT DISTINCT adapter, period FROM answers WHERE state = 'posted' AND pool_nano > 0 ORDER BY 2, 1"
        return [(str(adapter), str(period)) for adapter, period in self._db.execute(query)]

    def settle(self, adapter: str, period: str) -> None:
        """Delete what a settled pool's answers said; also from the write-ahead log."""
        with writing(self._db):
            self._db.execute(
                """UPDATE answers SET state = 'settled', payload = NULL
                   WHERE adapter = ? AND period = ? AND state = 'posted'""",
                (adapter, period),
            )
        self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def open(self, stored: StoredAnswer) -> Answer:
        content = json.loads(self._cipher.open(stored.answer_id, stored.sealed))
        usage = stored.usage
        return Answer(
            answer_id=stored.answer_id,
            adapter=usage["adapter"],
            adapter_digest=usage["adapter_digest"],
            period=usage["period"],
            prompt_ids=tuple(content["prompt_ids"]),
            completion_ids=tuple(content["completion_ids"]),
            fee_nano=usage["fee_nano"],
            pool_nano=usage["parts_nano"]["contributors"],
            salt=content["salt"],
        )

    def _select(self, where: str, values: tuple[str, ...]) -> list[StoredAnswer]:
        query = f"SELECT statement, payload, state FROM answers WHERE {where} ORDER BY answer_id"
        return [
            StoredAnswer(usage=json.loads(statement), sealed=payload or b"", state=_STATES[str(state)])
            for statement, payload, state in self._db.execute(query, values)
        ]


_STATES: dict[str, AnswerState] = {
    "stored": "stored",
    "posted": "posted",
    "settled": "settled",
    "unpaid": "unpaid",
}

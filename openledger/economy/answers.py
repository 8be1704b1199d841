"""The usage journal: answers that were sold and wait for settlement. Durable before the fee is posted.

What was asked and answered is encrypted under its tenant's key, or not kept at all where the tenant wants it so. It is
deleted when its time is up, or when its settled pool can't be disputed any more; the salted commitment and the usage
statement stay. `state`: stored -> posted -> settled, or unpaid where the hold had gone before it could be posted;
refunded once its fee went back, before or after its settlement.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import apsw

from openledger.core.database import writing
from openledger.core.hashing import canonical_json, digest_json
from openledger.core.values import Answer
from openledger.economy.tenants import TenantStore

AnswerState = Literal["stored", "posted", "settled", "unpaid", "refunded"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers(
  answer_id TEXT PRIMARY KEY, adapter TEXT NOT NULL, period TEXT NOT NULL, pool_nano INTEGER NOT NULL,
  statement BLOB NOT NULL, payload BLOB, state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_pool ON answers(adapter, period);
CREATE INDEX IF NOT EXISTS answers_waiting ON answers(state) WHERE state = 'stored';
CREATE INDEX IF NOT EXISTS answers_kept ON answers(answer_id) WHERE payload IS NOT NULL;
CREATE TABLE IF NOT EXISTS last_posted(place INTEGER PRIMARY KEY, answer_id TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """`usage` is the statement that the log will hold; `sealed` is empty where the content isn't kept."""

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
            **_ensemble(answer),
        }
    )


def _ensemble(answer: Answer) -> dict[str, Any]:
    """Nothing for one adapter's answer. Weights in text: no float goes into what is signed for."""
    return {"ensemble": [[digest, repr(weight)] for digest, weight in answer.ensemble]} if answer.ensemble else {}


class AnswerStore:
    def __init__(self, connection: apsw.Connection, tenants: TenantStore):
        self._db = connection
        self._tenants = tenants

    def sealed(self, answer: Answer, salt: str, usage: dict[str, Any]) -> StoredAnswer:
        """What `add` stores of an answer: `usage` is its statement, whose commitment was made with `salt`. The content
        is encrypted, or left out where its tenant keeps none. Raises Corrupt where the tenant's key doesn't open."""
        return StoredAnswer(usage=usage, sealed=self._seal(answer, salt, str(usage["account"])), state="stored")

    def add(self, answers: Sequence[StoredAnswer]) -> None:
        """Store answers, all of them or none. Durable when this returns."""
        with writing(self._db):
            self._db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, 'stored')", map(_row, answers))

    def find(self, answer_id: str) -> StoredAnswer | None:
        return next(iter(self._select("answer_id = ?", (answer_id,))), None)

    def waiting(self) -> list[StoredAnswer]:
        """Stored, and not yet posted."""
        return self._select("state = 'stored'", ())

    def mark(self, answer_id: str, state: AnswerState) -> None:
        with writing(self._db):
            self._db.execute("UPDATE answers SET state = ? WHERE answer_id = ?", (state, answer_id))
            if state == "posted":
                self._remember(answer_id)

    def last_posted(self) -> str:
        """The answer that was posted last; the newest that was, where that wasn't noted. Empty where none was."""
        query = f"""SELECT answer_id FROM last_posted
                    UNION ALL SELECT max(answer_id) FROM answers WHERE {_IN_LOG} LIMIT 1"""
        return str(self._db.execute(query).get or "")

    def in_log(self) -> list[str]:
        """Answers whose fee the log should have."""
        return [str(row[0]) for row in self._db.execute(f"SELECT answer_id FROM answers WHERE {_IN_LOG}")]

    def refunded(self) -> list[str]:
        return [str(row[0]) for row in self._db.execute("SELECT answer_id FROM answers WHERE state = 'refunded'")]

    def unrefund(self, answer_id: str) -> None:
        with writing(self._db):
            self._db.execute("UPDATE answers SET state = 'posted' WHERE answer_id = ?", (answer_id,))

    def forget_posted(self) -> None:
        with writing(self._db):
            self._db.execute("DELETE FROM last_posted")

    def adopt(self, usage: dict[str, Any], refunded: bool) -> None:
        """An answer that only the log knows, the newest there of those that are known: what it said is lost."""
        row = (*_row(StoredAnswer(usage=usage, sealed=b"", state="posted")), "refunded" if refunded else "posted")
        with writing(self._db):
            self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._remember(str(usage["answer_id"]))

    def in_pool(self, adapter: str, period: str) -> list[Answer]:
        """The decrypted answers that paid into a pool, those that can still be read. Raises Corrupt where one doesn't
        decrypt."""
        return [self.open(stored) for stored in self._select(f"{_PAID} AND payload IS NOT NULL", (adapter, period))]

    def unreadable(self, adapter: str, period: str) -> tuple[int, int]:
        """How many answers paid into a pool whose content isn't there, and how much (nano-OPEN)."""
        query = f"SELECT count(*), coalesce(sum(pool_nano), 0) FROM answers WHERE {_PAID} AND payload IS NULL"
        number, amount_nano = self._db.execute(query, (adapter, period)).fetchall()[0]
        return int(str(number)), int(str(amount_nano))

    def readable(self, adapter: str, period: str) -> dict[str, int]:
        """`num_answers` that paid into a pool whose content is there, and the `answers_nano` that they paid."""
        query = f"SELECT count(*), coalesce(sum(pool_nano), 0) FROM answers WHERE {_PAID} AND payload IS NOT NULL"
        number, amount_nano = self._db.execute(query, (adapter, period)).fetchall()[0]
        return {"num_answers": int(str(number)), "answers_nano": int(str(amount_nano))}

    def pool_nano(self, adapter: str, period: str) -> int:
        """What answers, settled or not, paid into a pool."""
        query = """SELECT coalesce(sum(pool_nano), 0) FROM answers
                   WHERE adapter = ? AND period = ? AND state IN ('posted', 'settled')"""
        row = self._db.execute(query, (adapter, period)).fetchall()[0]
        return int(str(row[0]))

    def pools(self) -> list[tuple[str, str]]:
        """(adapter, period) of whatever was sold."""
        query = "SELECT DISTINCT adapter, period FROM answers"
        return [(str(adapter), str(period)) for adapter, period in self._db.execute(query)]

    def unsettled_pools(self) -> list[tuple[str, str]]:
        """(adapter, period) of every pool with money that waits."""
        query = "SELECT DISTINCT adapter, period FROM answers WHERE state = 'posted' AND pool_nano > 0 ORDER BY 2, 1"
        return [(str(adapter), str(period)) for adapter, period in self._db.execute(query)]

    def last_settled(self) -> str:
        """The last period with a settled pool; empty where there is none."""
        row = self._db.execute("SELECT max(period) FROM answers WHERE state = 'settled'").fetchall()[0]
        return str(row[0] or "")

    def adapters_settled(self, period: str) -> list[str]:
        """Adapters whose pools of a period are settled."""
        query = (
            "SELECT DISTINCT adapter FROM answers WHERE period = ? AND state = 'settled' AND pool_nano > 0 ORDER BY 1"
        )
        return [str(row[0]) for row in self._db.execute(query, (period,))]

    def periods_settled(self) -> list[str]:
        """Those with a settled pool, the newest first."""
        query = "SELECT DISTINCT period FROM answers WHERE state = 'settled' ORDER BY length(period) DESC, period DESC"
        return [str(row[0]) for row in self._db.execute(query)]

    def unsettle(self, adapter: str, period: str) -> None:
        with writing(self._db):
            query = "UPDATE answers SET state = 'posted' WHERE adapter = ? AND period = ? AND state = 'settled'"
            self._db.execute(query, (adapter, period))

    def settle(self, adapter: str, period: str) -> None:
        with writing(self._db):
            self._db.execute(
                "UPDATE answers SET state = 'settled' WHERE adapter = ? AND period = ? AND state = 'posted'",
                (adapter, period),
            )

    def settled_with_content(self) -> list[tuple[str, str]]:
        """(adapter, period) of settled pools of which some content is left."""
        query = """SELECT DISTINCT adapter, period FROM answers WHERE payload IS NOT NULL AND state = 'settled'
                   ORDER BY 2, 1"""
        return [(str(adapter), str(period)) for adapter, period in self._db.execute(query)]

    def erase_pool(self, adapter: str, period: str) -> int:
        """Delete what a pool's answers said; of how many."""
        return self._erase("adapter = ? AND period = ?", (adapter, period))

    def erase_before(self, answer_id: str, current: str) -> int:
        """Delete what answers said whose ids are older; of how many. Not of pools that wait for settlement: those of
        another period than the `current` one."""
        waits = "period != ? AND pool_nano > 0 AND state IN ('stored', 'posted')"
        return self._erase(f"answer_id < ? AND NOT ({waits})", (answer_id, current))

    def kept_of(self, account: str) -> int:
        """How many of a tenant's answers have their content."""
        query = (
            """SELECT count(*) FROM answers JOIN holds USING (answer_id) WHERE account = ? AND payload IS NOT NULL"""
        )
        return int(str(self._db.execute(query, (account,)).get))

    def erase_of(self, account: str) -> int:
        """Delete what a tenant's answers said; of how many."""
        return self._erase("answer_id IN (SELECT answer_id FROM holds WHERE account = ?)", (account,))

    def open(self, stored: StoredAnswer) -> Answer:
        content = json.loads(self._tenants.open(stored.usage["account"], stored.answer_id, stored.sealed))
        usage = stored.usage
        return Answer(
            answer_id=stored.answer_id,
            adapter=usage["adapter"],
            adapter_digest=usage["adapter_digest"],
            period=usage["period"],
            prompt_ids=tuple(content["prompt_ids"]),
            completion_ids=tuple(content["completion_ids"]),
            cached_tokens=content.get("cached_tokens", 0),
            engine_us=content.get("engine_us", 0),
            ensemble=tuple((digest, float(weight)) for digest, weight in content.get("ensemble", ())),
            fee_nano=usage["fee_nano"],
            pool_nano=usage["parts_nano"]["contributors"],
            salt=content["salt"],
        )

    def _remember(self, answer_id: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO last_posted VALUES (0, ?)", (answer_id,))

    def _seal(self, answer: Answer, salt: str, account: str) -> bytes:
        if not self._tenants.keeps(account):
            return b""
        content = {
            "salt": salt,
            "prompt_ids": list(answer.prompt_ids),
            "completion_ids": list(answer.completion_ids),
            "cached_tokens": answer.cached_tokens,
            "engine_us": answer.engine_us,
            **_ensemble(answer),
        }
        return self._tenants.seal(account, answer.answer_id, canonical_json(content))

    def _erase(self, where: str, values: tuple[str, ...]) -> int:
        """Also from the write-ahead log."""
        with writing(self._db):
            self._db.execute(f"UPDATE answers SET payload = NULL WHERE payload IS NOT NULL AND {where}", values)
            erased = self._db.changes()
        if erased:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return erased

    def _select(self, where: str, values: tuple[str, ...]) -> list[StoredAnswer]:
        query = f"SELECT statement, payload, state FROM answers WHERE {where} ORDER BY answer_id"
        return [
            StoredAnswer(usage=json.loads(statement), sealed=payload or b"", state=_STATES[str(state)])
            for statement, payload, state in self._db.execute(query, values)
        ]


def _row(stored: StoredAnswer) -> tuple[str | int | bytes | None, ...]:
    usage = stored.usage
    pool_nano = usage["parts_nano"]["contributors"]
    statement, sealed = canonical_json(usage), stored.sealed or None
    return stored.answer_id, usage["adapter"], usage["period"], pool_nano, statement, sealed


_PAID = "adapter = ? AND period = ? AND state IN ('posted', 'settled') AND pool_nano > 0"
_IN_LOG = "state IN ('posted', 'settled', 'refunded')"
_STATES: dict[str, AnswerState] = {
    "stored": "stored",
    "posted": "posted",
    "settled": "settled",
    "unpaid": "unpaid",
    "refunded": "refunded",
}

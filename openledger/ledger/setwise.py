"""The rules over packed records, as sets: the same results as `rules.apply_each`, at a twentieth of its cost.

Where all transfers of a batch are plain (no holds), and each account could pay everything that the batch takes from it
with what it had before, the order of the batch can't matter and everything is created: two sums for each account.
Everything else goes record by record over integers, in the order given. A test holds both against `rules`.

Sums stay in memory between batches (`Sheet`): the ledger is the one writer, and each write checks that it still is.
Knows no storage and no clock.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput
from openledger.core.money import SUPPLY_NANO
from openledger.ledger.packed import KINDS, RECORD_BYTES
from openledger.ledger.rules import MAX_SUM_NANO
from openledger.ledger.store import AccountRow, HoldRow, Sums
from openledger.ledger.transfers import CREATED, EXISTS, LINKED_FAILED

Int64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
RECORD = np.dtype(
    [
        ("id", "V16"),
        ("debit", "<u8", 2),
        ("credit", "<u8", 2),
        ("pending", "V16"),
        ("reference", "V16"),
        ("code", "<u8", 2),
        ("amount", "<i8"),
        ("timeout", "<u4"),
        ("kind", "u1"),
        ("zeros", "u1", 3),
    ]
)
SINGLE, PENDING, POST, VOID = range(len(KINDS))
_CODE = re.compile(rb"[a-z][a-z_]{0,15}\0*")
_NOTHING = bytes(16)
_DP, _DD, _CP, _CC = range(4)  # columns of `Sheet.sums`: debits pending and posted, credits pending and posted
_MOST_ACCOUNTS = 1_000_000


def new_ids(count: int, time_ms: int, random: Callable[[int], bytes]) -> npt.NDArray[np.void]:
    """`count` ids that sort by time: 48 bits of milliseconds, 16 of counting, 64 random."""
    ids = np.zeros((count, 16), np.uint8)
    ids[:, :6] = np.frombuffer(time_ms.to_bytes(6, "big"), np.uint8)
    ids[:, 6:8] = (np.arange(count) % 2**16).astype(">u2").view(np.uint8).reshape(count, 2)
    ids[:, 8:] = np.frombuffer(random(8 * count), np.uint8).reshape(count, 8)
    return ids.view("V16").ravel()


def read_records(data: bytes) -> Records:
    """The records in `data`. Raises InvalidInput naming the first that could never be a transfer."""
    if not data or len(data) % RECORD_BYTES:
        raise InvalidInput("records have 112 bytes each", code="invalid_records", param="data")
    records = np.frombuffer(data, RECORD)
    words = np.frombuffer(data, "<u8").reshape(-1, RECORD_BYTES // 8)
    kind, amount = records["kind"], records["amount"]
    resolves = kind >= POST
    _refuse((amount < 1) | (amount > SUPPLY_NANO), "invalid_amount", "amount_nano", "a whole number of nano-OPEN")
    _refuse((words[:, 2] == words[:, 4]) & (words[:, 3] == words[:, 5]), "same_account", "credit", "another account")
    _refuse(kind > VOID, "invalid_kind", "kind", "one of single, pending, post, void")
    _refuse(
        (words[:, 6] | words[:, 7] != 0) != resolves, "invalid_pending_id", "pending_id", "post and void name a hold"
    )
    _refuse((records["timeout"] > 0) & (kind != PENDING), "invalid_timeout", "timeout_ms", "only a hold has a timeout")
    _refuse((words[:, 0] | words[:, 1]) == 0, "invalid_transfer_id", "transfer_id", "an id that isn't all zeros")
    _refuse(words[:, 13] >> 40 != 0, "invalid_records", "zeros", "three zero bytes at a record's end")
    _check_codes(words[:, 10:12])
    return records


@dataclass(slots=True)
class Sheet:
    """Accounts in memory, in slots, found by their keys through a hash table (open addressing, at most half full)."""

    table: Int64 = field(default_factory=lambda: np.full(16, -1, np.int64))
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    numbers: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    floors: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: Int64 = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    last: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    slots: dict[int, int] = field(default_factory=dict)

    def add(self, rows: Sequence[AccountRow]) -> None:
        """Accounts that aren't there yet."""
        if not rows:
            return
        first = len(self.numbers)
        self.slots.update({row.number: first + place for place, row in enumerate(rows)})
        added = np.frombuffer(b"".join(row.key for row in rows), "<u8").reshape(-1, 2)
        self.keys = np.concatenate([self.keys, added])
        self.numbers = np.concatenate([self.numbers, [row.number for row in rows]])
        floors = [-SUPPLY_NANO if row.may_go_negative else 0 for row in rows]
        self.floors = np.concatenate([self.floors, floors])
        self.sums = np.concatenate([self.sums, np.array([row[5:9] for row in rows], np.int64)])
        self.last = np.concatenate([self.last, [row.last_seq for row in rows]])
        if 2 * len(self.numbers) > len(self.table):
            self.table = np.full(4 << len(self.numbers).bit_length(), -1, np.int64)
            first = 0
        self._enter(first)

    def find(self, keys: npt.NDArray[np.uint64]) -> Int64:
        """Slots of `keys` [n, 2]; -1 where there is none."""
        mask = len(self.table) - 1
        at = (keys[:, 0] & np.uint64(mask)).astype(np.int64)
        slots = self.table[at]
        left = np.flatnonzero(self._others(slots, keys))
        while len(left):
            at[left] = (at[left] + 1) & mask
            slots[left] = self.table[at[left]]
            left = left[self._others(slots[left], keys[left])]
        return slots

    def _others(self, slots: Int64, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Where a slot of the table is taken, and by another account."""
        if not len(self.keys):
            return np.zeros(len(slots), bool)
        there = self.keys.take(slots, axis=0, mode="clip")
        return (slots >= 0) & ((there[:, 0] != keys[:, 0]) | (there[:, 1] != keys[:, 1]))

    def _enter(self, first: int) -> None:
        mask = len(self.table) - 1
        for slot in range(first, len(self.numbers)):
            at = int(self.keys[slot, 0]) & mask
            while self.table[at] >= 0:
                at = (at + 1) & mask
            self.table[at] = slot

    def put(self, rows: Sequence[Sums]) -> None:
        """New sums of accounts, those that are here."""
        for row in rows:
            slot = self.slots.get(row.number)
            if slot is not None:
                self.sums[slot], self.last[slot] = row[:4], row.last_seq

    @property
    def is_large(self) -> bool:
        return len(self.numbers) > _MOST_ACCOUNTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`results` one for each record; `created` the places of those that were; `sums` [n, 4] of the accounts in
    `slots`; `holds` new and changed."""

    results: list[str]
    created: list[int]
    slots: Int64
    sums: Int64
    holds: list[HoldRow]


def apply_as_set(sheet: Sheet, records: Records, debits: Int64, credits: Int64) -> Outcome | None:
    """What `records` do if all are created whatever their order; None if that isn't certain. Slots of accounts
    beside them."""
    if (records["kind"] != SINGLE).any() or min(debits.min(), credits.min()) < 0:
        return None
    amounts = records["amount"]
    if np.float64(amounts.astype(np.float64).sum()) > 2.0**62:
        return None  # sums of parts of it could leave 64 bits
    size = len(sheet.numbers)
    out, into = np.zeros(size, np.int64), np.zeros(size, np.int64)
    np.add.at(out, debits, amounts)
    np.add.at(into, credits, amounts)
    slots = np.flatnonzero(out + into)
    out, into, sums = out[slots], into[slots], sheet.sums[slots]
    available = sums[:, _CC] - sums[:, _DD] - sums[:, _DP]
    funded = out <= available - sheet.floors[slots]
    within = (out <= MAX_SUM_NANO - (sums[:, _DD] + sums[:, _DP])) & (
        into <= MAX_SUM_NANO - (sums[:, _CC] + sums[:, _CP])
    )
    if not (funded & within).all():
        return None
    sums[:, _DD] += out
    sums[:, _CC] += into
    count = len(records)
    return Outcome(results=[CREATED] * count, created=list(range(count)), slots=slots, sums=sums, holds=[])


@dataclass(slots=True)
class Known:
    """What is known of ids: results of records whose id exists, holds by id, ids that name something else."""

    results: Mapping[int, str] = field(default_factory=dict)
    holds: Mapping[bytes, HoldRow] = field(default_factory=dict)
    others: frozenset[bytes] = frozenset()


def apply_in_order(
    sheet: Sheet, records: Records, debits: Int64, credits: Int64, linked: Sequence[bool], known: Known, time_ms: int
) -> Outcome:
    """As `rules.apply_each`: chain after chain, each whole or not at all. `linked[i]` ties record i to the next."""
    run = _Run(sheet, records, debits.tolist(), credits.tolist(), known, time_ms)
    start = 0
    for place, ties in enumerate(linked):
        if not ties:
            run.take(range(start, place + 1))
            start = place + 1
    run.take(range(start, len(records)))
    created = [place for place, result in enumerate(run.results) if result == CREATED]
    return run.outcome(created, np.unique(np.concatenate([debits[created], credits[created]])))


def apply_if_all(
    sheet: Sheet, records: Records, debits: Int64, credits: Int64, known: Known, time_ms: int
) -> Outcome | None:
    """What `records` do if, in their order, all are created, whatever ties them: chains matter where one is refused.
    None where one is; `known` has no results."""
    run = _Run(sheet, records, debits.tolist(), credits.tolist(), known, time_ms)
    if not run.creates_all():
        return None
    return run.outcome(list(range(len(records))), np.unique(np.concatenate([debits, credits])))


class _Run:
    """One pass over a batch: the sums and holds it has changed so far."""

    def __init__(
        self, sheet: Sheet, records: Records, debits: list[int], credits: list[int], known: Known, time_ms: int
    ):
        self.known, self.time_ms = known, time_ms
        self.debits, self.credits = debits, credits
        slots = sorted({*debits, *credits} - {-1})
        self.sums = dict(zip(slots, sheet.sums[slots].tolist(), strict=True))
        self.floors = dict(zip(slots, sheet.floors[slots].tolist(), strict=True))
        self.numbers = {**dict(zip(slots, sheet.numbers[slots].tolist(), strict=True)), -1: -1}
        self.ids, self.pending = records["id"].tolist(), records["pending"].tolist()
        self.amounts, self.kinds = records["amount"].tolist(), records["kind"].tolist()
        self.timeouts = records["timeout"].tolist()
        self.rows = records
        self.results: list[str] = []
        self.holds: dict[bytes, HoldRow] = {}
        self.placed: dict[bytes, int] = {}

    def outcome(self, created: list[int], slots: Int64) -> Outcome:
        sums = np.array([self.sums[slot] for slot in slots.tolist()], np.int64).reshape(-1, 4)
        return Outcome(results=self.results, created=created, slots=slots, sums=sums, holds=list(self.holds.values()))

    def creates_all(self) -> bool:
        placed, resolve, place_one = self.placed, self.resolve, self.place
        for place, (name, kind) in enumerate(zip(self.ids, self.kinds, strict=True)):
            result = resolve(place) if kind >= POST else place_one(place)
            if result != CREATED or name in placed:
                return False
            placed[name] = place
        self.results = [CREATED] * len(self.ids)
        return True

    def take(self, chain: range) -> None:
        if not chain:
            return
        found = [self.seen(place) for place in chain]
        if any(found):
            results = [result or CREATED for result in found]
            self.results += results if all(result == EXISTS for result in results) else _link(results)
        elif len(chain) == 1:
            self.results += self.judge_chain(chain)  # what is refused changes nothing
        else:
            self.results += self.judge_together(chain)

    def judge_together(self, chain: range) -> list[str]:
        slots = {slot for place in chain for slot in (self.debits[place], self.credits[place]) if slot >= 0}
        names = {name for place in chain for name in (self.ids[place], self.pending[place])}
        sums = {slot: self.sums[slot].copy() for slot in slots}
        holds = {name: self.holds[name] for name in names if name in self.holds}
        results = self.judge_chain(chain)
        if all(result == CREATED for result in results):
            return results
        self.sums.update(sums)
        for name in names:  # none of the chain's ids was placed before: `take` looked
            self.holds.pop(name, None)
        self.holds.update(holds)
        for place in chain:
            self.placed.pop(self.ids[place], None)
        return _link(results)

    def judge_chain(self, chain: range) -> list[str]:
        first: dict[bytes, int] = {}
        results = []
        for place in chain:
            twin = first.setdefault(self.ids[place], place)
            result = self.judge(place) if twin == place else self.compare(place, twin)
            if result == CREATED:
                self.placed[self.ids[place]] = place
            results.append(result)
        return results

    def seen(self, place: int) -> str:
        """The result of a record whose id is known from before or from an earlier chain; empty if it isn't."""
        if place in self.known.results:
            return self.known.results[place]
        twin = self.placed.get(self.ids[place])
        return "" if twin is None else self.compare(place, twin)

    def judge(self, place: int) -> str:
        return self.resolve(place) if self.kinds[place] >= POST else self.place(place)

    def place(self, place: int) -> str:
        debit, credit, amount = self.debits[place], self.credits[place], self.amounts[place]
        if debit < 0:
            return "debit_account_not_found"
        if credit < 0:
            return "credit_account_not_found"
        payer, payee = self.sums[debit], self.sums[credit]
        if payer[_CC] - payer[_DD] - payer[_DP] - amount < self.floors[debit]:
            return "exceeds_credits"
        if payer[_DD] + payer[_DP] + amount > MAX_SUM_NANO:
            return "overflows_debits"
        if payee[_CC] + payee[_CP] + amount > MAX_SUM_NANO:
            return "overflows_credits"
        if self.kinds[place] == SINGLE:
            payer[_DD] += amount
            payee[_CC] += amount
            return CREATED
        payer[_DP] += amount
        payee[_CP] += amount
        name, timeout_ms = self.ids[place], self.timeouts[place]
        expires_ms = self.time_ms + timeout_ms if timeout_ms else 0
        self.holds[name] = HoldRow(name, self.numbers[debit], self.numbers[credit], amount, expires_ms, "pending")
        return CREATED

    def resolve(self, place: int) -> str:
        name = self.pending[place]
        hold = self.holds.get(name) or self.known.holds.get(name)
        if hold is None:
            other = name in self.known.others or name in self.placed
            return "pending_transfer_not_pending" if other else "pending_transfer_not_found"
        if refusal := self.refusal(place, hold):
            return refusal
        debit, credit = self.debits[place], self.credits[place]
        taken = self.amounts[place] if self.kinds[place] == POST else 0
        payer, payee = self.sums[debit], self.sums[credit]
        if payer[_DD] + payer[_DP] - hold.amount + taken > MAX_SUM_NANO:
            return "overflows_debits"
        if payee[_CC] + payee[_CP] - hold.amount + taken > MAX_SUM_NANO:
            return "overflows_credits"
        payer[_DP] -= hold.amount
        payer[_DD] += taken
        payee[_CP] -= hold.amount
        payee[_CC] += taken
        self.holds[name] = HoldRow(*hold[:5], "posted" if self.kinds[place] == POST else "voided")
        return CREATED

    def refusal(self, place: int, hold: HoldRow) -> str:
        if hold.state != "pending":
            return f"pending_transfer_already_{hold.state}"
        if (self.numbers[self.debits[place]], self.numbers[self.credits[place]]) != (hold.debit, hold.credit):
            return "pending_transfer_has_different_accounts"
        if self.kinds[place] == VOID:
            return "" if self.amounts[place] == hold.amount else "pending_transfer_has_different_amount"
        if self.amounts[place] > hold.amount:
            return "exceeds_pending_amount"
        return "pending_transfer_expired" if hold.expires_ms and self.time_ms >= hold.expires_ms else ""

    def compare(self, place: int, twin: int) -> str:
        one, other = self.rows[place], self.rows[twin]
        for column, name in _FIELDS.items():
            if one[column].tobytes() != other[column].tobytes():
                return f"exists_with_different_{name}"
        return EXISTS


# in the order in which `transfers.compare` looks at them
_FIELDS = {
    "debit": "debit",
    "credit": "credit",
    "amount": "amount_nano",
    "code": "code",
    "reference": "reference",
    "kind": "kind",
    "pending": "pending_id",
    "timeout": "timeout_ms",
}


def links_of(numbers: Int64, last: Int64) -> bytes:
    """The links of a batch that touches the accounts `numbers`, last touched by `last`."""
    order = np.argsort(numbers)
    return np.stack([numbers[order], last[order]], axis=1).astype("<i8").tobytes()


def sums_rows(sheet: Sheet, outcome: Outcome, seq: int) -> Iterator[tuple[int, ...]]:
    """As `Sums`, but for a name."""
    columns = (outcome.sums[:, place].tolist() for place in range(4))
    return zip(*columns, repeat(seq), sheet.numbers[outcome.slots].tolist(), strict=False)


def _link(results: list[str]) -> list[str]:
    return [LINKED_FAILED if result == CREATED else result for result in results]


def _refuse(wrong: npt.NDArray[np.bool_], code: str, field_name: str, fix: str) -> None:
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise InvalidInput(
            f"record {place} is no transfer", code=code, param=f"transfers[{place}].{field_name}", fix=fix
        )


def _check_codes(codes: npt.NDArray[np.uint64]) -> None:
    left = np.ones(len(codes), bool)
    while left.any():
        place = int(np.argmax(left))
        if not _CODE.fullmatch(codes[place].tobytes()):
            wrong = np.arange(len(codes)) == place
            _refuse(wrong, "invalid_code", "code", "a-z and _, at most 16")
        left &= (codes[:, 0] != codes[place, 0]) | (codes[:, 1] != codes[place, 1])

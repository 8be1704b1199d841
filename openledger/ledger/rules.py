"""The rules of double entry, as a pure function over a book. Knows no storage, no log and no clock.

What a batch does is decided here once: the journal loads what the batch touches and stores what it changed, the audit
replays the whole log through the same function.
"""

from collections.abc import Container, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from openledger.core.money import SUPPLY_NANO
from openledger.ledger.accounts import Balance
from openledger.ledger.transfers import CREATED, EXISTS, LINKED_FAILED, Transfer, compare

MAX_SUM_NANO = 2**63 - 1
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A pending transfer and what became of it. `expires_ms` 0 is never."""

    transfer: Transfer
    expires_ms: int
    state: Literal["pending", "posted", "voided"] = "pending"


@dataclass(frozen=True, slots=True)
class Book:
    """What the rules look at. `known` are ids that name a transfer which is no hold (so that a post can say so)."""

    balances: MutableMapping[str, Balance] = field(default_factory=dict)
    holds: MutableMapping[str, Hold] = field(default_factory=dict)
    known: Container[str] = frozenset()

    def take(self, changes: "Book") -> None:
        self.balances.update(changes.balances)
        self.holds.update(changes.holds)


def apply(book: Book, transfers: Sequence[Transfer], time_ms: int) -> tuple[Book, list[str]]:
    """What `transfers` change in `book` (all of them, or nothing), and one result for each.

    Later transfers of a batch see what earlier ones did. `book` itself stays as it is.
    """
    changes = Book()
    placed: set[str] = set()
    view = _over(changes, book, placed)
    seen: dict[str, Transfer] = {}
    results = []
    for transfer in transfers:
        twin = seen.setdefault(transfer.transfer_id, transfer)
        results.append(_apply_one(view, transfer, time_ms) if twin is transfer else compare(transfer, twin))
        if results[-1] == CREATED:
            placed.add(transfer.transfer_id)
    if all(result == CREATED for result in results):
        return changes, results
    return Book(), link(results)


def apply_each(
    book: Book, chains: Sequence[Sequence[Transfer]], known: Mapping[str, Transfer], time_ms: int
) -> tuple[Book, list[str]]:
    """What `chains` change in `book`, one after the other, each whole or not at all; one result for each transfer.

    `known` are transfers of the log, by id. A chain that exists whole with the same content gives its first results
    again; one that exists in part is not applied.
    """
    changes, before, results = Book(), dict(known), list[str]()
    created = set[str]()
    view = _over(changes, book, created)
    for chain in chains:
        found = compare_known(chain, before)
        if found is None and len(chain) == 1:
            found = [_apply_one(view, chain[0], time_ms)]  # what is refused changes nothing
        elif found is None:
            made, found = apply(view, chain, time_ms)
            changes.take(made)
        if found[-1] == CREATED:  # and so are all of its chain
            before.update((item.transfer_id, item) for item in chain)
            created.update(item.transfer_id for item in chain)
        results += found
    return changes, results


def compare_known(transfers: Sequence[Transfer], known: Mapping[str, Transfer]) -> list[str] | None:
    """Results of a batch of which something is known, None where nothing is."""
    if known.keys().isdisjoint([transfer.transfer_id for transfer in transfers]):
        return None
    results = [
        compare(transfer, known[transfer.transfer_id]) if transfer.transfer_id in known else CREATED
        for transfer in transfers
    ]
    return results if all(result == EXISTS for result in results) else link(results)


def _over(changes: Book, book: Book, placed: Container[str]) -> Book:
    """`book` as it looks with `changes` and with what was `placed`; what is put into it goes to `changes`."""
    balances, holds = _Over(changes.balances, book.balances), _Over(changes.holds, book.holds)
    return Book(balances, holds, _Either(placed, book.known))


class _Over(MutableMapping[str, Value]):
    """A `ChainMap` of two that is three times as fast to look into."""

    __slots__ = ("_above", "_below")

    def __init__(self, above: MutableMapping[str, Value], below: MutableMapping[str, Value]):
        self._above, self._below = above, below

    def __getitem__(self, name: str) -> Value:
        found = self._above.get(name)
        return self._below[name] if found is None else found

    def get(self, name: str, default: Any = None) -> Any:
        found = self._above.get(name)
        return self._below.get(name, default) if found is None else found

    def __setitem__(self, name: str, value: Value) -> None:
        self._above[name] = value

    def __delitem__(self, name: str) -> None:
        del self._above[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._below, **self._above})

    def __len__(self) -> int:
        return len(self._below.keys() | self._above.keys())


@dataclass(frozen=True, slots=True)
class _Either:
    first: Container[str]
    second: Container[str]

    def __contains__(self, name: object) -> bool:
        return name in self.first or name in self.second


def link(results: Sequence[str]) -> list[str]:
    """Results of a batch that was not applied: what could have been created names its link as the reason."""
    return [LINKED_FAILED if result == CREATED else result for result in results]


def _apply_one(book: Book, transfer: Transfer, time_ms: int) -> str:
    if transfer.kind in ("post", "void"):
        return _resolve(book, transfer, time_ms)
    return _place(book, transfer, time_ms)


def _place(book: Book, transfer: Transfer, time_ms: int) -> str:
    debit, credit = book.balances.get(transfer.debit), book.balances.get(transfer.credit)
    if debit is None:
        return "debit_account_not_found"
    if credit is None:
        return "credit_account_not_found"
    amount = transfer.amount_nano
    if debit.available_nano - amount < (-SUPPLY_NANO if debit.may_go_negative else 0):
        return "exceeds_credits"
    held, moved = (amount, 0) if transfer.kind == "pending" else (0, amount)
    debit, credit = _debited(debit, held, moved), _credited(credit, held, moved)
    overflow = _overflow(debit, credit)
    if overflow:
        return overflow
    if transfer.kind == "pending":
        expires_ms = time_ms + transfer.timeout_ms if transfer.timeout_ms else 0
        book.holds[transfer.transfer_id] = Hold(transfer=transfer, expires_ms=expires_ms)
    _put(book, debit, credit)
    return CREATED


def _resolve(book: Book, transfer: Transfer, time_ms: int) -> str:
    hold = book.holds.get(transfer.pending_id)
    if hold is None:
        known = transfer.pending_id in book.known
        return "pending_transfer_not_pending" if known else "pending_transfer_not_found"
    refusal = _refusal(hold, transfer, time_ms)
    if refusal:
        return refusal
    reserved = hold.transfer.amount_nano
    taken = transfer.amount_nano if transfer.kind == "post" else 0
    debit = _debited(book.balances[transfer.debit], -reserved, taken)
    credit = _credited(book.balances[transfer.credit], -reserved, taken)
    overflow = _overflow(debit, credit)
    if overflow:
        return overflow
    book.holds[transfer.pending_id] = replace(hold, state="posted" if transfer.kind == "post" else "voided")
    _put(book, debit, credit)
    return CREATED


def _refusal(hold: Hold, transfer: Transfer, time_ms: int) -> str:
    if hold.state != "pending":
        return f"pending_transfer_already_{hold.state}"
    if (transfer.debit, transfer.credit) != (hold.transfer.debit, hold.transfer.credit):
        return "pending_transfer_has_different_accounts"
    if transfer.kind == "void":
        same = transfer.amount_nano == hold.transfer.amount_nano
        return "" if same else "pending_transfer_has_different_amount"
    if transfer.amount_nano > hold.transfer.amount_nano:
        return "exceeds_pending_amount"
    return "pending_transfer_expired" if hold.expires_ms and time_ms >= hold.expires_ms else ""


def _debited(balance: Balance, pending_nano: int, posted_nano: int) -> Balance:
    name, kind, may_go_negative, debits_pending, debits_posted, credits_pending, credits_posted = balance
    pending, posted = debits_pending + pending_nano, debits_posted + posted_nano
    return Balance(name, kind, may_go_negative, pending, posted, credits_pending, credits_posted)


def _credited(balance: Balance, pending_nano: int, posted_nano: int) -> Balance:
    name, kind, may_go_negative, debits_pending, debits_posted, credits_pending, credits_posted = balance
    pending, posted = credits_pending + pending_nano, credits_posted + posted_nano
    return Balance(name, kind, may_go_negative, debits_pending, debits_posted, pending, posted)


def _overflow(debit: Balance, credit: Balance) -> str:
    if debit.debits_posted_nano + debit.debits_pending_nano > MAX_SUM_NANO:
        return "overflows_debits"
    if credit.credits_posted_nano + credit.credits_pending_nano > MAX_SUM_NANO:
        return "overflows_credits"
    return ""


def _put(book: Book, debit: Balance, credit: Balance) -> None:
    book.balances[debit.account_id] = debit
    book.balances[credit.account_id] = credit

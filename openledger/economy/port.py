"""What the economy asks of a ledger. `ledger.Ledger` answers in-process, `actor.RemoteLedger` across processes."""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Protocol, cast

from openledger.core.errors import OpenLedgerError, outcome
from openledger.ledger.accounts import Account, Balance
from openledger.ledger.transfers import Batch, Entry, Transfer

Commit = tuple[Sequence[Transfer], dict[str, Any] | None]  # with what it states
Committed = tuple[list[str], dict[str, Any] | None]  # results, and the receipt of what was stated
_FEW = 64


class LedgerPort(Protocol):
    def create_accounts(self, accounts: Sequence[Account]) -> list[str]: ...

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]: ...

    def commit_each(self, commits: Sequence[Commit]) -> Sequence[Committed | OpenLedgerError]: ...

    def balance(self, account_id: str) -> Balance: ...

    def transfers(self, account_id: str, limit: int = 1000) -> list[Entry]: ...

    def find(self, transfer_id: str) -> Entry | None: ...

    def batch(self, seq: int) -> Batch: ...

    def batches(self, seqs: Sequence[int]) -> list[Batch]: ...

    def usages(self, pool: str) -> list[dict[str, Any]]: ...

    def verdicts(self, pool: str) -> list[dict[str, Any]]: ...


def newest_first(ledger: LedgerPort, account_id: str) -> Iterator[Entry]:
    """What moved on an account, newest first; no more of it is read than is asked for. What comes meanwhile is left
    out."""
    limit, last = _FEW, None
    while True:
        found = ledger.transfers(account_id, limit)
        yield from found if last is None else found[found.index(last) + 1 :]
        if len(found) < limit:
            return
        limit, last = limit * 8, found[-1]


def after_known(ledger: LedgerPort, account_id: str, is_known: Callable[[Entry], bool]) -> list[Entry]:
    """What moved on an account after the newest entry that `is_known`, oldest first: who notes one after another in
    this order may be stopped anywhere, and finds the rest when he looks again."""
    return list(takewhile(lambda entry: not is_known(entry), newest_first(ledger, account_id)))[::-1]


class Watcher(Protocol):
    def check(self, transfers: Sequence[Transfer]) -> None:
        """Raises what keeps a batch from the ledger."""

    def arrived(self, transfers: Sequence[Transfer]) -> None:
        """Called after the batch, before anybody acts on its results."""


class _Watched:
    def __init__(self, ledger: LedgerPort, watcher: Watcher):
        self._ledger = ledger
        self._watcher = watcher

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        self._watcher.check(transfers)
        results = self._ledger.commit(transfers, statement)
        self._watcher.arrived(transfers)
        return results

    def commit_each(self, commits: Sequence[Commit]) -> list[Committed | OpenLedgerError]:
        """What the watcher keeps from the ledger has his error as its outcome; the others go there together."""
        checked = [outcome(self._watcher.check, transfers) for transfers, _ in commits]
        let_in = [commit for commit, error in zip(commits, checked, strict=True) if error is None]
        told = iter(self._ledger.commit_each(let_in) if let_in else ())
        for transfers, _ in let_in:
            self._watcher.arrived(transfers)
        return [next(told) if error is None else error for error in checked]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


def watched(ledger: LedgerPort, watcher: Watcher) -> LedgerPort:
    """The same ledger, of whose every batch `watcher` is told, before and after."""
    return cast(LedgerPort, _Watched(ledger, watcher))

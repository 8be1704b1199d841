"""Group commit: many threads' transfers share one transaction and one sync. Decides nothing; `Ledger.serve` does.

The first caller to find nobody at work serves all that wait, itself included; those that come meanwhile wait, and when
it is done the first of them serves the next group. So there is no thread of its own. The longer a sync takes, the
larger the groups.

Left alone, callers that come again fall into two halves, each waiting while the other is served, and a sync carries
half of what it could. So whoever serves first lets those come back that were just answered: until as many wait as in
the round before, at most for half as long as that round took, and never longer than `patience_s`. A lone caller waits
for nobody.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openledger.ledger.ledger import Ledger, Request
from openledger.ledger.transfers import Transfer

_MOST_CALLS = 1024


@dataclass(slots=True, eq=False)
class _Call:
    """`wake` is released when there is an answer, or when this caller is to serve, or has waited for enough others."""

    request: Request
    wake: threading.Lock = field(default_factory=threading.Lock)
    results: list[str] | None = None
    error: BaseException | None = None


class GroupCommit:
    """`commit` and `submit` of one ledger for any number of threads. Nobody else may write that ledger meanwhile."""

    def __init__(self, ledger: Ledger, patience_s: float = 0.005):
        self._ledger = ledger
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._busy = False
        self._gatherer: _Call | None = None  # who serves next, while it lets others come
        self._expected = 1  # calls that were in the house when the last round ended
        self._round_s = 0.0

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        """As `Ledger.commit`."""
        return self._answer(Request(transfers=tuple(transfers), statement=statement, whole=True))

    def submit(self, transfers: Sequence[Transfer], linked: Sequence[bool] = ()) -> list[str]:
        """As `Ledger.submit`."""
        return self._answer(Request(transfers=tuple(transfers), linked=tuple(linked)))

    def _answer(self, request: Request) -> list[str]:
        call = _Call(request)
        call.wake.acquire()
        if not self._enter(call):
            call.wake.acquire()
        if call.results is None and call.error is None:
            self._gather(call)
            self._serve()
        if call.error is not None:
            raise call.error
        assert call.results is not None
        return call.results

    def _enter(self, call: _Call) -> bool:
        """Join those that wait; whether `call` is to serve them."""
        with self._lock:
            self._waiting.append(call)
            if self._gatherer is not None and len(self._waiting) >= self._expected:
                self._gatherer.wake.release()
                self._gatherer = None
            serves, self._busy = not self._busy, True
        return serves

    def _gather(self, call: _Call) -> None:
        with self._lock:
            if len(self._waiting) >= self._expected:
                return
            self._gatherer = call
        call.wake.acquire(timeout=min(self._round_s / 2, self._patience_s))

    def _serve(self) -> None:
        """Answer those that wait, then pass the turn to the first of those that came meanwhile."""
        with self._lock:
            self._gatherer = None
            group, self._waiting = self._waiting[:_MOST_CALLS], self._waiting[_MOST_CALLS:]
        start = time.perf_counter()
        try:
            results = self._ledger.serve([call.request for call in group])
            for call, result in zip(group, results, strict=True):
                call.results = result
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody of the group has an answer
            for call in group:
                call.error = error
        with self._lock:
            self._round_s = time.perf_counter() - start
            following = self._waiting[:1]
            self._busy = bool(following)
            self._expected = min(len(group) + len(self._waiting), _MOST_CALLS)
        for call in (*group, *following):
            if call.wake.locked():
                call.wake.release()

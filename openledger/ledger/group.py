"""Group commit: many threads' transfers share one transaction and one sync. Decides nothing; `Ledger.serve` does.

The first caller to find nobody at work serves all that wait, itself included; those that come meanwhile wait, and when
it is done the first of them serves the next group. So there is no thread of its own, no timer, and an idle ledger
answers a lone caller at once. The longer a sync takes, the larger the groups.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openledger.ledger.ledger import Ledger, Request, check_request
from openledger.ledger.transfers import Transfer

_MOST_CALLS = 1024


@dataclass(slots=True, eq=False)
class _Call:
    """`wake` is released when there is an answer, or when this caller is to serve the next group."""

    request: Request
    wake: threading.Lock = field(default_factory=threading.Lock)
    results: list[str] | None = None
    error: BaseException | None = None


class GroupCommit:
    """`commit` and `submit` of one ledger for any number of threads. Nobody else may write that ledger meanwhile."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._busy = False

    def commit(self, transfers: Sequence[Transfer], statement: dict[str, Any] | None = None) -> list[str]:
        """As `Ledger.commit`."""
        return self._answer(Request(transfers=tuple(transfers), statement=statement, whole=True))

    def submit(self, transfers: Sequence[Transfer], linked: Sequence[bool] = ()) -> list[str]:
        """As `Ledger.submit`."""
        return self._answer(Request(transfers=tuple(transfers), linked=tuple(linked)))

    def _answer(self, request: Request) -> list[str]:
        check_request(request)
        call = _Call(request)
        call.wake.acquire()
        with self._lock:
            self._waiting.append(call)
            serves = not self._busy
            self._busy = True
        if not serves:
            call.wake.acquire()
        if call.results is None and call.error is None:
            self._serve()
        if call.error is not None:
            raise call.error
        assert call.results is not None
        return call.results

    def _serve(self) -> None:
        """Answer those that wait, then pass the turn to the first of those that came meanwhile."""
        with self._lock:
            group, self._waiting = self._waiting[:_MOST_CALLS], self._waiting[_MOST_CALLS:]
        try:
            results = self._ledger.serve([call.request for call in group])
            for call, result in zip(group, results, strict=True):
                call.results = result
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody of the group has an answer
            for call in group:
                call.error = error
        with self._lock:
            following = self._waiting[:1]
            self._busy = bool(following)
        for call in (*group, *following):
            if call.wake.locked():
                call.wake.release()

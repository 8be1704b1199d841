"""The thread that runs an engine: steps while there is work, and between steps what others ask of the engine.

Owns the rule that only this thread touches the engine (but for `load`, `merge` and `merged`), and the order: all
urgent calls, steps as long as anybody waits for an answer, and background calls (scoring) in what time is left. A
background call that runs when somebody comes gives way between two parts of a layer of the model. Where people never
leave a gap, the background gets the share f of the time (`background_share`), so that it isn't starved: each second of
people's earns it f / (1 - f) seconds, lent when they come to `_SLICE_S` and charged by the clock. Knows neither asyncio
nor Ray.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from openledger.core.errors import Unavailable
from openledger.core.values import GenerationRequest, TokenEvent
from openledger.openlora.engine import Engine

Result = TypeVar("Result")
Call = tuple[Callable[[], Any], "Future[Any]"]
Deliver = Callable[[TokenEvent], None]
_SLICE_S = 0.005  # lent to the background at a time while people wait; it may overdraw by one part of its work


class StepThread:
    """`failure` is set when a step raised, which only a bug of ours can do: every request in flight then ends with an
    error event, and every later call raises Unavailable. `told` is called when all of a step's events are handed out:
    whoever listens on another thread is woken once for them, not once for each."""

    def __init__(
        self,
        engine: Engine,
        background_share: float = 0.03,
        told: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._engine, self._told, self._clock = engine, told, clock
        self._earned = background_share / (1 - background_share)
        self._credit_s = 0.0  # what the background may use while people wait; below 0 where it used more
        self._lent_at_s: float | None = None  # the credit is charged up to here; None while people have the thread
        self._in_background = False
        engine.give_way_to(self._serve_people)
        self._urgent: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._background: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._deliver: dict[str, Deliver] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._closing, self._closed = threading.Lock(), False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="openlora-steps", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Result], *, background: bool = False) -> "Future[Result]":
        """Run `function` on the step thread."""
        future: Future[Result] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(self._stopped())
            else:
                (self._background if background else self._urgent).put((function, future))
        self._wake.set()
        return future

    def submit(self, request: GenerationRequest, deliver: Deliver) -> "Future[None]":
        """Add a request; `deliver` is called on the step thread with each of its events."""
        return self.call(lambda: self._add(request, deliver))

    def cancel(self, request_id: str, deliver: Deliver) -> "Future[None]":
        """End the request that was submitted with this `deliver`; another under the same id goes on."""
        return self.call(lambda: self._cancel(request_id, deliver))

    def stop(self) -> None:
        """End the thread after the running step. Requests in flight get an error event."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _add(self, request: GenerationRequest, deliver: Deliver) -> None:
        self._engine.add(request)
        self._deliver[request.request_id] = deliver

    def _cancel(self, request_id: str, deliver: Deliver) -> None:
        if self._deliver.get(request_id) is deliver:
            self._engine.cancel(request_id)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # noqa: BLE001  whatever it is, the callers must hear of it
            self.failure = error
        finally:
            self._end_all()

    def _turn(self) -> None:
        self._wake.clear()
        self._serve_people()
        if self._stopping:
            return
        if (call := _take(self._background)) is not None:
            self._in_background = True
            _answer(call)
            self._in_background = False
        elif not self._engine.has_work():
            self._wake.wait()

    def _serve_people(self) -> None:
        """Until nobody waits, or the background has its share coming. Also called from the middle of a background
        call, whose error a failing step must not become."""
        try:
            self._steps_for_people()
        except BaseException as error:
            self.failure, self._stopping = error, True
            raise

    def _steps_for_people(self) -> None:
        if self._is_lent():
            return
        while not self._stopping:
            while (call := _take(self._urgent)) is not None:
                _answer(call)
            if not self._engine.has_work():
                return
            begin_s = self._clock()
            if events := self._engine.step():
                self._hand_out(events)
            self._credit_s += self._earned * (self._clock() - begin_s)
            if self._lend():
                return

    def _lend(self) -> bool:
        if self._credit_s < _SLICE_S:
            return False
        if not self._background_waits():
            self._credit_s = _SLICE_S  # time that nobody wanted isn't saved up
            return False
        self._lent_at_s = self._clock()
        return True

    def _is_lent(self) -> bool:
        """Charges what was used of a loan. What the background does while nobody waits is none, and isn't charged."""
        if self._lent_at_s is None:
            return False
        now_s = self._clock()
        self._credit_s -= now_s - self._lent_at_s
        self._lent_at_s = now_s if self._credit_s > 0 and self._background_waits() else None
        return self._lent_at_s is not None

    def _background_waits(self) -> bool:
        return self._in_background or not self._background.empty()

    def _hand_out(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            deliver = self._deliver[event.request_id]
            if event.is_last:
                del self._deliver[event.request_id]
            deliver(event)
        self._told()

    def _end_all(self) -> None:
        with self._closing:
            self._closed = True
        for calls in (self._urgent, self._background):
            while (call := _take(calls)) is not None:
                if call[1].set_running_or_notify_cancel():
                    call[1].set_exception(self._stopped())
        error = self._stopped().to_dict()
        for request_id, deliver in list(self._deliver.items()):
            deliver(TokenEvent(request_id=request_id, token_ids=(), text="", finish_reason="error", error=error))
        self._deliver.clear()
        self._told()

    def _stopped(self) -> Unavailable:
        reason = "was stopped" if self.failure is None else f"failed: {self.failure!r}"
        return Unavailable(f"the engine {reason}", code="engine_stopped", fix="try again: another replica takes over")


def _take(calls: "queue.SimpleQueue[Call]") -> Call | None:
    """Only the step thread takes: what isn't empty has one. An exception for each empty look would cost more."""
    return None if calls.empty() else calls.get_nowait()


def _answer(call: Call) -> None:
    function, future = call
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  the caller's error, raised again where the result is awaited
        future.set_exception(error)

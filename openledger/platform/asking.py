"""One request at the engine, as a gateway makes it: its events by a line or a Serve stream, its early end.

Serve routes the call, counts it, and tells when its replica is lost; the events take the line (`openlora.wire`), which
carries those of all calls at once. Where a replica can't reach the gateway they come through Serve.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from openledger.core.errors import OpenLedgerError, TooManyRequests, Unavailable
from openledger.core.values import EmbeddingRequest, GenerationRequest, TokenEvent, Usage
from openledger.openlora.engine import Vectors
from openledger.openlora.ensembles import Places
from openledger.openlora.inbox import Call, EventInbox, engine_lost

_LAST_WORDS_S = 5.0  # between a call's end, or its being left, and its last event
_NO_LINE_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tail:
    """What a request that was left had generated and not told; `usage` where the engine still told it."""

    token_ids: tuple[int, ...] = ()
    usage: Usage | None = None


class EngineCalls:
    """`engine` is the OpenLoRA deployment's handle. Without `inbox` all events come through Serve."""

    def __init__(self, engine: Any, inbox: EventInbox | None = None):
        self._engine, self._inbox = engine, inbox
        self._no_line_until_s = 0.0

    def asking(self, request: GenerationRequest, place: Places, whole: bool = False) -> "Asking":
        return Asking(self, request, place, whole)

    async def embed(self, request: EmbeddingRequest, place: str) -> Vectors:
        """The vectors of `request`; given up with whoever waits for them. Raises errors of ours."""
        response = self._engine.embed.remote(request, place)
        try:
            vectors: Vectors = await response
        except asyncio.CancelledError:
            if not _is_cancelled():
                raise engine_lost() from None
            response.cancel()
            raise
        except Exception as error:
            raise error if isinstance(error, OpenLedgerError) else as_ours(error) from error
        return vectors

    async def open(self, request: GenerationRequest, place: Places, whole: bool) -> "LineCall | ServeStream":
        """The call, made."""
        call = await self._line(request.request_id, whole)
        if call is None:
            return ServeStream(self._engine.generate.options(stream=True).remote(request, place))
        return LineCall(call, self._engine.send.remote(request, place, call.line))

    async def _line(self, request_id: str, whole: bool) -> Call | None:
        if self._inbox is None or time.monotonic() < self._no_line_until_s:
            return None
        try:
            return await self._inbox.call(request_id, whole)
        except OSError:
            _log.exception("no lines from replicas can come in; events come through Serve for %g s", _NO_LINE_S)
            self.without_line()
            return None

    def without_line(self) -> None:
        """A replica can't reach this gateway, or it can't listen: leave the line for a while."""
        self._no_line_until_s = time.monotonic() + _NO_LINE_S


class Asking:
    """`whole` says that nobody reads before the end."""

    def __init__(self, calls: EngineCalls, request: GenerationRequest, place: Places, whole: bool):
        self._calls, self._request, self._place, self._whole = calls, request, place, whole
        self._open: LineCall | ServeStream | None = None

    async def events(self) -> AsyncGenerator[TokenEvent]:
        """To the last. A replica that is lost before its first is asked for again, elsewhere; what fails is raised as
        an error of ours. Whoever stops reading before the last calls `leave`."""
        may_repeat = True
        while True:
            begun = False
            self._open = await self._calls.open(self._request, self._place, self._whole)
            try:
                async with aclosing(self._open.events()) as events:
                    async for event in events:
                        begun = True
                        _raise_failure(event)
                        yield event
                self._open = None
                return
            except Exception as error:
                lost = error if isinstance(error, OpenLedgerError) else as_ours(error)
                if lost.code == "line_unreachable":
                    self._calls.without_line()
                elif may_repeat and not begun and lost.code == "engine_lost":
                    may_repeat = False
                else:
                    raise lost from error
                await self.leave()

    async def leave(self) -> Tail:
        """End it early, if it has not ended."""
        left, self._open = self._open, None
        return Tail() if left is None else await left.leave()


class ServeStream:
    """Events as Serve brings them, one by one."""

    def __init__(self, stream: Any):
        self._stream = stream

    async def events(self) -> AsyncGenerator[TokenEvent]:
        try:
            async for event in self._stream:
                yield event
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise engine_lost() from None

    async def leave(self) -> Tail:
        if hasattr(self._stream, "cancel"):  # Serve's
            self._stream.cancel()
        else:
            await self._stream.aclose()
        return Tail()


class LineCall:
    """`response` is Serve's, which ends when all was said."""

    def __init__(self, call: Call, response: Any):
        self._call, self._response = call, response
        self._watching = asyncio.ensure_future(self._watch())

    async def events(self) -> AsyncGenerator[TokenEvent]:
        try:
            async with aclosing(self._call.events()) as events:
                async for event in events:
                    yield event
        finally:
            if self._call.ended:
                self._call.close()

    async def leave(self) -> Tail:
        if not self._call.begun:
            self._response.cancel()
        self._call.leave()
        tail = Tail()
        may_speak = self._call.begun and not self._call.is_lost and not self._watching.done()
        try:
            async with asyncio.timeout(_LAST_WORDS_S if may_speak else 0):
                async with aclosing(self._call.events()) as events:
                    async for event in events:
                        tail = Tail((*tail.token_ids, *event.token_ids), event.usage)
        except (TimeoutError, Exception):  # noqa: BLE001 - it is left, and why it ended is being raised
            pass
        finally:
            self._call.close()
        return tail

    async def _watch(self) -> None:
        try:
            await self._response
            if not self._call.ended:
                await asyncio.sleep(_LAST_WORDS_S)  # the connection may be slower than Serve
            if not self._call.ended:
                self._call.fail(engine_lost())
        except asyncio.CancelledError:
            self._call.fail(engine_lost())
            if _is_cancelled():
                raise
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            self._call.fail(error)


def _is_cancelled() -> bool:
    """Whether this task was cancelled by somebody here. Serve says CancelledError also of a call whose replica was
    stopped, and nobody left then."""
    task = asyncio.current_task()
    return task is None or bool(task.cancelling())


def as_ours(error: Exception) -> OpenLedgerError:
    """What Ray and Serve raise while the engine answers. Anything else is a bug of ours, and is raised itself."""
    import ray.exceptions
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    cause = getattr(error, "cause", None)
    if isinstance(cause, OpenLedgerError):
        return cause
    if isinstance(error, BackPressureError):
        return TooManyRequests("the engine has more to do than it can hold", code="queue_full", retry_after_s=2)
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.TaskCancelledError | DeploymentUnavailableError):
        return engine_lost()
    raise error


def _raise_failure(event: TokenEvent) -> None:
    if event.finish_reason != "error":
        return
    failure = event.error or {}
    parts = {name: failure.get(name) for name in ("code", "param", "fix")}
    message = str(failure.get("message", "the engine failed"))
    if failure.get("type") == TooManyRequests.default_code:
        raise TooManyRequests(message, **parts, retry_after_s=int(failure.get("retry_after_s") or 1))
    kinds = {cls.default_code: cls for cls in OpenLedgerError.__subclasses__()}
    raise kinds.get(str(failure.get("type")), Unavailable)(message, **parts)

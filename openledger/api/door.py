"""The application's own door: HTTP straight into its process, while it is up.

Ray Serve's proxy is a process between client and gateway, in which each streamed event costs more CPU than all the
gateway does for it. Whoever comes through the door passes it by.

Several gateways of one installation may share a port of a node (SO_REUSEPORT), as when a new one takes over from the
old. The kernel would let another installation's share it too, and give each of them a part of the other's customers. So
who listens holds a shared lock on a file for that port, in which the installation's name stands.
"""

import asyncio
import fcntl
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from openledger.api.limits import refuse
from openledger.core.errors import Unavailable

_CUT_OFF_S = 20  # for requests that are cut off to end: last words of the engine, and paying for what was said
_KEEP_ALIVE_S = 90  # longer than clients keep a connection, or one is closed under a request
MAX_REQUESTS = 1024  # under way at once, as many as Ray Serve's proxy lets through


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where to listen, and how long requests under way may take to end once the application is stopped.
    `installation` is whose gateways may share the port: its working folder."""

    host: str
    port: int
    drain_s: int = 60
    installation: str = ""


@asynccontextmanager
async def open_door(app: ASGIApp, door: Door) -> AsyncIterator[None]:
    """Raises Unavailable (`port_taken`)."""
    config = uvicorn.Config(
        _Bounded(app),
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=door.drain_s,
    )
    server = _Server(config)
    with _alone(door), _listening(door) as listener:
        serving = asyncio.ensure_future(server.serve([listener]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            yield
        finally:
            server.should_exit = True
            await serving
            if cut_off := set(server.server_state.tasks):
                await asyncio.wait(cut_off, timeout=_CUT_OFF_S)


class _Bounded:
    """Uvicorn's own limit counts idle connections too, and would let a client that only holds some keep others out."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._num_requests >= MAX_REQUESTS:
            return await refuse(_full(), scope, receive, send)
        self._num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the process, which isn't uvicorn's here."""
        yield


@contextmanager
def _alone(door: Door) -> Iterator[None]:
    """The port, for this installation's gateways and no other's. The lock ends with the process that holds it."""
    with _lock_file(door) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody listens: whose the port is stands in the file
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, door.installation.encode(), 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # not taken at once from the other: another may have come between
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
        if holder != door.installation:
            raise _taken(door, f"the gateway of another installation listens there ({holder or 'unnamed'})")
        yield


@contextmanager
def _lock_file(door: Door) -> Iterator[int]:
    """For each user: the kernel lets no two users share a port."""
    path = Path(tempfile.gettempdir()) / f"openledger-port-{door.port}.{os.getuid()}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _taken(door, f"its lock can't be opened: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _listening(door: Door) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((door.host, door.port))
        except OSError as error:
            raise _taken(door, str(error)) from error
        yield listener


def _full() -> Unavailable:
    return Unavailable(
        f"the gateway has {MAX_REQUESTS} requests under way", code="gateway_full", fix="try again in a few seconds"
    )


def _taken(door: Door, reason: str) -> Unavailable:
    return Unavailable(
        f"the gateway can't listen at {door.host}:{door.port}: {reason}",
        code="port_taken",
        param="http_port",
        fix="choose another port, or 0 to be reached through Ray Serve's proxy alone",
    )

"""The application's own door: HTTP straight into its process, while it is up.

Ray Serve's proxy is a process between client and gateway, in which each streamed event costs more CPU than all the
gateway does for it. Whoever comes through the door passes it by. Several gateways of a node may share a port.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from openledger.core.errors import Unavailable

_CUT_OFF_S = 20  # for requests that are cut off to end: last words of the engine, and paying for what was said
_KEEP_ALIVE_S = 90  # longer than clients keep a connection, or one is closed under a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where to listen, and how long requests under way may take to end once the application is stopped."""

    host: str
    port: int
    drain_s: int = 60


@asynccontextmanager
async def open_door(app: ASGIApp, door: Door) -> AsyncIterator[None]:
    """Raises Unavailable (`port_taken`)."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=door.drain_s,
    )
    server = _Server(config)
    with _listening(door) as listener:
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


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the process, which isn't uvicorn's here."""
        yield


@contextmanager
def _listening(door: Door) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((door.host, door.port))
        except OSError as error:
            raise Unavailable(
                f"the gateway can't listen at {door.host}:{door.port}: {error}",
                code="port_taken",
                param="http_port",
                fix="choose another port, or 0 to be reached through Ray Serve's proxy alone",
            ) from error
        yield listener

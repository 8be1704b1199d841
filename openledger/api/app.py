"""The API as one FastAPI application: routers, error handlers, middleware. Knows no resource's details."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial

from fastapi import FastAPI

from openledger import __version__
from openledger.api import (
    accounts,
    appeals,
    chat,
    completions,
    contributors,
    datanets,
    disputes,
    embeddings,
    feedback,
    health,
    ledger,
    models,
    proposals,
    receipts,
    report,
    retention,
    reviews,
    seals,
    spot_checks,
    stakes,
    terms,
    verdicts,
    versions,
    vouches,
    withdrawals,
)
from openledger.api.door import Door, open_door
from openledger.api.errors import add_error_handlers
from openledger.api.limits import BodyLimit
from openledger.api.request_ids import RequestIds
from openledger.core.clock import Clock, SystemClock
from openledger.platform.service import Service


def create_app(service: Service, clock: Clock | None = None, door: Door | None = None) -> FastAPI:
    """The API over `service`. Request ids and time stamps come from `clock`, the system's unless given. While it is up
    it listens at `door`, beside whoever calls it."""
    app = FastAPI(
        title="OpenLedger",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=partial(_running, door),
    )
    app.state.service = service
    app.state.clock = clock or SystemClock()
    answering = (health, chat, completions, embeddings, models, accounts, datanets, ledger, report, verdicts, receipts)
    community = (terms, reviews, spot_checks, vouches, feedback, seals, appeals, disputes, retention, contributors)
    for resource in (*answering, *community, versions):
        app.include_router(resource.router)
    for office in (stakes, proposals, withdrawals):
        app.include_router(office.router)
    add_error_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestIds, clock=app.state.clock)  # last added is outermost: refused bodies get an id too
    return app


@asynccontextmanager
async def _running(door: Door | None, app: FastAPI) -> AsyncIterator[None]:
    async with _paying(app), _keeping_time(app), open_door(app, door) if door is not None else nullcontext():
        yield


@asynccontextmanager
async def _paying(app: FastAPI) -> AsyncIterator[None]:
    """Once the door is closed, streams that were cut off are paid for before the process ends."""
    try:
        yield
    finally:
        await app.state.service.close()


@asynccontextmanager
async def _keeping_time(app: FastAPI) -> AsyncIterator[None]:
    """While the API is up, what is due happens by itself; what must be done before anybody is answered, first."""
    await app.state.service.desk.make_ready()
    keeping = asyncio.create_task(app.state.service.desk.keep_time())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

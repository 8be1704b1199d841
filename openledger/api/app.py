"""The API as one FastAPI application: routers, error handlers, middleware. Knows no resource's details."""

from fastapi import FastAPI

from openledger import __version__
from openledger.api import (
    accounts,
    appeals,
    chat,
    completions,
    datanets,
    disputes,
    health,
    ledger,
    models,
    report,
    retention,
    seals,
    verdicts,
)
from openledger.api.errors import add_error_handlers
from openledger.api.limits import BodyLimit
from openledger.api.request_ids import RequestIds
from openledger.core.clock import Clock, SystemClock
from openledger.platform.service import Service


def create_app(service: Service, clock: Clock | None = None) -> FastAPI:
    """The API over `service`. Request ids and time stamps come from `clock`, the system's unless given."""
    app = FastAPI(
        title="OpenLedger", version=__version__, openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.state.clock = clock or SystemClock()
    answering = (health, chat, completions, models, accounts, datanets, ledger, report, verdicts)
    for resource in (*answering, seals, appeals, disputes, retention):
        app.include_router(resource.router)
    add_error_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestIds, clock=app.state.clock)  # last added is outermost: refused bodies get an id too
    return app

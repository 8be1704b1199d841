"""API, console and static files as one FastAPI application, for `console/deployment.py` to put on Ray Serve."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from openledger.api import create_app
from openledger.api.door import Door
from openledger.console.router import create_console
from openledger.core.clock import Clock
from openledger.platform.service import Service

_STATIC = Path(__file__).parent / "static"


def create_full_app(service: Service, clock: Clock | None = None, door: Door | None = None) -> FastAPI:
    """Everything a user reaches by HTTP: /v1 (API), /console (pages), / (leads to the console)."""
    app = create_app(service, clock, door)
    app.mount("/console/static", StaticFiles(directory=_STATIC), name="static")
    app.include_router(create_console(service))
    app.add_api_route("/", _to_console, include_in_schema=False)
    return app


async def _to_console() -> RedirectResponse:
    return RedirectResponse("/console")

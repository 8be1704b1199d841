"""GET /healthz: the process is up and answers. It asks nothing of the service, so a slow cluster isn't a dead API."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from openledger import __version__

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def get_health() -> Response:
    return JSONResponse({"status": "ok", "version": __version__})

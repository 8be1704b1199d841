"""The console's routes. Each page has a JSON twin, `?format=json`: the very values the page was rendered from.

What contributors, customers and models wrote is hostile: templates escape it, and the headers forbid scripts, frames
and anything from elsewhere.
"""

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from openledger.api.responses import json_response
from openledger.console import pages
from openledger.console.rendering import render
from openledger.core.errors import NotFound, OpenLedgerError
from openledger.core.ids import check_name
from openledger.platform.service import Service

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_console(service: Service) -> APIRouter:
    router = APIRouter(prefix="/console", include_in_schema=False)
    console = Console(service)
    router.add_api_route("", console.overview)
    router.add_api_route("/datanets/{name}", console.datanet)
    router.add_api_route("/datanets/{name}/appeals", console.appeals)
    router.add_api_route("/datanets/{name}/leaderboard", console.leaderboard)
    router.add_api_route("/disputes/{adapter}/{period}", console.disputes)
    router.add_api_route("/rows/{adapter}/{period}", console.rows)
    router.add_api_route("/answers/{answer_id}", console.answer)
    router.add_api_route("/ledger", console.ledger)
    router.add_api_route("/{path:path}", console.nothing)
    return router


class Console:
    def __init__(self, service: Service):
        self._service = service

    async def overview(self, request: Request) -> Response:
        return await _answer(request, "overview.html", self._overview())

    async def datanet(self, request: Request, name: str) -> Response:
        return await _answer(request, "datanet.html", self._datanet(name))

    async def appeals(self, request: Request, name: str) -> Response:
        return await _answer(request, "appeals.html", self._appeals(name))

    async def leaderboard(self, request: Request, name: str) -> Response:
        after = request.query_params.get("after", "")
        return await _answer(request, "leaderboard.html", self._leaderboard(name, after))

    async def disputes(self, request: Request, adapter: str, period: str) -> Response:
        return await _answer(request, "disputes.html", self._disputes(adapter, period))

    async def rows(
        self, request: Request, adapter: str, period: str, contributor: str = "", after: str = ""
    ) -> Response:
        return await _answer(request, "rows.html", self._rows(adapter, period, contributor, after))

    async def answer(self, request: Request, answer_id: str) -> Response:
        return await _answer(request, "answer.html", self._sold_answer(answer_id))

    async def ledger(self, request: Request) -> Response:
        return await _answer(request, "ledger.html", self._ledger())

    async def nothing(self, request: Request, path: str) -> Response:
        return await _answer(request, "overview.html", _no_page(path))

    async def _overview(self) -> dict[str, Any]:
        return pages.overview(await self._service.report())

    async def _datanet(self, name: str) -> dict[str, Any]:
        found = await self._service.datanet(check_name(name, "name"))
        return pages.datanet(await self._service.report(), found)

    async def _appeals(self, name: str) -> dict[str, Any]:
        found = await self._service.datanet(check_name(name, "name"))
        return pages.appeals(await self._service.report(), found, await self._service.appeals(name))

    async def _leaderboard(self, name: str, after: str) -> dict[str, Any]:
        found = await self._service.leaderboard(check_name(name, "name"), after=after)
        return pages.leaderboard(await self._service.report(), found)

    async def _disputes(self, adapter: str, period: str) -> dict[str, Any]:
        pool = check_name(adapter, "adapter"), check_name(period, "period")
        return pages.disputes(await self._service.report(), *pool, await self._service.disputes(*pool))

    async def _rows(self, adapter: str, period: str, contributor: str, after: str) -> dict[str, Any]:
        pool = check_name(adapter, "adapter"), check_name(period, "period")
        found = await self._service.row_scores(*pool, contributor=contributor, after=after)
        return {**pages.rows(await self._service.report(), found), "contributor": contributor}

    async def _sold_answer(self, answer_id: str) -> dict[str, Any]:
        check_name(answer_id, "answer_id")
        report = await self._service.report()
        found = pages.find(report.get("answers"), "answer_id", answer_id)
        return pages.answer(report, found or await self._service.attribution(answer_id))

    async def _ledger(self) -> dict[str, Any]:
        return pages.ledger(
            await self._service.report(), await self._service.checkpoint(), await self._service.payouts(None)
        )


async def _answer(request: Request, template: str, page: Awaitable[dict[str, Any]]) -> Response:
    try:
        view, status = await page, 200
    except OpenLedgerError as error:
        view, status, template = {"error": error.to_dict()}, error.http_status, "error.html"
    if request.query_params.get("format") == "json":
        response: Response = json_response(view)
        response.status_code = status
    else:
        response = HTMLResponse(render(template, view, path=request.url.path), status)
    response.headers.update(HEADERS)
    return response


async def _no_page(path: str) -> dict[str, Any]:
    raise NotFound(f"the console has no page {path!r}", code="unknown_page", fix="start from /console")

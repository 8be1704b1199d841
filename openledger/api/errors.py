"""From anything that went wrong to the one error body: {"error": {type, code, message, param, fix}}.

Owns the mapping of our errors, of pydantic's and of the framework's to HTTP. Nothing of an unexpected exception
leaves the process but the request id to find it by.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from openledger.api.request_ids import HEADER, request_id_of
from openledger.core.errors import (
    InvalidInput,
    NotFound,
    OpenLedgerError,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
)

_VALIDATION_CODES = {"missing": "missing_field", "extra_forbidden": "unknown_field", "json_invalid": "invalid_json"}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(OpenLedgerError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_framework_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def envelope(error: OpenLedgerError) -> dict[str, Any]:
    return {"error": error.to_dict()}


def error_response(error: OpenLedgerError, status: int | None = None) -> Response:
    """ASCII JSON, so that no text quoted in a message can fail to encode."""
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_s)
    body = json.dumps(envelope(error)).encode()
    return Response(body, status or error.http_status, headers, media_type="application/json")


def unexpected() -> OpenLedgerError:
    """What a caller is told of a bug of ours."""
    return OpenLedgerError(
        "something went wrong on our side", fix="try again; if it stays, report the X-Request-Id of this answer"
    )


def from_validation(errors: Sequence[Any]) -> OpenLedgerError:
    """The first of pydantic's `errors`, with the field at fault as param."""
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, OpenLedgerError):
        return cause
    param = _field(first["loc"])
    place = f"{param}: " if param else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidInput(
        f"{place}{first['msg']}{more}", code=_VALIDATION_CODES.get(first["type"], "invalid_field"), param=param
    )


async def _on_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OpenLedgerError)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(from_validation(error.errors()))


async def _on_framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(_from_status(error.status_code, request), error.status_code)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    """The server logs the exception itself: starlette raises it again once this answer is sent."""
    response = error_response(unexpected())
    response.headers[HEADER] = request_id_of(request)
    return response


def _from_status(status: int, request: Request) -> OpenLedgerError:
    route = f"{request.method} {request.url.path}"
    if status == 404:
        return NotFound(f"there is no {route}", code="unknown_route", fix="GET /v1/openapi.json lists what there is")
    if status == 405:
        return InvalidInput(f"{route} is not a method of this resource", code="method_not_allowed", param="method")
    if status == 413:
        return TooLarge("the request is too large")
    if status < 500:
        return InvalidInput("the request could not be read", code="unreadable_request")
    return unexpected()


def _field(location: Sequence[str | int]) -> str | None:
    """`("body", "messages", 0, "content")` to `messages.0.content`; a bare byte offset names no field."""
    parts = [str(part) for part in location[1:]]
    return None if not parts or (len(parts) == 1 and parts[0].isdigit()) else ".".join(parts)

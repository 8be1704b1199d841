"""JSON answers of values that the stages made."""

import math
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse


def json_response(value: Any) -> JSONResponse:
    return JSONResponse(finite(value))


def listing(items: Sequence[Any]) -> JSONResponse:
    """Stripe's and OpenAI's list object, whole."""
    return json_response({"object": "list", "data": list(items), "has_more": False})


def page(items: Sequence[dict[str, Any]], *, has_more: bool) -> JSONResponse:
    """A part of a list, by id: the next begins after `last_id`."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": list(items), "has_more": has_more, **ends})


def finite(value: Any) -> Any:
    """`value` with null where a measured float is not a number or infinite: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value

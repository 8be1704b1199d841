"""JSON answers of values that the stages made."""

import math
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse


def json_response(value: Any) -> JSONResponse:
    return JSONResponse(finite(value))


def listing(items: Sequence[Any]) -> JSONResponse:
    """Stripe's and OpenAI's list object. Nothing is paged yet: `has_more` is always false."""
    return json_response({"object": "list", "data": list(items), "has_more": False})


def finite(value: Any) -> Any:
    """`value` with null where a measured float is not a number or infinite: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value

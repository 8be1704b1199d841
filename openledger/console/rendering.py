"""Templates to HTML: escaping, the filters for money, shares, hashes and charts. Knows no page's content.

Values that are not there yet render as an en dash, so that a page of a run under way is whole.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from openledger.core import clock
from openledger.core.money import OPEN, Unit, showing, shown_unit

NOTHING = "–"
_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, view: dict[str, Any], path: str) -> str:
    """`view`'s page. `path` is the page's own, for links to its JSON twin."""
    with showing(Unit(name=view["unit"]) if "unit" in view else OPEN):
        html = _environment().get_template(template).render(view=view, path=path)
    # text that came in with unpaired surrogates can't be sent as UTF-8
    return html.encode("utf-8", "replace").decode("utf-8")


def format_open(amount_nano: Any) -> str:
    """An amount with all decimals of its unit, so that columns align: 1500 nano-OPEN to `0.000001500`."""
    if not _is_int(amount_nano):
        return NOTHING
    decimals = shown_unit().decimals
    whole, fraction = divmod(abs(amount_nano), 10**decimals)
    return f"{'−' if amount_nano < 0 else ''}{whole:,}.{fraction:0{decimals}d}"


def format_number(value: Any) -> str:
    """Integers with thousands separated, floats with three decimals."""
    if _is_int(value):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else NOTHING


def format_share(share_ppb: Any) -> str:
    """Parts per billion as per cent with two decimals."""
    return f"{share_ppb / 1e7:.2f} %" if _is_int(share_ppb) else NOTHING


def format_time(time_ms: Any) -> str:
    if not _is_int(time_ms):
        return NOTHING
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_span(span_ms: Any) -> str:
    return clock.format_span(span_ms) if _is_int(span_ms) else NOTHING


def shorten(digest: Any) -> str:
    """The head of a long hash or id; the full one belongs into the title."""
    text = str(digest or "")
    return text if len(text) <= 16 else f"{text[:12]}…"


def is_web_address(url: Any) -> bool:
    """Only these become links: a `javascript:` address from a report must not."""
    return isinstance(url, str) and url.startswith(("http://", "https://"))


def bar_width(part: Any, whole: Any) -> str:
    """Width of a bar in a box 100 wide. A negative part is as long as its positive: the colour tells them apart."""
    if not _is_finite(part) or not _is_finite(whole) or whole <= 0:
        return "0"
    return f"{100 * min(1.0, abs(part) / whole):.2f}"


def curve_points(values: Any, width: int = 240, height: int = 48) -> str:
    """Points of a polyline through `values`, scaled to the box, lowest value at the bottom; empty under two values."""
    numbers = _numbers(values)
    if len(numbers) < 2:
        return ""
    halved = [number / 2 for number in numbers]  # the span of two floats may be none
    low, span = min(halved), (max(halved) - min(halved)) or 1.0
    step = width / (len(numbers) - 1)
    return " ".join(
        f"{index * step:.1f},{height - (number - low) / span * height:.1f}" for index, number in enumerate(halved)
    )


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [float(value) for value in values if _is_finite(value)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        open=format_open, number=format_number, share=format_share, time=format_time, span=format_span, shorten=shorten,
        points=curve_points,
    )  # fmt: skip
    environment.globals.update(bar_width=bar_width)
    environment.tests.update(web_address=is_web_address)
    return environment

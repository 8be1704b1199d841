"""How many rows a Datanet takes from one contributor: within 24 hours, and within one.

Owns the reckoning. What was received is handed in, oldest first: when, and how many rows, whatever became of them.
"""

from collections.abc import Sequence

from openledger.core.errors import TooLarge, TooManyRequests

HOUR_MS = 60 * 60 * 1000
DAY_MS = 24 * HOUR_MS
Received = Sequence[tuple[int, int]]


def check_day(datanet: str, limit: int, received: Received, num_rows: int) -> None:
    """Raises TooLarge (`quota_exceeded`) where `num_rows` more are over `limit`; 0 is none."""
    sent = sum(number for _, number in received)
    if limit and sent + num_rows > limit:
        raise TooLarge(
            f"{datanet!r} takes {limit} rows a day from one contributor; {sent} were sent",
            code="quota_exceeded",
            param="drafts",
            fix=f"send {max(0, limit - sent)} rows now, or wait: rows count for 24 hours",
        )


def check_hour(datanet: str, limit: int, received: Received, num_rows: int, now_ms: int) -> None:
    """Raises TooManyRequests (`rate_exceeded`), with when there is room for `num_rows`; TooLarge (`quota_exceeded`)
    where there never is."""
    excess = sum(number for _, number in received) + num_rows - limit
    if not limit or excess <= 0:
        return
    if num_rows > limit:
        raise TooLarge(
            f"{datanet!r} takes {limit} rows an hour from one contributor, and these are {num_rows}",
            code="quota_exceeded",
            param="drafts",
            fix=f"send at most {limit} rows in one contribution",
        )
    raise TooManyRequests(
        f"{datanet!r} takes {limit} rows an hour from one contributor",
        code="rate_exceeded",
        param="drafts",
        fix="send the same again later, as Retry-After says: rows count for an hour",
        retry_after_s=-(-(_gone_ms(received, excess) + HOUR_MS - now_ms) // 1000),
    )


def _gone_ms(received: Received, excess: int) -> int:
    """When that was received with which `excess` rows, or more, are out of the reckoning."""
    left = excess
    return next(received_ms for received_ms, number in received if (left := left - number) <= 0)

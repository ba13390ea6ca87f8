"""Times: milliseconds since the epoch inside, RFC 3339 in answers, `timestamptz` in Postgres."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """This machine's clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def iso(at_ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds, or None."""
    if at_ms is None:
        return None
    second, ms = divmod(at_ms, 1000)
    return f"{_to_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=16_384)
def _to_second(second: int) -> str:
    # Trips of one hour share most of their seconds, and one trip is shown many times.
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as an aware datetime, exact to the millisecond."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def millis(at: datetime | None) -> int | None:
    """An aware datetime as milliseconds since the epoch."""
    return None if at is None else round(at.timestamp() * 1000)


def wait_s(retry_after: str) -> float | None:
    """How long a `Retry-After` asks to wait: seconds or a date (RFC 9110, 10.2.3), else None."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:  # written with -0000, which says that the time is UTC
        until = until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)

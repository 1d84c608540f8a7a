"""The time of day as logs have it: UTC, as RFC 3339 writes it. Pure.

Three are written for each request: the part before the second's fraction is made once a second, and what only tells
milliseconds once for all that happens within one.
"""

from datetime import UTC, datetime
from functools import lru_cache


def utc_us_text(at_us: int) -> str:
    """Return a moment, in microseconds since 1970."""
    second, us = divmod(at_us, 1_000_000)
    return f"{_whole(second)}.{us:06d}Z"


@lru_cache(maxsize=1)
def utc_ms_text(at_ms: int) -> str:
    """Return a moment, in milliseconds since 1970."""
    second, ms = divmod(at_ms, 1000)
    return f"{_whole(second)}.{ms:03d}Z"


@lru_cache(maxsize=4)
def _whole(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")

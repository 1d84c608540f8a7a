"""The time of day as logs have it. Pure."""

from datetime import UTC, datetime
from functools import lru_cache


def utc_text(at_s: float, digits: int) -> str:
    """Return a moment (seconds since 1970) in UTC as RFC 3339 has it, cut to 1 to 6 digits of its second.

    Three are written for each request: the part before the second's fraction is made once a second.
    """
    second = int(at_s // 1)
    micros = int((at_s - second) * 1_000_000)
    return f"{_whole(second)}.{f'{micros:06d}'[:digits]}Z"


@lru_cache(maxsize=4)
def _whole(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")

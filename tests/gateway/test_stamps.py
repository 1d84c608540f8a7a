"""The time of day as text."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.stamps import utc_ms_text, utc_us_text

BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


def test_a_moment_is_told_in_utc() -> None:
    assert utc_ms_text(0) == "1970-01-01T00:00:00.000Z"
    assert utc_ms_text(1_795_860_000_999) == "2026-11-28T10:00:00.999Z"
    assert utc_us_text(1_795_860_000_250_000) == "2026-11-28T10:00:00.250000Z"


@given(st.integers(0, 4 * 10**15))
def test_it_is_the_librarys_text(at_us: int) -> None:
    assert datetime.fromisoformat(utc_us_text(at_us)) == BEGIN + timedelta(microseconds=at_us)
    assert datetime.fromisoformat(utc_ms_text(at_us // 1000)) == BEGIN + timedelta(milliseconds=at_us // 1000)

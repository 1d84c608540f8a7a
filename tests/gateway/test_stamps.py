"""The time of day as text."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stamps import utc_text


@pytest.mark.parametrize(
    ("at_s", "digits", "text"),
    [
        (0.0, 3, "1970-01-01T00:00:00.000Z"),
        (1795860000.9996, 3, "2026-11-28T10:00:00.999Z"),
        (1795860000.25, 6, "2026-11-28T10:00:00.250000Z"),
    ],
)
def test_a_moment_is_told_in_utc(at_s: float, digits: int, text: str) -> None:
    assert utc_text(at_s, digits) == text


@given(st.floats(0, 4e9))
def test_it_is_the_librarys_text(at_s: float) -> None:
    told = datetime.fromisoformat(utc_text(at_s, 6))
    assert abs((told - datetime.fromtimestamp(at_s, UTC)).total_seconds()) < 2e-6

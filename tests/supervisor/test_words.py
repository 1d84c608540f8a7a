"""Trouble is a value: told as it was at one moment."""

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from supervisor.words import Trouble


def test_trouble_is_a_value() -> None:
    told = Trouble("it hangs", datetime(2026, 1, 1, tzinfo=UTC), "nothing", "it is restarted")
    assert told == Trouble("it hangs", datetime(2026, 1, 1, tzinfo=UTC), "nothing", "it is restarted")
    with pytest.raises(FrozenInstanceError):
        told.what = "it is well"  # type: ignore[misc]

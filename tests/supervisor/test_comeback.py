"""How often in a row a service has failed, as the next start finds it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.comeback import NAME, Comeback, comeback_of


def test_each_start_that_comes_to_nothing_makes_the_next_one_wait_longer(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}:/run/another"}
    waits = [comeback_of(environ).begin().delay_s(0.5) for _ in range(5)]
    assert waits == [0, 0.5, 1, 2, 4]


def test_one_that_settled_or_was_ended_by_order_is_forgotten(tmp_path: Path) -> None:
    comeback = Comeback(tmp_path)
    comeback.begin()
    comeback.begin()
    comeback.settled()
    assert comeback.begin().failures == 0


@pytest.mark.parametrize("text", ["", "many", "-1", "9" * 100, "\u00fc"])
def test_a_file_that_says_nothing_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    assert Comeback(tmp_path).begin().failures == 0


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
def test_what_is_no_file_counts_as_none_and_nothing_waits_for_it(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / NAME)
    assert Comeback(tmp_path).begin().failures == 0


def test_without_a_directory_or_with_one_that_is_gone_nothing_is_counted_and_nothing_fails(tmp_path: Path) -> None:
    for comeback in (comeback_of({}), Comeback(tmp_path / "gone")):
        assert [comeback.begin().failures for _ in range(3)] == [0, 0, 0]
        comeback.settled()

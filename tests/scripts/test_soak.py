"""make soak: what it does to a worker next, and what it calls grown."""

import os
from dataclasses import replace
from typing import Any

import pytest

from scripts.soak import SPARE_BYTES, SPARE_FDS, Cost, Turn, cost_of, grown, next_step

BEFORE = Cost(60, 3, 50_000_000, 0)


@pytest.mark.parametrize(
    ("row", "turn", "step"),
    [
        ({"state": "IDLE", "pid": 7}, Turn(), "restart"),
        ({"state": "IDLE", "pid": 7}, Turn(pid=7), None),  # it has not yet heeded the last order
        ({"state": "BUSY", "pid": 8}, Turn(pid=7, kill_next=True), "kill"),
        ({"state": "STARTING", "pid": 8}, Turn(pid=7, kill_next=True), None),
        ({"state": "BACKOFF", "pid": None}, Turn(pid=7), "restart"),
    ],
)
def test_restarts_and_kills_take_turns(row: dict[str, Any], turn: Turn, step: str | None) -> None:
    assert next_step(row, turn) == step


@pytest.mark.parametrize(
    ("after", "names"),
    [
        (BEFORE, []),
        (Cost(50, 1, 1, 0), []),
        (replace(BEFORE, fds=60 + SPARE_FDS), []),
        (replace(BEFORE, fds=61 + SPARE_FDS), ["fds"]),
        (replace(BEFORE, anon_bytes=BEFORE.anon_bytes + SPARE_BYTES + 1, zombies=1), ["anon_bytes", "zombies"]),
    ],
)
def test_what_comes_and_goes_has_not_grown(after: Cost, names: list[str]) -> None:
    assert [fault.split(":")[0] for fault in grown(BEFORE, after)] == names


def test_the_cost_of_this_very_process() -> None:
    cost = cost_of(os.getpid())
    assert cost.fds >= 3
    assert cost.threads >= 1
    assert cost.anon_bytes > 1_000_000

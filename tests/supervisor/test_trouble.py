"""What is wrong with a worker, as an operator reads it: what, since when, what was tried, what happens next."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from supervisor.health import Finding, Step
from supervisor.house import WorkerSpec
from supervisor.lifecycle import State
from supervisor.placement import CPU
from supervisor.restart import BackOff
from supervisor.standing import Goal, LastExit, Standing
from supervisor.trouble import problem_of, trouble_of
from tests.fakes.world import World

SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def it(tmp_path: Path) -> Standing:
    return Standing(WorkerSpec("w1", CPU, 2), World().house(tmp_path))


def test_a_well_worker_has_none(it: Standing) -> None:
    it.state = State.READY
    assert (trouble_of(it), problem_of(it)) == (None, None)


@pytest.mark.parametrize(
    ("put_off", "what_next"),
    [
        (False, "it is restarted if that does not end by itself"),
        (True, "it is restarted as soon as others that were are ready again"),
    ],
)
async def test_a_suspect_says_what_it_waits_for(it: Standing, put_off: bool, what_next: str) -> None:
    it.state = State.READY
    finding = Finding("hung", "it answers no probe, 2 in a row", trio.current_time() - 60.0, Step.AVOID)
    it.watch = cast("Any", SimpleNamespace(finding=finding, put_off=put_off))
    trouble = trouble_of(it)
    assert trouble is not None
    assert (trouble.what, trouble.next) == (finding.what, what_next)
    assert trouble.tried == "it takes a request only when no other worker can"
    assert datetime.now(UTC) - trouble.since >= timedelta(seconds=60)


def test_a_failing_worker_says_how_often_and_when_it_is_tried_again(it: Standing) -> None:
    it.state, it.failure, it.failing_since, it.back_off = State.BACKOFF, "no memory", SINCE, BackOff(3)
    it.next_start_at = datetime.now(UTC) + timedelta(seconds=30)
    trouble = trouble_of(it)
    assert trouble is not None
    assert (trouble.what, trouble.since, trouble.tried) == ("no memory", SINCE, "failed 3 times in a row")
    assert trouble.next in ("it is started again in 30 s", "it is started again in 29 s")
    assert problem_of(it) == "no memory; failed 3 times in a row"
    it.state, it.next_start_at = State.STARTING, None
    assert trouble_of(it) == trouble.__class__("no memory", SINCE, "failed 3 times in a row", "it is being started now")


def test_a_quarantined_worker_says_what_it_waits_for(it: Standing) -> None:
    it.goal, it.cause = Goal.QUARANTINE, "GPU-a is quarantined: Xid 79"
    it.last_exit = LastExit("x", None, SINCE)
    trouble = trouble_of(it)
    assert trouble is not None
    assert (trouble.what, trouble.since) == ("GPU-a is quarantined: Xid 79", SINCE)
    assert "released" in trouble.next


async def test_a_degraded_worker_names_the_way_back(it: Standing) -> None:
    it.state, it.placed.fault = State.READY, "computes on the CPU"
    trouble = trouble_of(it)
    assert trouble is not None
    assert trouble.what == "computes on the CPU"
    assert "chimera restart w1" in trouble.next

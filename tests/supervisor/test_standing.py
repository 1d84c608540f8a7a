"""What others may want of a worker is noted and wakes it; nothing else happens in such a call."""

from pathlib import Path

import pytest
import trio

from supervisor.house import WorkerSpec
from supervisor.lifecycle import State
from supervisor.placed import Placed
from supervisor.placement import CPU, Placement
from supervisor.standing import SAME_LIFE_S, Goal, Standing, Wish
from tests.fakes.world import CARD, World


@pytest.fixture
def it(tmp_path: Path) -> Standing:
    return Standing(WorkerSpec("w1", CPU, 2), World().house(tmp_path))


async def test_a_wish_wakes_whoever_waits(it: Standing) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.wait_changed)
        await trio.testing.wait_all_tasks_blocked()
        it.drain()
    wishes = [it.wish]
    for wish in (it.cordon, it.uncordon):
        wish()
        wishes.append(it.wish)
    assert wishes == [Wish.DRAIN, Wish.CORDON, Wish.SERVE]


def test_a_removal_is_never_taken_back(it: Standing) -> None:
    it.end(Goal.REMOVE)
    it.end(Goal.RESTART)
    it.release()
    it.move(CARD, force=False, cause="a test")
    assert (it.goal, it.placement) == (Goal.REMOVE, CPU)


def test_a_quarantine_ends_by_a_release_or_elsewhere(it: Standing) -> None:
    it.end(Goal.QUARANTINE, cause="Xid 79")
    it.end(Goal.RESTART)
    assert (it.goal, it.cause) == (Goal.QUARANTINE, "Xid 79")
    it.release()
    assert it.goal is Goal.RESTART
    it.end(Goal.RUN)
    it.end(Goal.QUARANTINE)
    it.move(Placement("GPU-b"), force=True, cause="elsewhere")
    assert (it.goal, it.placement, it.force) == (Goal.RESTART, "GPU-b", True)


def test_a_restart_by_the_operator_forgives_where_it_computed(it: Standing) -> None:
    it.placed.restarts, it.placed.fault = 1, "on the CPU"
    it.state = State.READY
    assert it.degraded
    it.restart()
    assert it.placed == Placed()
    assert not it.degraded


async def test_a_stall_is_blamed_on_the_life_that_it_was_of(it: Standing) -> None:
    it.ready_since = 100.0
    for ready_at in (100.0, 100.0 + 2 * SAME_LIFE_S, 50.0):
        it.stalled(ready_at, "stall", 9.0)  # there is no process to blame, and no error
    it.ready_since = None
    it.stalled(100.0, "stall", 9.0)


def test_only_a_wait_can_be_cut_short(it: Standing) -> None:
    it.healed()
    assert not it._healed
    it.state = State.BACKOFF
    it.healed()
    assert it._healed

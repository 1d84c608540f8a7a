"""One process of a worker is looked after: each rung of the ladder, under the virtual clock and without a process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.gpu import Gpu, GpuProcess, GpuReading
from supervisor.house import WorkerSpec
from supervisor.lifecycle import State
from supervisor.placement import CPU, Placement
from supervisor.trouble import trouble_of
from supervisor.worker import Worker
from tests.fakes.house import until
from tests.fakes.world import CARD, HERE, World

HANG_S = 15.0


@asynccontextmanager
async def serving(world: World, folder: Path, placement: Placement = CPU, **names: str) -> AsyncIterator[Worker]:
    """A ready worker in this world, until the block ends."""
    settings = {"REQUIRED_MODEL": "here", "HANG_TIMEOUT_S": str(HANG_S), "CANARY_AFTER_S": "0"} | names
    it = Worker(WorkerSpec("w1", placement, 2), world.house(folder, **settings))
    with world.patched():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run)
            await until(it, State.READY)
            yield it
            nursery.cancel_scope.cancel()


def trusted(world: World) -> bool:
    return world.leases.takes_leases("w1") and "w1" not in world.leases.avoided


async def moment_of(world: World, event: str, deadline_s: float = 600.0) -> float:
    """When an event is recorded, on the virtual clock, to a tenth of a second."""
    with trio.fail_after(deadline_s):
        while event not in world.names():
            await trio.sleep(0.1)
    return trio.current_time()


async def test_a_server_that_hangs_is_avoided_at_once_and_restarted_at_its_limit_and_not_before(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        await trio.sleep(100)
        world.answers, began = False, trio.current_time()
        await moment_of(world, "worker_suspect")
        assert not trusted(world)
        trouble = trouble_of(it)
        assert trouble is not None
        assert "answers no probe" in trouble.what
        noticed_s = await moment_of(world, "worker_hung") - began
        assert HANG_S <= noticed_s <= HANG_S + 2
        world.answers = True
        await until(it, State.BACKOFF)
        await until(it, State.READY)
        assert it.restarts == 1
        assert trusted(world)


async def test_a_limit_that_is_set_anew_counts_for_the_process_that_runs(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, HANG_TIMEOUT_S="60") as it:
        await trio.sleep(100)
        it.house.settings = it.house.settings.model_copy(update={"hang_timeout_s": 2.0})
        await trio.sleep(10)
        world.answers, began = False, trio.current_time()
        noticed_s = await moment_of(world, "worker_hung") - began
        assert 2 <= noticed_s <= 2 + 2


async def test_a_server_that_answers_again_in_time_is_trusted_again(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        world.answers = False
        await moment_of(world, "worker_suspect")
        world.answers = True
        await moment_of(world, "worker_trusted")
        assert trusted(world)
        await trio.sleep(100)
        assert it.restarts == 0


async def test_busy_is_not_dead(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        world.answers = False
        world.leases.hold("w1")
        for _ in range(100):
            world.leases.byte("w1")
            await trio.sleep(1)
        assert it.restarts == 0
        assert world.names() == []


async def test_a_stopped_process_is_restarted_at_the_limit(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path):
        world.stopped, began = True, trio.current_time()
        noticed_s = await moment_of(world, "worker_hung") - began
        assert HANG_S <= noticed_s <= HANG_S + 2
        hung = next(event for event in world.events.newest() if event["event"] == "worker_hung")
        assert "SIGSTOP" in hung["cause"]


async def test_one_bad_round_of_probes_never_takes_every_worker_down(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World(fleet=1)
    assert world.budget.take("another", 1, trio.current_time())
    async with serving(world, tmp_path) as it:
        world.budget.take("another", 1, trio.current_time())
        world.answers = False
        await moment_of(world, "restart_put_off")
        assert it.state is State.READY
        trouble = trouble_of(it)
        assert trouble is not None
        assert "as soon as others" in trouble.next
        world.budget.give_back("another")
        await moment_of(world, "worker_hung")


# -- /api/ps ---------------------------------------------------------------------------------------------------------


async def test_a_runner_that_died_idle_is_noticed_and_its_model_loaded_again(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        loads, world.runner = world.loads_asked, False
        await moment_of(world, "runner_lost")
        assert world.leases.serving["w1"] == frozenset()
        await moment_of(world, "model_reloaded")
        assert world.leases.serving["w1"] == frozenset({HERE})
        assert (world.loads_asked, it.restarts) == (loads + 1, 0)


async def test_a_runner_that_died_under_requests_is_told_once(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        assert it.ready_since is not None
        for _ in range(4):  # as many answers as were under way say so
            it.runner_died(it.ready_since)
        it.runner_died(it.ready_since - 100)
        assert world.names() == ["runner_lost"]
        assert it.restarts == 0


async def test_a_model_that_does_not_go_is_ended_with_its_worker(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        world.expires_at = datetime.now(UTC) + timedelta(seconds=20)
        began = trio.current_time()
        assert 80 <= await moment_of(world, "worker_stuck") - began <= 100
        world.expires_at = None
        await until(it, State.BACKOFF)
        await until(it, State.READY)


async def test_the_memory_limit_recycles_an_idle_worker_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World(private_bytes=1024**3)
    async with serving(world, tmp_path, WORKER_MEMORY_LIMIT_BYTES="512MiB") as it:
        world.leases.hold("w1")
        await trio.sleep(100)
        assert it.restarts == 0
        world.leases.free("w1")
        await moment_of(world, "worker_recycled")
        world.private_bytes = 1
        with trio.fail_after(60):
            while it.restarts == 0:
                await it.wait_changed()
        await until(it, State.READY)
        assert (it.restarts, it.back_off.failures) == (1, 0)


# -- where it computes -----------------------------------------------------------------------------------------------


def reading(*pids: int, used: int = 5000) -> GpuReading:
    processes = tuple(GpuProcess(pid, 1000) for pid in pids)
    return GpuReading((Gpu(0, CARD, "Fake", 10_000, used, 0, 30, 50.0, processes, None),), "570", None)


async def test_a_gpu_worker_on_the_cpu_is_restarted_once_then_shown_and_avoided(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, CARD) as it:
        world.gpus.reading = reading(101)
        world.vram = 0
        await moment_of(world, "worker_misplaced")
        await moment_of(world, "worker_degraded")
        await until(it, State.READY)
        await trio.sleep(300)
        assert (it.restarts, it.degraded) == (1, True)
        assert not trusted(world)
        trouble = trouble_of(it)
        assert trouble is not None
        assert "size_vram is 0" in trouble.what
        assert "chimera restart w1" in trouble.next


async def test_a_degraded_worker_is_avoided_from_its_first_moment_also_without_a_required_model(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    it = Worker(WorkerSpec("w1", CARD, 2), world.house(tmp_path, CANARY_AFTER_S="0"))
    it.placed.restarts, it.placed.fault = 1, "computes on the CPU"
    with world.patched():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run)
            await until(it, State.READY)
            assert not trusted(world)
            nursery.cancel_scope.cancel()


async def test_a_misplaced_worker_lets_its_answers_end_before_it_is_restarted(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, CARD, DRAIN_TIMEOUT_S="1000") as it:
        world.leases.hold("w1")
        world.vram = 0
        await moment_of(world, "worker_misplaced")
        await trio.sleep(100)
        assert (it.state, it.restarts) == (State.DRAINING, 0)
        assert "worker_degraded" not in world.names()
        world.leases.free("w1")
        await moment_of(world, "worker_degraded")
        assert it.restarts == 1


async def test_a_worker_that_nvml_does_not_show_is_misplaced(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, CARD):
        world.gpus.reading = reading(used=10)
        await moment_of(world, "worker_misplaced")


async def test_an_nvml_that_cannot_be_relied_on_says_nothing(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    world.gpus.reading = GpuReading(reading(used=10).gpus, "570", "NVML has not answered for 9 s", 9.0)
    async with serving(world, tmp_path, CARD) as it:
        await trio.sleep(300)
        assert (it.restarts, world.names()) == (0, [])


# -- the progress of real requests, and one token --------------------------------------------------------------------


async def test_a_stalled_request_is_followed_by_one_token_which_clears_a_well_worker(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        assert it.ready_since is not None
        it.stalled(it.ready_since, "stall", 120.0)
        await moment_of(world, "worker_trusted")
        assert (world.tokens_asked, it.restarts) == (1, 0)
        assert trusted(world)


async def test_a_stalled_worker_that_gives_no_token_is_restarted(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World(tokens=False)
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        assert it.ready_since is not None
        it.stalled(it.ready_since, "stall", 120.0)
        await moment_of(world, "worker_hung")
        assert it.last_exit is None or "fell silent" in it.last_exit.reason
        world.tokens = True
        await until(it, State.BACKOFF)
        await until(it, State.READY)


async def test_where_no_token_can_be_asked_one_stall_is_forgiven_and_a_second_in_a_row_is_not(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World(generates=False)
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        assert it.ready_since is not None
        it.stalled(it.ready_since, "stall", 120.0)
        await moment_of(world, "worker_trusted")
        assert trusted(world)
        world.leases.byte("w1")
        it.stalled(it.ready_since, "stall", 120.0)
        await trio.sleep(30)
        assert it.restarts == 0, "an answer came between the two"
        it.stalled(it.ready_since, "stall", 120.0)
        await moment_of(world, "worker_hung")


async def test_a_stall_of_an_older_life_is_nobodys_fault(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path) as it:
        await trio.sleep(30)
        assert it.ready_since is not None
        it.stalled(it.ready_since - 10, "stall", 120.0)
        await trio.sleep(30)
        assert world.names() == []


async def test_a_canary_is_asked_only_when_idle_and_unproven(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, CANARY_AFTER_S="300"):
        await trio.sleep(250)
        world.leases.hold("w1")
        await trio.sleep(1000)
        assert world.tokens_asked == 0, "it was busy"
        world.leases.free("w1")
        await trio.sleep(250)
        assert world.tokens_asked == 0, "it was busy a moment ago"
        await trio.sleep(100)
        assert world.tokens_asked == 1
        await trio.sleep(3000)
        assert 9 <= world.tokens_asked <= 11


def other_model(world: World) -> None:
    """What is loaded is not the required model, and nobody knows with which context."""
    world.model, world.context_length = "other:latest", None


@pytest.mark.parametrize(
    "makes_none",
    [lambda world: setattr(world, "generates", False), other_model],
    ids=["a model that does not generate is asked once", "one that would be reloaded is never asked"],
)
def test_what_is_no_canary(makes_none: Callable[[World], None], tmp_path: Path) -> None:
    async def live() -> None:
        world = World()
        makes_none(world)
        async with serving(world, tmp_path, CANARY_AFTER_S="100") as it:
            await trio.sleep(2000)
            assert (world.tokens_asked <= 1, it.restarts) == (True, 0)

    trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_idle_worker_that_gives_no_token_is_restarted(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    world = World()
    async with serving(world, tmp_path, CANARY_AFTER_S="100") as it:
        world.tokens = False
        await moment_of(world, "worker_hung")
        world.tokens = True
        await until(it, State.BACKOFF)
        await until(it, State.READY)

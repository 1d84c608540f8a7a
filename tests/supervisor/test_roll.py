"""Workers restart for new settings, one after the other; with fake ollamas as real processes."""

from pathlib import Path

import pytest
import trio

from supervisor import restart, roll
from supervisor.comeback import Comeback
from supervisor.lifecycle import State
from supervisor.notify import Notifier
from supervisor.placement import CPU
from supervisor.roll import Roll
from supervisor.service import Service
from supervisor.worker import Worker
from tests.fakes.house import until
from tests.supervisor.test_fleet import Yard, yard


class Notes(Service):
    """A service that knows its last note."""

    def __init__(self) -> None:
        super().__init__(Notifier(None), Comeback(None))
        self.last = ""

    def note(self, text: str) -> None:
        self.last = text


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(roll, "LOOK_S", 0.125)


def change(it: Yard, value: str) -> None:
    """What a reload does with WORKER_ENV."""
    it.fake.house.settings = it.fake.house.settings.model_copy(update={"worker_env": (("NEW", value),)})


async def fresh(worker: Worker, *, than: int) -> None:
    with trio.fail_after(30):
        while worker.restarts <= than or worker.state is not State.READY:
            await worker.wait_changed()


async def test_each_worker_is_renewed_and_one_at_least_serves_all_the_time(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, CPU, CPU]) as it:
        workers = await it.ready("w1", "w2", "w3")
        service = Notes()
        rolling = Roll(it.fleet, it.fake.store, service, it.fake.house.events)
        rolling.step()
        assert service.last == ""
        change(it, "1")
        fewest = 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rolling.run)
            for worker in workers:
                while worker.restarts == 0 or worker.state is not State.READY:
                    fewest = min(fewest, sum(one.state is State.READY for one in workers))
                    await trio.sleep(0.01)
            with trio.fail_after(30):
                while service.last:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert fewest == 2
        assert [worker.restarts for worker in workers] == [1, 1, 1]
        assert not any(worker.stale for worker in workers)
        (begun,), (ended,) = it.fake.events("workers_to_be_renewed"), it.fake.events("workers_renewed")
        assert begun["workers"] == ["w1", "w2", "w3"]
        assert ended["event"] == "workers_renewed"


async def test_settings_that_keep_a_worker_from_starting_cost_one_worker_only(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, CPU]) as it:
        one, two = await it.ready("w1", "w2")
        change(it, "1")
        rolling = Roll(it.fleet, it.fake.store, Notes(), it.fake.house.events)
        it.fake.behaves(exit_at_start=1)
        rolling.step()
        await until(one, State.BACKOFF)
        for _ in range(20):
            rolling.step()
            await trio.sleep(0.02)
        assert (two.state, two.restarts) == (State.READY, 0)
        it.fake.behaves()
        await fresh(one, than=0)
        rolling.step()
        await fresh(two, than=0)


async def test_nobody_restarts_before_the_models_that_are_required_now_are_there(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU]) as it:
        (worker,) = await it.ready("w1")
        it.fake.store.require_anew()
        assert not it.fake.store.present
        change(it, "1")
        rolling = Roll(it.fleet, it.fake.store, Notes(), it.fake.house.events)
        rolling.step()
        assert worker.state is State.READY
        await it.fake.store.keep((), lambda: 0.5)
        rolling.step()
        await fresh(worker, than=0)


async def test_a_drained_answer_ends_in_peace_before_its_worker_restarts(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU], DRAIN_TIMEOUT_S="60") as it:
        (worker,) = await it.ready("w1")
        it.fake.leases.hold("w1")
        change(it, "1")
        Roll(it.fleet, it.fake.store, Notes(), it.fake.house.events).step()
        await until(worker, State.DRAINING)
        it.fake.leases.free("w1")
        await fresh(worker, than=0)

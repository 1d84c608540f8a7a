"""The fleet: what is wanted, and one task for each worker; with fake ollamas as real processes."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from supervisor import fleet as fleet_module
from supervisor import process, restart
from supervisor.config_text import workers_text
from supervisor.config_values import MOST_WORKERS
from supervisor.errors import NoRoom, NotUnderstood, UnknownGpu, UnknownWorker
from supervisor.fleet import MOST_AT_ONCE, Fleet
from supervisor.gpu import Gpu, GpuReading
from supervisor.lifecycle import State
from supervisor.placement import CPU, Placement
from supervisor.probe import Loaded
from supervisor.standing import Goal
from supervisor.wanted import WantedFile
from supervisor.worker import Worker
from tests.fakes.house import FakeHouse, fake_house, until

A, B = "GPU-aaaa", "GPU-bbbb"


def gpu(index: int, uuid: str) -> Gpu:
    return Gpu(index, uuid, "Fake", 100, 0, 0, 30, 50.0, (), None)


@dataclass
class Yard:
    """A running fleet and the test's hands on it."""

    fake: FakeHouse
    fleet: Fleet

    @property
    def saved(self) -> list[str]:
        """The ids in the file."""
        path = self.fake.house.settings.state_dir / "fleet.json"
        return [row["id"] for row in json.loads(path.read_text())["workers"]]

    async def ready(self, *ids: str) -> list[Worker]:
        found = [self.fleet.workers[name] for name in ids]
        for worker in found:
            await until(worker, State.READY)
        return found


@asynccontextmanager
async def yard(directory: Path, placements: Sequence[Placement] = (), **names: str) -> AsyncIterator[Yard]:
    async with fake_house(directory, **names) as fake:
        await fake.store.keep((), lambda: 0.5)
        (directory / "state").mkdir(exist_ok=True)
        file = WantedFile(fake.house.settings.state_dir, workers_text(fake.house.settings.workers), fake.house.events)
        fake.gpus.reading = GpuReading((gpu(0, A), gpu(1, B)), "570", None)
        fleet = Fleet(fake.house, fake.leases, file)
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run, placements)
            yield Yard(fake, fleet)
            nursery.cancel_scope.cancel()
        assert [p for name in fleet.workers for p in fake.processes(name)] == []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(process, "GROUP_TIMEOUT_S", 0.2)


async def test_each_placement_gets_a_worker_and_all_end_with_the_fleet(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, Placement(A)]) as it:
        await it.ready("w1", "w2")
        assert [w.spec.placement for w in it.fleet.workers.values()] == [CPU, A]
        assert it.fake.leases.wanted == [2]
        ports = {w.port for w in it.fleet.workers.values()}
        assert len(ports) == 2


async def test_a_changed_fleet_outlives_a_restart_and_numbers_are_not_used_again(tmp_path: Path) -> None:
    base = {"WORKER_PORT_BASE": "21000"}
    async with yard(tmp_path, [CPU], **base) as it:
        added = it.fleet.spawn(None, 2, 7)
        assert [(w.spec.id, w.spec.placement, w.spec.slots) for w in added] == [("w2", A, 7), ("w3", B, 7)]
        it.fleet.prune([it.fleet.find("w1"), it.fleet.find("w3")], force=True)
        assert it.saved == ["w2"]
        assert it.fake.leases.wanted == [1, 3, 1]
    async with yard(tmp_path, [CPU, CPU], **base) as it:
        assert list(it.fleet.workers) == ["w2"]
        assert it.fleet.workers["w2"].spec.slots == 7
        assert [w.spec.id for w in it.fleet.spawn("cpu", 1, None)] == ["w4"]
    async with yard(tmp_path, [CPU], WORKERS="cpu=1", **base) as it:  # WORKERS has changed: a newer wish
        assert list(it.fleet.workers) == ["w1"]


async def test_pruned_workers_are_gone_when_they_are_said_to_be(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, CPU]) as it:
        one, two = await it.ready("w1", "w2")
        it.fake.leases.hold("w1")
        it.fleet.prune([one, two], force=False)
        with trio.fail_after(30):
            await it.fleet.wait_gone([two])
        assert one.state is State.DRAINING
        assert list(it.fleet.workers) == ["w1"]
        it.fake.leases.free("w1")
        with trio.fail_after(30):
            await it.fleet.wait_gone([one])
        await trio.testing.wait_all_tasks_blocked()
        assert it.fleet.workers == {}
        assert it.saved == []


async def test_a_worker_pruned_as_soon_as_it_was_spawned_goes(tmp_path: Path) -> None:
    async with yard(tmp_path) as it:
        added = it.fleet.spawn(None, 1, None)
        it.fleet.prune(added, force=False)
        with trio.fail_after(30):
            await it.fleet.wait_gone(added)


async def test_settled_is_ready_or_failed(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU]) as it:
        await it.ready("w1")
        it.fake.behaves(exit_at_start=1)
        added = it.fleet.spawn("cpu", 1, None)
        with trio.fail_after(30):
            await it.fleet.wait_settled([*added, it.fleet.find("w1")])
        assert added[0].state in (State.STOPPING, State.BACKOFF)


@pytest.mark.parametrize(
    ("gpu_named", "count", "slots", "error", "sentence"),
    [
        (None, 0, None, NotUnderstood, f"count is 0; it must be between 1 and {MOST_AT_ONCE}"),
        (None, MOST_AT_ONCE + 1, None, NotUnderstood, "count is"),
        (None, 1, 0, NotUnderstood, "slots is 0; it must be between 1 and 1024"),
        (None, 1, 1025, NotUnderstood, "slots is 1025"),
        ("7", 1, None, UnknownGpu, "there is no GPU '7'"),
        (1, 1, None, NoRoom, "GPU 1 (GPU-bbbb) is quarantined"),
    ],
)
async def test_what_cannot_be_spawned_is_refused_and_nothing_is(
    tmp_path: Path, gpu_named: str | int | None, count: int, slots: int | None, error: type[Exception], sentence: str
) -> None:
    async with yard(tmp_path) as it:
        it.fake.gpus.quarantined = frozenset({B})
        with pytest.raises(error) as refused:
            it.fleet.spawn(gpu_named, count, slots)
        assert str(refused.value).startswith(sentence)
        assert it.fleet.workers == {}


async def test_there_is_a_most_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "MOST_WORKERS", 2)
    assert MOST_WORKERS == 256
    async with yard(tmp_path, [CPU]) as it:
        with pytest.raises(NoRoom, match="there are 1 workers; 2 is the most"):
            it.fleet.spawn(None, 2, None)


async def test_workers_are_found_by_id_by_place_and_by_idleness(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, Placement(A), Placement(A)]) as it:
        with pytest.raises(UnknownWorker, match="there is no worker 'x'; workers here: w1, w2, w3"):
            it.fleet.find("x")
        assert [w.spec.id for w in it.fleet.on_gpu("CPU")] == ["w1"]
        assert [w.spec.id for w in it.fleet.on_gpu(0)] == ["w2", "w3"]
        assert it.fleet.on_gpu("GPU-b") == []
        with pytest.raises(UnknownGpu):
            it.fleet.on_gpu("GPU-x")
        await it.ready("w1", "w2", "w3")
        it.fake.leases.hold("w2")
        assert [w.spec.id for w in it.fleet.idle()] == ["w1", "w3"]


def quarantine(it: Yard, uuid: str, *, drain: bool = True) -> None:
    """What the ward does: the GPU takes no worker from now on, and the fleet is told."""
    it.fake.gpus.quarantined |= {uuid}
    it.fleet.quarantine(uuid, "Xid 79", drain=drain)


async def test_a_quarantined_gpu_has_no_process_until_it_is_released(tmp_path: Path) -> None:
    async with yard(tmp_path, [Placement(A), Placement(B)]) as it:
        one, two = await it.ready("w1", "w2")
        quarantine(it, A)
        await until(one, State.QUARANTINED)
        assert it.fake.processes("w1") == []
        assert two.state is State.READY
        with pytest.raises(NoRoom, match="w1 is on a quarantined GPU; release GPU-aaaa first"):
            it.fleet.restart(one)
        assert [w.spec.placement for w in it.fleet.spawn(None, 1, None)] == [B]
        it.fake.gpus.quarantined = frozenset()
        it.fleet.release(A)
        await until(one, State.READY)


async def test_a_worker_whose_place_was_left_open_goes_on_elsewhere(tmp_path: Path) -> None:
    async with yard(tmp_path, [Placement(A), Placement(B), Placement(B)]) as it:
        await it.ready("w1", "w2", "w3")
        (free,) = it.fleet.spawn(None, 1, None)
        (named,) = it.fleet.spawn(A, 1, None)
        assert (free.placement, named.placement) == (A, A)
        await it.ready("w4", "w5")
        quarantine(it, A)
        await until(named, State.QUARANTINED)
        await until(free, State.STARTING)
        await until(free, State.READY)
        assert (free.spec.placement, named.spec.placement) == (B, A)
        saved = json.loads((it.fake.house.settings.state_dir / "fleet.json").read_text())["workers"]
        assert [row["placement"] for row in saved if row["id"] == "w4"] == [B]


async def test_with_no_gpu_left_a_worker_waits_for_its_own(tmp_path: Path) -> None:
    async with yard(tmp_path) as it:
        (free,) = it.fleet.spawn(None, 1, None)
        await until(free, State.READY)
        it.fake.gpus.quarantined = frozenset({B})
        quarantine(it, A)
        await until(free, State.QUARANTINED)


async def test_a_quarantine_waits_for_answers_only_where_they_are_worth_something(tmp_path: Path) -> None:
    async with yard(tmp_path, [Placement(A), Placement(B)]) as it:
        one, two = await it.ready("w1", "w2")
        it.fake.leases.hold("w1")
        it.fake.leases.hold("w2")
        quarantine(it, A, drain=True)
        quarantine(it, B, drain=False)
        await until(two, State.QUARANTINED)
        assert one.state is State.DRAINING
        it.fake.leases.free("w1")
        await until(one, State.QUARANTINED)


async def test_a_gpu_that_is_back_ends_the_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 60.0)
    async with yard(tmp_path, [Placement(A)]) as it:
        it.fake.gpu_problems[A] = "the GPU is lost"
        it.fleet.restart(it.fleet.workers["w1"])
        await until(it.fleet.workers["w1"], State.BACKOFF)
        it.fake.gpu_problems.clear()
        it.fleet.healed(A)
        await it.ready("w1")
        assert it.fleet.workers["w1"].back_off.failures == 0


async def test_a_restart_gives_a_new_process(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU]) as it:
        (one,) = await it.ready("w1")
        before = one.process
        it.fleet.restart(one)
        await until(one, State.STARTING)
        await until(one, State.READY)
        assert one.process is not before
        assert one.goal is Goal.RUN


async def test_a_bug_in_one_workers_task_costs_only_that_worker_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "AFTER_A_BUG_S", 0.05)
    monkeypatch.setattr("supervisor.watch.PS_INTERVAL_S", 0.05)
    async with yard(tmp_path, [CPU, CPU]) as it:
        _, two = await it.ready("w1", "w2")

        async def bug(port: int) -> tuple[Loaded, ...] | None:
            await trio.lowlevel.checkpoint()
            return None if port == two.port else (1 // 0,)  # type: ignore[return-value]  # never gets there

        with monkeypatch.context() as patch:
            patch.setattr(it.fake.house.prober, "ps", bug)
            with trio.fail_after(30):
                await it.fake.leases.wait_told("lost", "w1")
        with trio.fail_after(30):
            await it.fake.leases.wait_told("ready", "w1", 2)
        assert two.restarts == 0


async def test_a_fleet_that_cannot_be_saved_still_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with yard(tmp_path) as it:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(WantedFile, "save", full)
        (added,) = it.fleet.spawn("cpu", 1, None)
        await until(added, State.READY)


# -- a reload --------------------------------------------------------------------------------------------------------


async def test_a_changed_workers_setting_adds_and_removes_no_more_than_it_must(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU, Placement(A)]) as it:
        one, _ = await it.ready("w1", "w2")
        it.fleet.spawn("cpu", 1, None)
        assert it.saved == ["w1", "w2", "w3"]
        assert it.fleet.refit([CPU, Placement(B)], "cpu=1,gpu:1=1") == (["w3", "w2"], ["w4"])
        assert it.fake.leases.wanted[-1] == 2
        assert not (tmp_path / "state" / "fleet.json").exists()  # WORKERS counts from here on
        with trio.fail_after(30):
            while set(it.fleet.workers) != {"w1", "w4"}:
                await trio.sleep(0.02)
        assert (one.state, one.restarts) == (State.READY, 0)
        with pytest.raises(NoRoom, match=f"{MOST_WORKERS} is the most"):
            it.fleet.refit([CPU] * (MOST_WORKERS + 1), "cpu=257")


async def test_other_slots_count_from_the_next_start_on_where_the_operator_named_none(tmp_path: Path) -> None:
    async with yard(tmp_path, [CPU], WORKER_SLOTS="2") as it:
        it.fleet.spawn("cpu", 1, 7)
        one, two = await it.ready("w1", "w2")
        it.fleet.resize(2, 3)
        assert [(worker.slots, worker.spec.slots, worker.stale) for worker in (one, two)] == [
            (3, 2, True),
            (7, 7, False),
        ]
        saved = json.loads((tmp_path / "state" / "fleet.json").read_text())["workers"]
        assert [row["slots"] for row in saved] == [3, 7]
        one.restart()
        await until(one, State.STARTING)
        await until(one, State.READY)
        assert (one.spec.slots, one.stale) == (3, False)

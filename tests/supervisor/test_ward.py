"""The ward hears of the GPUs and tells the fleet: what the driver reports, what the operator orders."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.errors import UnknownGpu
from supervisor.events import EventLog
from supervisor.gpu import Gpu, GpuReading
from supervisor.gpu_events import GpuEvent
from supervisor.gpu_health import FAULTY_READINGS, RELEASE_AFTER_S
from supervisor.placement import Placement
from supervisor.wanted import QuarantineFile
from supervisor.ward import Ward

A, B = "GPU-aaaa", "GPU-bbbb"


def card(index: int, uuid: str, fault: str | None = None) -> Gpu:
    return Gpu(index, uuid, "Fake", 100, 0, 0, 30, 50.0, (), fault)


WELL = GpuReading((card(0, A), card(1, B)), "570", None)
LOST = GpuReading((card(0, A, "the GPU is lost"), card(1, B)), "570", None)
STUCK = replace(WELL, fault="NVML has not answered for 6 s", stuck_s=6.0)


@dataclass
class Fleet:
    """Writes down what it is told."""

    told: list[tuple[str, str]] = field(default_factory=list)

    def quarantine(self, uuid: str, cause: str, *, drain: bool) -> None:
        self.told.append(("quarantine" if drain else "quarantine at once", uuid))

    def release(self, uuid: str) -> None:
        self.told.append(("release", uuid))

    def restart_on(self, uuid: str, cause: str) -> None:
        self.told.append(("restart", uuid))

    def healed(self, uuid: str) -> None:
        self.told.append(("healed", uuid))


@dataclass
class Ground:
    """A ward with a fleet and the events that it recorded."""

    ward: Ward
    fleet: Fleet
    events: EventLog

    def names(self) -> list[str]:
        return [event["event"] for event in self.events.newest()]


@pytest.fixture
async def ground(tmp_path: Path) -> Ground:
    events = EventLog()
    it = Ground(Ward(events, QuarantineFile(tmp_path, events)), Fleet(), events)
    it.ward.admit(it.fleet)
    it.ward.publish(WELL)
    return it


async def test_a_lost_gpu_ends_its_workers_at_once_and_they_come_back_with_it(
    ground: Ground, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(FAULTY_READINGS):
        ground.ward.publish(LOST)
        await trio.sleep(1)
    assert ground.fleet.told == [("quarantine at once", A)]
    assert ground.ward.quarantined == {A}
    assert ground.ward.problem(Placement(A)) == f"GPU {A} is quarantined: the GPU is lost"
    assert ground.ward.verdict(A).verdict == "quarantined"
    for _ in range(int(RELEASE_AFTER_S) + 2):
        ground.ward.publish(WELL)
        await trio.sleep(1)
    assert ground.fleet.told[1:] == [("healed", A), ("release", A)]
    assert ground.names() == ["gpu_quarantined", "gpu_released"]
    assert ground.ward.problem(Placement(A)) is None


@pytest.mark.parametrize(
    ("code", "told"), [(31, [("restart", A)]), (94, [("restart", A)]), (79, [("quarantine at once", A)]), (43, [])]
)
async def test_an_xid_does_what_its_row_says(ground: Ground, code: int, told: list[tuple[str, str]]) -> None:
    ground.ward.happened(GpuEvent(A, "xid", code))
    assert ground.fleet.told == told
    (event,) = [event for event in ground.events.newest() if event["event"] == "gpu_xid"]
    assert (event["gpu"], event["code"]) == (A, code)
    assert [seen.code for seen in ground.ward.verdict(A).xids] == [code]


async def test_a_storm_of_one_xid_is_said_once(ground: Ground) -> None:
    for _ in range(1000):
        ground.ward.happened(GpuEvent(A, "xid", 79))
    assert len(ground.names()) <= 4
    assert ground.fleet.told == [("quarantine at once", A)]


async def test_a_stuck_nvml_is_said_once_and_stops_nothing(
    ground: Ground, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(60):
        ground.ward.publish(STUCK)
        await trio.sleep(1)
    ground.ward.publish(WELL)
    assert ground.fleet.told == []
    assert [name for name in ground.names() if name.startswith("nvml")] == ["nvml_stuck", "nvml_answers"]


async def test_the_operator_quarantines_and_releases(ground: Ground, autojump_clock: trio.testing.MockClock) -> None:
    assert ground.ward.quarantine("1").uuid == B
    for _ in range(100):
        ground.ward.publish(WELL)
        await trio.sleep(1)
    assert ground.ward.quarantined == {B}, "an operator's order is taken back by the operator alone"
    assert ground.ward.release(B).index == 1
    assert ground.fleet.told == [("quarantine", B), ("release", B)]
    assert [event["by"] for event in ground.events.newest()] == ["operator", "operator"]
    with pytest.raises(UnknownGpu):
        ground.ward.quarantine("7")


async def test_a_gpu_that_is_not_there_is_a_problem_in_words(ground: Ground) -> None:
    ground.ward.publish(GpuReading((), None, "NVML library not found"))
    assert ground.ward.problem(Placement(A)) == f"GPU {A} is not there: NVML library not found"


async def test_a_gpu_that_fails_for_a_moment_takes_no_worker_in_it(ground: Ground) -> None:
    ground.ward.publish(LOST)
    assert ground.ward.problem(Placement(A)) == "GPU 0: the GPU is lost"


async def test_the_operators_quarantine_outlives_a_restart_until_it_is_released(tmp_path: Path) -> None:
    first = Ward(EventLog(), QuarantineFile(tmp_path, EventLog()))
    first.publish(WELL)
    first.quarantine(B)

    second, fleet = Ward(EventLog(), QuarantineFile(tmp_path, EventLog())), Fleet()
    second.publish(WELL)
    second.restore()
    second.admit(fleet)
    assert second.quarantined == {B}
    second.release(B)
    assert fleet.told == [("release", B)]

    third = Ward(EventLog(), QuarantineFile(tmp_path, EventLog()))
    third.publish(WELL)
    third.restore()
    assert third.quarantined == frozenset()

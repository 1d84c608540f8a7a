"""The words between a worker and the house hold against those who speak them."""

from pathlib import Path

from supervisor.events import EventLog
from supervisor.house import Gpus, Leases, WorkerSpec
from supervisor.placement import CPU
from supervisor.wanted import QuarantineFile
from supervisor.ward import Ward
from tests.fakes.house import FakeGpus
from tests.fakes.leases import RecordingLeases


def test_a_worker_is_pinned_unless_its_place_was_left_open() -> None:
    assert WorkerSpec("w1", CPU, 2).pinned


def test_the_fakes_speak_the_same_words_as_the_real_ones(tmp_path: Path) -> None:
    gpus: list[Gpus] = [FakeGpus(), Ward(EventLog(), QuarantineFile(tmp_path, EventLog()))]  # held by the type checker
    leases: Leases = RecordingLeases()
    assert [gpu.quarantined for gpu in gpus] == [frozenset(), frozenset()]
    assert leases.idle_since("w1") is None

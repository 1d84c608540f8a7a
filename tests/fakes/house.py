"""A `House` around the fake ollama: everything a worker needs, in one directory of a test."""

import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import trio

from supervisor.command import mark_of
from supervisor.config import WORKER_PORTS, Settings
from supervisor.config_load import load_settings
from supervisor.events import EventLog
from supervisor.gpu import GpuReading
from supervisor.house import House, WorkerSpec
from supervisor.lifecycle import State
from supervisor.placement import CPU, Placement
from supervisor.ports import PortBook, port_is_free
from supervisor.probe import Prober
from supervisor.store import ModelStore
from supervisor.usage import UsageMeter
from supervisor.worker import Worker
from tests.fakes.fake_ollama import write_control
from tests.fakes.leases import RecordingLeases
from tests.fakes.serving import FAKE_OLLAMA

# The interpreter itself: a version manager's shim in its place costs a fake's start more than all the rest.
PYTHON_DIR = str(Path(sys.executable).resolve().parent)


def free_port_base() -> int:
    """Return a base below 32768 whose first ports are free; random, so that two test runs do not meet."""
    for _ in range(100):
        base = random.SystemRandom().randrange(12000, 32000 - WORKER_PORTS)
        if all(port_is_free(port) for port in range(base, base + 8)):
            return base
    raise RuntimeError("no free ports")


def make_settings(directory: Path, **names: str) -> Settings:
    """Settings that keep everything in `directory`; `names` are further ones by their variables' names."""
    values = {
        "STATE_DIR": str(directory / "state"),
        "LOG_DIR": str(directory / "logs"),
        "OLLAMA_MODELS": str(directory / "models"),
        "WORKER_PORT_BASE": str(free_port_base()),
        "STOP_TIMEOUT_S": "5",
        "DRAIN_TIMEOUT_S": "5",
    }
    return load_settings(values | names, {})


def fake_environ(directory: Path) -> dict[str, str]:
    """The environment from which a fake ollama runs and takes its control file."""
    return {
        "PATH": f"{PYTHON_DIR}:{os.environ['PATH']}",
        "HOME": str(directory),
        "FAKE_OLLAMA_CONTROL": str(directory / "control.json"),
    }


@dataclass
class FakeGpus:
    """The house's `Gpus`, as a test says."""

    reading: GpuReading = field(default_factory=lambda: GpuReading((), None, None))
    quarantined: frozenset[str] = frozenset()
    problems: dict[str, str] = field(default_factory=dict)

    def problem(self, placement: Placement) -> str | None:
        return self.problems.get(placement)


@dataclass
class FakeHouse:
    """A house and the test's hands on it."""

    house: House
    leases: RecordingLeases
    control: Path
    nursery: trio.Nursery
    store: ModelStore
    gpus: FakeGpus
    meter: UsageMeter
    workers: list[Worker] = field(default_factory=list)

    @property
    def gpu_problems(self) -> dict[str, str]:
        """Why workers cannot be placed, by placement."""
        return self.gpus.problems

    def behaves(self, **keys: object) -> None:
        """What the fakes do from their next request on; the keys are those of fake_ollama.py's docstring."""
        write_control(self.control, **keys)

    def worker(self, worker_id: str = "w1", placement: Placement = CPU, slots: int = 2) -> Worker:
        """A worker whose task does not run."""
        worker = Worker(WorkerSpec(worker_id, placement, slots), self.house)
        self.workers.append(worker)
        return worker

    def leaders(self) -> dict[str, int]:
        """The pids of the workers' processes, for the meter."""
        return {worker.spec.id: worker.process.pid for worker in self.workers if worker.process}

    def launch(self, worker_id: str = "w1", placement: Placement = CPU, slots: int = 2) -> Worker:
        """A worker whose task runs until the test ends."""
        worker = self.worker(worker_id, placement, slots)
        self.nursery.start_soon(worker.run)
        return worker

    def events(self, name: str) -> list[dict[str, object]]:
        """The events of one name."""
        return [event for event in self.house.events.newest() if event["event"] == name]

    def processes(self, worker_id: str) -> list[psutil.Process]:
        """Every process that carries the worker's mark, runners included; zombies are none."""
        return marked(mark_of(self.house.settings.state_dir, worker_id))


def marked(mark: str) -> list[psutil.Process]:
    """Every living process with exactly this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CHIMERA_WORKER") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def group_lives(pgid: int) -> bool:
    """Whether a process group has a living member; zombies, whose new parent is slow to reap them, are none."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return False


@asynccontextmanager
async def fake_house(directory: Path, **names: str) -> AsyncIterator[FakeHouse]:
    """A house for the block; its workers' tasks are cancelled at the end, and no process may be left then."""
    settings = make_settings(directory, **names)
    leases, prober, events = RecordingLeases(), Prober(), EventLog()
    gpus, meter = FakeGpus(), UsageMeter()
    store = ModelStore(prober, settings.ollama_port, FAKE_OLLAMA, {}, events)
    house = House(
        settings, FAKE_OLLAMA, fake_environ(directory), prober, leases, events,
        PortBook(settings.worker_port_base, WORKER_PORTS), store, gpus, meter.latest_of, lambda: 8, lambda: 0.5,
    )  # fmt: skip
    try:
        async with trio.open_nursery() as nursery:
            yield FakeHouse(house, leases, directory / "control.json", nursery, store, gpus, meter)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await prober.aclose()


async def until(worker: Worker, *states: State, deadline_s: float = 10.0) -> None:
    """Return when the worker is in one of the states."""
    with trio.fail_after(deadline_s):
        while worker.state not in states:
            await worker.wait_changed()

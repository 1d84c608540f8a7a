"""A worker's whole world without a process: what it starts, asks and measures, as a test says, on trio's clock."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from supervisor import life
from supervisor.errors import NotAChatModel, StartFailed
from supervisor.events import EventLog
from supervisor.house import House
from supervisor.placement import Placement
from supervisor.ports import PortBook
from supervisor.probe import Loaded
from supervisor.process import ExitStatus
from supervisor.restart import RestartBudget
from supervisor.usage import Usage
from tests.fakes.house import FakeGpus, make_settings
from tests.fakes.leases import RecordingLeases

CARD = Placement("GPU-aaaa")
HERE = "here:latest"


class Process:
    """A process that ends when a test says so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started_at = datetime.now(UTC)
        self.started_monotonic = trio.current_time()
        self.exit_status: ExitStatus | None = None
        self.killed_by_us = False
        self.log_problem: str | None = None
        self.exited = trio.Event()

    async def wait(self) -> None:
        await self.exited.wait()

    def has_exited(self) -> bool:
        return self.exited.is_set()


@dataclass
class World:
    """What a worker meets: everything is well until a test says otherwise. It is the worker's prober too."""

    answers: bool = True
    loads: bool = True
    starts: bool = True
    stopped: bool = False
    vram: int = 1000
    stop_s: float = 0.0
    runner: bool = True
    private_bytes: int = 1
    context_length: int | None = 4096
    expires_at: datetime | None = None
    generates: bool = True
    tokens: bool = True
    model: str = HERE
    tokens_asked: int = 0
    loads_asked: int = 0
    pids: int = 100
    process: Process | None = None
    gpus: FakeGpus = field(default_factory=FakeGpus)
    leases: RecordingLeases = field(default_factory=RecordingLeases)
    events: EventLog = field(default_factory=EventLog)
    fleet: int = 1
    budget: RestartBudget = field(default_factory=RestartBudget)

    def house(self, folder: Path, **names: str) -> House:
        """The house of a worker that meets this world; `names` are settings."""
        config = make_settings(folder, **names)
        return House(
            config, Path("/ollama"), {}, cast("Any", self), self.leases, self.events,
            AnyPort(config.worker_port_base, 1), cast("Any", Present()), self.gpus, self.usage, lambda: self.fleet,
            lambda: 0.5, self.budget,
        )  # fmt: skip

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Within the block a worker starts this world's processes."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(life, "running", self.running)
            monkeypatch.setattr(life, "owns_port", self.owns_port)
            yield

    def names(self) -> list[str]:
        """The events that are no transitions, in order."""
        return [event["event"] for event in self.events.newest() if "was" not in event]

    @asynccontextmanager
    async def running(self, *_: object, **__: object) -> AsyncIterator[Process]:
        if not self.starts:
            raise StartFailed("it cannot be started")
        self.pids += 10
        self.process = process = Process(self.pids)
        self.stopped = False
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                if not process.has_exited():
                    process.killed_by_us = True
                    await trio.sleep(self.stop_s)
            process.exited.set()
            process.exit_status = ExitStatus(0, None, datetime.now(UTC))

    async def version(self, _port: int, timeout_s: float = 5.0) -> str | None:
        if self.answers and not self.stopped:
            await trio.lowlevel.checkpoint()
            return "0.5.4"
        await trio.sleep(timeout_s)
        return None

    async def owns_port(self, _pid: int, _port: int) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def ps(self, _port: int) -> tuple[Loaded, ...] | None:
        await trio.lowlevel.checkpoint()
        if not self.answers:
            return None
        return (Loaded(self.model, 1000, self.vram, self.expires_at, self.context_length),)

    async def load(self, _port: int, _model: str, _timeout_s: float) -> None:
        self.loads_asked += 1
        await trio.sleep(0.5)
        if not self.loads:
            raise StartFailed("it cannot be loaded")
        self.runner = True

    async def canary(self, *_: object, timeout_s: float, **__: object) -> str | None:
        self.tokens_asked += 1
        if not self.generates:
            await trio.lowlevel.checkpoint()
            raise NotAChatModel
        if self.tokens and self.answers and not self.stopped:
            await trio.lowlevel.checkpoint()
            return None
        await trio.sleep(timeout_s)
        return "it gave no token"

    def usage(self, _worker_id: str) -> Usage | None:
        if self.process is None:
            return None
        leader = self.process.pid
        pids = frozenset({leader, leader + 1} if self.runner else {leader})
        stopped = pids if self.stopped else frozenset[int]()
        now = trio.current_time()
        return Usage(1, 0.0, pids, leader, private_bytes=self.private_bytes, stopped=stopped, measured_at=now)

    def exits(self) -> None:
        if self.process is not None:
            self.process.exited.set()

    def well(self) -> None:
        self.answers = self.loads = self.starts = True
        self.stopped, self.vram, self.stop_s = False, 1000, 0.0
        self.gpus.problems.clear()


class Present:
    """A model store that has everything."""

    async def wait_present(self) -> None:
        await trio.lowlevel.checkpoint()


class AnyPort(PortBook):
    """Ports that nobody else has."""

    def take(self, preferred: int | None) -> int:
        return preferred or self._ports[0]

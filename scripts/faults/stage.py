"""The stage of a trial: one Chimera, its load, its driver; what is done to them, and how they are looked at."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from scripts.faults.driver import Driver
from scripts.faults.load import Load, wait_until
from scripts.faults.machine import alive, boot_s, resident_bytes
from scripts.faults.row import MIB, Row, first_good
from scripts.faults.scenario import HEAL_S, Scenario, settings_of
from supervisor.embedded import MODEL
from tests.fakes.chimera import Chimera
from tests.fakes.fake_ollama import add_model, write_control

Json = dict[str, Any]

# An event's time is cut to milliseconds.
EVENT_CUT_S = 0.002


class Stuck(Exception):
    """A scenario cannot go on: what it is about did not come about."""


@dataclass
class Moment:
    """When something was done, on three clocks."""

    wall: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic: float = field(default_factory=time.monotonic)
    boot: float = field(default_factory=boot_s)


class Stage:
    """One Chimera, not yet started, in a folder of its own."""

    def __init__(self, scenario: Scenario, folder: Path, ports_from: int, real_models: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.row = Row(scenario.name, scenario.kind)
        self.moment = Moment()
        self.victims: list[psutil.Process] = []
        self.stack = ExitStack()
        folder.mkdir(parents=True)
        env = settings_of(scenario, real_models=str(real_models), path=path_without_ollama())
        self._driver = Driver(folder) if scenario.gpus else None
        self.chimera = Chimera(folder, (self._driver.environ() if self._driver else {}) | env, ports_from)
        real = scenario.kind == "real"
        self.load = Load(
            self.chimera.url, MODEL if real else scenario.model, clients=3 if real else 4, tokens=scenario.tokens,
            resend=scenario.resend, unary=scenario.unary,
        )  # fmt: skip
        if not real:
            Path(self.chimera.env["OLLAMA_MODELS"]).mkdir()
            add_model(Path(self.chimera.env["OLLAMA_MODELS"]), "tiny")
            self.behave()

    @property
    def driver(self) -> Driver:
        """The fake driver of a scenario with GPUs."""
        if self._driver is None:
            raise Stuck("the scenario has no GPUs")
        return self._driver

    def begin(self) -> None:
        """Start Chimera and, once its workers are ready, the load; return when every worker has answered."""
        self.chimera.start().ready(self.scenario.workers)
        self.begin_load()
        ids = [row["id"] for row in self.chimera.instances()]
        self.must("every worker answers", lambda: all(first_good(self.load.outcomes, 0.0, name) for name in ids))

    def begin_load(self) -> None:
        """Start the clients."""
        self.stack.enter_context(self.load.running())

    # -- doing ---------------------------------------------------------------------------------------------------

    def behave(self, **keys: object) -> None:
        """What the fakes do from now on, a short answer that takes its time unless `keys` say more."""
        write_control(self.folder / "control.json", **{"tokens": 6, "token_s": 0.03, **keys})

    def only(self, worker: str, **keys: object) -> None:
        """What one worker's fake does from now on."""
        self.behave(by_port={str(self.port_of(worker)): keys})

    def inject(self, victims: list[psutil.Process] | None = None) -> None:
        """Note that the fault happens now, and what memory the processes that it takes have."""
        self.victims = victims or []
        self.row.held_bytes = resident_bytes(self.victims)
        if self._driver:
            self.row.held_bytes = self._driver.taken_mib() * MIB
        self.moment = Moment()

    def order(self, worker: str, verb: str) -> None:
        """Have the operator order something."""
        self.chimera.client.post(f"/admin/instances/{worker}/{verb}").raise_for_status()

    def chimera_pid(self) -> int:
        """The pid of Chimera itself."""
        if self.chimera.process is None:
            raise Stuck("Chimera was not started")
        return self.chimera.process.pid

    def kill_chimera(self) -> None:
        """SIGKILL of Chimera itself."""
        self.chimera_pid()
        self.chimera.stop(signal.SIGKILL)

    def note(self, text: str) -> None:
        """Add a remark to the verdict."""
        self.row.notes.append(text)

    def broken(self, text: str) -> None:
        """Note a broken promise."""
        self.row.broken.append(text)

    # -- looking -------------------------------------------------------------------------------------------------

    def port_of(self, worker: str) -> int:
        """The port that a worker has; before the start the one it will have."""
        rows = {row["id"]: row["port"] for row in self.chimera.instances()} if self.chimera.process else {}
        return int(rows.get(worker) or int(self.chimera.env["WORKER_PORT_BASE"]) + int(worker[1:]) - 1)

    def serve(self, worker: str) -> psutil.Process:
        """A worker's `ollama serve`."""
        return psutil.Process(self.chimera.instance(worker)["pid"])

    def runner(self, worker: str) -> psutil.Process:
        """A worker's runner."""
        children = self.serve(worker).children()
        if not children:
            raise Stuck(f"{worker} has no runner")
        return children[0]

    def group(self, worker: str) -> list[psutil.Process]:
        """A worker's serve and its runners."""
        serve = self.serve(worker)
        return [serve, *serve.children(recursive=True)]

    def strays(self) -> list[psutil.Process]:
        """Living processes of workers that are in no present worker's group."""
        if self.chimera.process is None or not (rows := self.chimera.instances()):
            return []
        primary = self.chimera.instance("primary")
        groups = {row["pid"] for row in [*rows, primary]}
        return [process for process in self.chimera.marked() if alive(process) and _group_of(process) not in groups]

    def events(self, *names: str, **fields: object) -> list[tuple[float, Json]]:
        """The events since the injection with one of these names and these fields: (seconds after it, event)."""
        found = []
        for event in self.chimera.events():
            after_s = (datetime.fromisoformat(event["at"]) - self.moment.wall).total_seconds()
            right = event["event"] in names and all(event.get(key) == value for key, value in fields.items())
            if right and after_s >= -EVENT_CUT_S:
                found.append((max(0.0, after_s), event))
        return found

    def ready_count(self) -> int:
        """How many workers are ready and not degraded."""
        rows = self.chimera.instances()
        return sum(row["state"] in ("IDLE", "BUSY") and not row.get("degraded") for row in rows)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """For the block nobody asks, and nothing is under way."""
        self.load.pause()
        self.must("the load comes to rest", lambda: not self.load.under_way)
        try:
            yield
        finally:
            self.load.go_on()

    def stream_on(self, worker: str) -> None:
        """Return while an answer of this worker is under way and has had a byte."""
        self.must(f"an answer of {worker} under way", lambda: self.load.streams_on(worker), pause_s=0.005)

    def must(self, what: str, seen: Callable[[], Any], within_s: float = HEAL_S, pause_s: float = 0.05) -> Any:
        """Wait for what the scenario cannot go on without. Raises Stuck."""
        found = wait_until(seen, within_s, pause_s)
        if not found:
            raise Stuck(f"not within {within_s:g} s: {what}")
        return found

    def since_s(self) -> float:
        """Seconds since the injection."""
        return time.monotonic() - self.moment.monotonic

    def age_of(self, event: Json) -> float:
        """How long after the injection an event says it was, in seconds of its own clock."""
        return (datetime.fromisoformat(event["at"]) - self.moment.wall).total_seconds()

    def rest(self, pause_s: float) -> None:
        """Let the load go on for a while, to see that nothing happens."""
        threading.Event().wait(pause_s)


def _group_of(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


def path_without_ollama() -> str:
    """Return PATH without the folders that have an `ollama` of the machine's own."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "ollama").exists())

"""One worker from its first start to its last stop. `Worker.run` is the sole writer of the worker's state.

Others say what they want (`cordon`, `drain`, `restart`, `remove`, …) by plain calls that only note the wish and
wake the task; what is done about it, and when, is decided here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Protocol

import trio

from supervisor.command import PRIMARY, worker_command
from supervisor.config import Settings
from supervisor.errors import StartFailed
from supervisor.events import EventLog
from supervisor.health import Health
from supervisor.lifecycle import RUNNING, Event, State, after
from supervisor.placement import CPU, Placement
from supervisor.probe import PortBook, Prober, owns_port, port_holder
from supervisor.process import ExitStatus, WorkerProcess, last_lines, running
from supervisor.restart import BackOff
from supervisor.store import ModelStore, full_name

# GPU discovery of a sick driver takes Ollama up to 30 s a pass before the first answer.
START_TIMEOUT_S = 120.0
# Ollama's own limit for a load that makes no progress is five minutes.
LOAD_TIMEOUT_S = 600.0
POLL_INTERVAL_S = 2.0


class Leases(Protocol):
    """What the supervisor tells and asks the dispatcher. Plain calls: "lost" and "no lease goes there" are one step."""

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        """Leases may go to the worker from now on (once uncordoned, if `cordoned`).

        It is a new process, whatever was known of an older one.
        """

    def worker_lost(self, worker_id: str) -> None:
        """No lease goes to the worker any more, and those it has are void."""

    def cordon(self, worker_id: str) -> None:
        """No new lease goes to the worker; those it has go on."""

    def uncordon(self, worker_id: str) -> None:
        """Leases may go to the worker again."""

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """These models are loaded there now."""

    def inflight(self, worker_id: str) -> int:
        """How many leases the worker has."""
        ...

    async def wait_drained(self, worker_id: str) -> None:
        """Return when the worker has no lease."""


class Goal(Enum):
    """What is to become of the worker once its process is gone."""

    RUN = "run"
    RESTART = "restart"
    QUARANTINE = "quarantine"
    REMOVE = "remove"


class Wish(Enum):
    """What the operator wants of a running worker."""

    SERVE = "serve"
    CORDON = "cordon"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What makes one worker different from another."""

    id: str
    placement: Placement
    slots: int


@dataclass(frozen=True, slots=True)
class LastExit:
    """Why and how a worker's process last ended; `log` has the last lines that it wrote."""

    reason: str
    status: ExitStatus | None
    at: datetime
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class House:
    """What every worker of one supervisor shares."""

    settings: Settings
    ollama: Path
    environ: Mapping[str, str]
    prober: Prober
    leases: Leases
    events: EventLog
    ports: PortBook
    store: ModelStore | None
    gpu_problem: Callable[[Placement], str | None]
    random_unit: Callable[[], float]
    pdeathsig: bool = True


@dataclass(slots=True)
class Worker:
    """One worker. Read its fields freely; only `run` writes them, but for the wishes."""

    spec: WorkerSpec
    house: House
    state: State = State.STARTING
    goal: Goal = Goal.RUN
    wish: Wish = Wish.SERVE
    force: bool = False
    port: int | None = None
    process: WorkerProcess | None = None
    models: frozenset[str] = frozenset()
    restarts: int = 0
    problem: str | None = None
    last_exit: LastExit | None = None
    back_off: BackOff = field(default_factory=BackOff)
    ready_since: float | None = None
    _news: trio.Event = field(default_factory=trio.Event)

    # -- wishes: plain calls of others -------------------------------------------------------------------------

    def cordon(self) -> None:
        """Take no new leases."""
        self._set(wish=Wish.CORDON)

    def uncordon(self) -> None:
        """Take leases again."""
        self._set(wish=Wish.SERVE)

    def drain(self) -> None:
        """Take no new leases, and be CORDONED when the last one has ended."""
        self._set(wish=Wish.DRAIN)

    def end(self, goal: Goal, *, force: bool = False) -> None:
        """End the process (drained first unless `force`), then do what `goal` says.

        REMOVE is never taken back, and only REMOVE or a release ends QUARANTINE.
        """
        if goal is Goal.REMOVE or self.goal not in (Goal.REMOVE, Goal.QUARANTINE):
            self.goal = goal
        self._set(force=self.force or force)

    def release(self) -> None:
        """Leave quarantine; a worker on its way there is started again instead."""
        if self.goal is Goal.QUARANTINE:
            self._set(goal=Goal.RESTART)

    def _set(self, *, wish: Wish | None = None, goal: Goal | None = None, force: bool | None = None) -> None:
        self.wish = wish or self.wish
        self.goal = goal or self.goal
        self.force = self.force if force is None else force
        self._changed()

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def wait_ready(self) -> None:
        """Return when the worker is ready, at once if it is."""
        while self.state is not State.READY:
            await self._news.wait()

    async def wait_changed(self) -> None:
        """Return at the next change of the worker's state or of what is wanted of it."""
        await self._news.wait()

    # -- the task ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the worker running until it is removed. Cancellation ends its process group first (shielded).

        Raises nothing that a failing worker could cause: it backs off and tries again for as long as it is wanted.
        """
        try:
            while True:
                reason = await self._live_once()
                if self.goal is Goal.REMOVE:
                    self._move(Event.REMOVE, cause=reason)
                    return
                self.force = False
                if self.goal is Goal.RESTART:
                    self.goal = Goal.RUN
                    self._move(Event.RESTART, cause=reason)
                elif self.goal is Goal.QUARANTINE:
                    self._move(Event.QUARANTINE, cause=reason)
                else:
                    await self._back_off(reason)
                if self.state is State.QUARANTINED and not await self._sit_out_quarantine():
                    return
                if self.state is State.GONE:
                    return
                self.restarts += 1
        finally:
            self.house.leases.worker_lost(self.spec.id)

    async def _live_once(self) -> str:
        """Start the process, serve with it, end it. Returns why it ended; the state is STOPPING."""
        self.process, self.ready_since, self.models = None, None, frozenset()
        reason = ""
        try:
            with self._port() as port:
                self._refuse_missing_gpu()
                command = worker_command(
                    self.house.settings, self.house.ollama, self.house.environ,
                    worker_id=self.spec.id, placement=self.spec.placement, port=port, slots=self.spec.slots,
                    pdeathsig=self.house.pdeathsig,
                )  # fmt: skip
                stop_timeout_s = self.house.settings.stop_timeout_s
                async with running(command, self.log_path, stop_timeout_s=stop_timeout_s) as self.process:
                    try:
                        reason = await self._use(self.process, port)
                    finally:
                        # one step with leaving: no lease goes to a worker that is about to be stopped
                        self.house.leases.worker_lost(self.spec.id)
                    self._move(Event.EXITED if self.process.has_exited() else Event.STOP, cause=reason)
        except StartFailed as error:
            reason = str(error)
            self._move(Event.STOP, cause=reason)
        failed = self.goal is Goal.RUN and self.process is not None  # else the log is an older process's
        status = self.process.exit_status if self.process else None
        tail = tuple(last_lines(self.log_path, 5)) if failed else ()
        self.last_exit = LastExit(reason, status, datetime.now(UTC), tail)
        self.process, self.models = None, frozenset()
        return reason

    async def _use(self, process: WorkerProcess, port: int) -> str:
        """Make the process ready and keep it until it exits, is found unhealthy or is no longer wanted."""
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_exit, process, reasons, nursery.cancel_scope)
            try:
                with trio.CancelScope() as starting:
                    nursery.start_soon(self._end_on_goal, starting)
                    await self._become_ready(process, port)
                if self.goal is Goal.RUN:
                    nursery.start_soon(self._watch_health, port, reasons, nursery.cancel_scope)
                    await self._serve(port)
            except StartFailed as error:
                reasons.append(str(error))
            nursery.cancel_scope.cancel()
        return reasons[0] if reasons else f"{self.goal.value} asked for"

    async def _watch_exit(self, process: WorkerProcess, reasons: list[str], scope: trio.CancelScope) -> None:
        await process.wait()
        self.house.leases.worker_lost(self.spec.id)
        reasons.append("its process ended by itself")
        # the state is moved by `_live_once` alone: what is still running here ends at its next checkpoint
        scope.cancel()

    async def _end_on_goal(self, scope: trio.CancelScope) -> None:
        while self.goal is Goal.RUN:
            await self._news.wait()
        scope.cancel()

    async def _become_ready(self, process: WorkerProcess, port: int) -> None:
        """Return when it answers, owns its port and has the required models. Raises StartFailed."""
        with trio.move_on_after(START_TIMEOUT_S) as answering:
            pause_s = 0.02
            while await self.house.prober.version(port) is None or not await owns_port(process.pid, port):
                await trio.sleep(pause_s)
                pause_s = min(0.5, pause_s * 1.5)
        if answering.cancelled_caught:
            raise StartFailed(f"it did not answer on port {port} within {START_TIMEOUT_S:g} s")
        await _unless_cancelled()
        self._move(Event.ANSWERED)
        required = self.house.settings.required_models
        if required and self.spec.id != PRIMARY and self.house.store:
            await self.house.store.wait_present()
            await self.house.prober.load(port, required[0], LOAD_TIMEOUT_S)
            self.models = frozenset({full_name(required[0])})

    async def _serve(self, port: int) -> None:
        """Be ready, and follow the operator's wishes, until the goal is no longer to run (then drained, or forced)."""
        leases, worker_id = self.house.leases, self.spec.id
        await _unless_cancelled()
        self._move(Event.WARMED)
        self.ready_since = trio.current_time()
        cordoned = self.wish is not Wish.SERVE
        leases.worker_ready(worker_id, port=port, slots=self.spec.slots, models=self.models, cordoned=cordoned)
        while self.goal is Goal.RUN:
            await _unless_cancelled()
            if self.wish is Wish.SERVE and self.state is not State.READY:
                self._move(Event.UNCORDON)
                leases.uncordon(worker_id)
            elif self.wish is Wish.CORDON and self.state is State.READY:
                leases.cordon(worker_id)
                self._move(Event.CORDON)
            elif self.wish is Wish.DRAIN:
                if await self._drain(lambda: self.wish is not Wish.DRAIN or self.goal is not Goal.RUN, math.inf):
                    self.wish = Wish.CORDON
            elif self.wish is Wish.CORDON and self.state is State.DRAINING:
                self._move(Event.DRAINED)
            else:
                await self._news.wait()
        if not self.force and worker_id != PRIMARY:
            await self._drain(lambda: self.force, self.house.settings.drain_timeout_s)

    async def _drain(self, given_up: Callable[[], bool], timeout_s: float) -> bool:
        """Take no new leases and wait for the last one to end, or until `given_up`. Returns whether it has ended."""
        await _unless_cancelled()
        self.house.leases.cordon(self.spec.id)
        if self.state is not State.DRAINING:
            self._move(Event.DRAIN)
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    while not given_up():
                        await self._news.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                await self.house.leases.wait_drained(self.spec.id)
                nursery.cancel_scope.cancel()
        return not given_up() and self.house.leases.inflight(self.spec.id) == 0

    async def _watch_health(self, port: int, reasons: list[str], scope: trio.CancelScope) -> None:
        """Ask every two seconds whether it still answers, and which models it holds."""
        health = Health()
        while True:
            await trio.sleep(POLL_INTERVAL_S)
            health = health.after(answered=await self.house.prober.version(port) is not None)
            if health.hung:
                reasons.append(f"it did not answer {health.failures} times in a row")
                scope.cancel()
                return
            models = await self.house.prober.models(port)
            await _unless_cancelled()
            if models is not None:
                self.models = models
                self.house.leases.worker_models(self.spec.id, models)

    async def _back_off(self, reason: str) -> None:
        """Wait before the next start. An operator's restart or removal ends the wait."""
        ready_for_s = trio.current_time() - self.ready_since if self.ready_since is not None else 0.0
        self.back_off = self.back_off.failed(ready_for_s=ready_for_s)
        delay_s = self.back_off.delay_s(self.house.random_unit())
        self.problem = f"{reason}; failed {self.back_off.failures} times in a row"
        self._move(Event.BACK_OFF, cause=reason, retry_in_s=round(delay_s, 2))
        with trio.move_on_after(delay_s):
            while self.goal is Goal.RUN:
                await self._news.wait()
        self.problem = None
        if self.goal is Goal.REMOVE:
            self._move(Event.REMOVE)
        elif self.goal is Goal.QUARANTINE:
            self._move(Event.QUARANTINE)
        else:
            self.goal = Goal.RUN
            self._move(Event.RETRY)

    async def _sit_out_quarantine(self) -> bool:
        """Wait for the release; return False when the worker is removed instead."""
        while self.goal is Goal.QUARANTINE:
            await self._news.wait()
        if self.goal is Goal.REMOVE:
            self._move(Event.REMOVE)
            return False
        self.goal = Goal.RUN
        self._move(Event.RELEASE)
        return True

    # -- small parts -------------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """Where the worker's process writes."""
        return self.house.settings.log_dir / f"{self.spec.id}.log"

    @property
    def running(self) -> bool:
        """Whether there is, or is about to be, a process."""
        return self.state in RUNNING

    def uptime_s(self, now: float) -> float | None:
        """How long the present process has been there; `now` is trio's clock."""
        return None if self.process is None else math.floor((now - self.process.started_monotonic) * 10) / 10

    @contextmanager
    def _port(self) -> Iterator[int]:
        self.port = self.house.ports.take(self.port)
        try:
            yield self.port
        finally:
            self.house.ports.give_back(self.port)

    def _refuse_missing_gpu(self) -> None:
        """Never start a pinned worker whose GPU is not there: Ollama would compute on the CPU without a word."""
        if self.spec.placement != CPU and (problem := self.house.gpu_problem(self.spec.placement)):
            raise StartFailed(problem)

    def _move(self, event: Event, *, cause: str | None = None, **more: object) -> None:
        before, self.state = self.state, after(self.state, event)
        level = "warning" if event in (Event.EXITED, Event.BACK_OFF) else "info"
        self.house.events.record(
            "worker_" + self.state.lower(), level=level, worker=self.spec.id, was=before.value, by=event.value,
            **({"cause": cause} if cause else {}), **more,
        )  # fmt: skip
        self._changed()


async def _unless_cancelled() -> None:
    """Before a move or a word to the dispatcher: the process may have exited in the very step that woke this task.

    The dispatcher has been told then that the worker is lost, and the task is cancelled; only a checkpoint says so.
    """
    await trio.lowlevel.checkpoint_if_cancelled()


class OnePort(PortBook):
    """The primary's port: the one of OLLAMA_PORT or none, since users' own tools may know it."""

    def __init__(self, port: int) -> None:
        super().__init__(port, 1)

    def take(self, preferred: int | None) -> int:
        """Return the port. Raises StartFailed that says who holds it."""
        try:
            return super().take(preferred)
        except StartFailed:
            port = self._ports[0]
            raise StartFailed(f"port {port} (OLLAMA_PORT) is held by {port_holder(port)}") from None

"""Where one worker stands: what is known of it, and what is wanted of it.

The facts are written by the worker's own task alone (`worker`). What is wanted comes from others, by plain calls that
only note it and wake the task: what is done about it, and when, is decided there.
"""

import math
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path

import trio

from supervisor.command import start_key
from supervisor.house import House, WorkerSpec
from supervisor.lifecycle import RUNNING, State
from supervisor.placed import Placed
from supervisor.placement import Placement
from supervisor.process import ExitStatus, WorkerProcess
from supervisor.restart import BackOff
from supervisor.watch import Watch

# The dispatcher and the worker note the same moment, one right after the other.
SAME_LIFE_S = 0.05

SERVING = frozenset({State.READY, State.CORDONED, State.DRAINING})


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
class LastExit:
    """Why and how a worker's process last ended; `log` has the last lines that it wrote."""

    reason: str
    status: ExitStatus | None
    at: datetime
    log: tuple[str, ...] = ()


@dataclass(slots=True)
class Standing:
    """One worker, to be read freely."""

    spec: WorkerSpec
    house: House
    state: State = State.STARTING
    goal: Goal = Goal.RUN
    wish: Wish = Wish.SERVE
    force: bool = False
    port: int | None = None
    process: WorkerProcess | None = None
    watch: Watch | None = None
    models: frozenset[str] = frozenset()
    restarts: int = 0
    last_exit: LastExit | None = None
    back_off: BackOff = field(default_factory=BackOff)
    placed: Placed = field(default_factory=Placed)
    ready_since: float | None = None
    next_start_at: datetime | None = None
    cause: str | None = None  # why the goal is what it is
    failing_since: datetime | None = None  # its first failure since it was last ready
    failure: str = ""
    started_as: object = None  # `start_key` of the present process
    _moving_to: Placement | None = None
    _resized_to: int | None = None
    _healed: bool = False
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

    def end(self, goal: Goal, *, force: bool = False, cause: str | None = None) -> None:
        """End the process (drained first unless `force`), then do what `goal` says.

        REMOVE is never taken back, and only REMOVE or a release ends QUARANTINE. `cause` is for people.
        """
        if goal is Goal.REMOVE or self.goal not in (Goal.REMOVE, Goal.QUARANTINE):
            self.goal, self.cause = goal, cause
        self._set(force=self.force or force)

    def restart(self) -> None:
        """Do as the operator says: a restart, and a fresh start for what is known of where it computes."""
        self.placed.forgive()
        self.end(Goal.RESTART, cause="asked for by the operator")

    def release(self) -> None:
        """Leave quarantine; a worker on its way there is started again instead."""
        if self.goal is Goal.QUARANTINE:
            self.placed.forgive()
            self.cause = "its GPU is released"
            self._set(goal=Goal.RESTART)

    def move(self, placement: Placement, *, force: bool, cause: str) -> None:
        """Start again elsewhere, drained first unless `force`; a worker in quarantine leaves it."""
        if self.goal is Goal.REMOVE:
            return
        self._moving_to, self.goal, self.cause = placement, Goal.RESTART, cause
        self._set(force=self.force or force)

    def resize(self, slots: int) -> None:
        """Have so many slots from the next start on."""
        self._resized_to = slots

    def healed(self) -> None:
        """The cause of its failures may be gone: a wait before the next start ends now, and counting begins anew."""
        if self.state is State.BACKOFF:
            self._healed = True
            self._changed()

    def stalled(self, ready_at: float, phase: str, silent_s: float) -> None:
        """A request of the life that became ready at `ready_at` made no progress for so long."""
        if self._is_life_of(ready_at) and self.watch is not None:
            self.watch.stalled(phase, silent_s)

    def runner_died(self, ready_at: float) -> None:
        """An answer of the life that became ready at `ready_at` said that its runner died."""
        if self._is_life_of(ready_at) and self.watch is not None:
            self.watch.runner_died()

    def _is_life_of(self, ready_at: float) -> bool:
        return self.ready_since is not None and abs(self.ready_since - ready_at) < SAME_LIFE_S

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

    # -- to be read ----------------------------------------------------------------------------------------------

    @property
    def placement(self) -> Placement:
        """Where it computes, or is about to: a worker that is being moved counts with its new place."""
        return self._moving_to or self.spec.placement

    @property
    def slots(self) -> int:
        """How many requests it answers at once, or will from its next start on."""
        return self._resized_to or self.spec.slots

    @property
    def stale(self) -> bool:
        """Whether its process was started with settings that count no more, and nobody ends it yet."""
        there = self.process is not None and self.goal is Goal.RUN
        return there and self.started_as != start_key(self.house.settings, self.slots)

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

    @property
    def degraded(self) -> bool:
        """Whether the worker serves, but not as it should."""
        return self.state in SERVING and self.placed.fault is not None

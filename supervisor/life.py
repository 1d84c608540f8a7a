"""One life of a worker: its process is started, made ready, served with, and ended.

`Worker` (`worker`) lives it again and again, as one task; only that task calls what is here, and only it writes the
facts of `Standing`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from supervisor.command import PRIMARY, start_key, worker_command
from supervisor.errors import StartFailed
from supervisor.lifecycle import Event, State, after
from supervisor.notes import MARK
from supervisor.oom import OomMark, killed, mark
from supervisor.placed import computes_on_cpu, misplaced
from supervisor.placement import CPU
from supervisor.ports import owns_port
from supervisor.process import ExitStatus, WorkerProcess, running
from supervisor.standing import SERVING, Goal, LastExit, Standing, Wish
from supervisor.store import full_name
from supervisor.watch import Watch
from supervisor.watched import Watched
from supervisor.worker_log import last_lines, size_of, written_since

# Ollama's own limit for a load that makes no progress is five minutes.
LOAD_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Life(Standing):
    """What a worker's task does with one process."""

    async def _live_once(self) -> str:
        """Start the process, serve with it, end it. Returns why it ended; the state is STOPPING."""
        self.process, self.watch, self.ready_since, self.models = None, None, None, frozenset()
        reason = ""
        oom_mark = mark()
        try:
            with self._port() as port:
                self._refuse_missing_gpu()
                cgroup = self.house.cgroups.of(self.spec.id) if self.house.cgroups else None
                command = worker_command(
                    self.house.settings, self.house.ollama, self.house.environ,
                    worker_id=self.spec.id, placement=self.spec.placement, port=port, slots=self.spec.slots,
                    pdeathsig=self.house.pdeathsig,
                )  # fmt: skip
                self.started_as = start_key(self.house.settings, self.spec.slots)
                stop_timeout_s = self.house.settings.stop_timeout_s
                log_begin = size_of(self.log_path)
                async with running(
                    command, self.log_path, stop_timeout_s=stop_timeout_s, cgroup=cgroup
                ) as self.process:
                    try:
                        reason = await self._use(self.process, port, log_begin, oom_mark)
                    finally:
                        # one step with leaving: no lease goes to a worker that is about to be stopped
                        self.house.leases.worker_lost(self.spec.id)
                    self._move(Event.EXITED if self.process.has_exited() else Event.STOP, cause=reason)
        except StartFailed as error:
            reason = str(error)
            self._move(Event.STOP, cause=reason)
        return await self._after_life(reason, oom_mark)

    async def _after_life(self, reason: str, oom_mark: OomMark) -> str:
        """Note how the process ended; returns the reason, which the exit status may tell better."""
        failed = self.goal is Goal.RUN and self.process is not None  # else the log is an older process's
        status = self.process.exit_status if self.process else None
        if self.process is not None and status is not None and not self.process.killed_by_us:
            reason = await self._explain({self.process.pid}, status, oom_mark) or f"{reason} ({status.text})"
        tail = tuple(last_lines(self.log_path, 5, without=MARK)) if failed else ()
        self.last_exit = LastExit(reason, status, datetime.now(UTC), tail)
        self.process, self.watch, self.models = None, None, frozenset()
        return reason

    async def _explain(self, pids: set[int], status: ExitStatus, oom_mark: OomMark) -> str | None:
        if status.signal != "SIGKILL":
            return None
        usage = self.house.usage(self.spec.id)
        return await trio.to_thread.run_sync(killed, frozenset(pids | (set(usage.pids) if usage else set())), oom_mark)

    async def _use(self, process: WorkerProcess, port: int, log_begin: int, oom_mark: OomMark) -> str:
        """Make the process ready and keep it until it exits, is found unhealthy or is no longer wanted."""
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_exit, process, reasons, nursery.cancel_scope)
            try:
                with trio.CancelScope() as starting:
                    nursery.start_soon(self._end_on_goal, starting)
                    await self._answer(process, port)
                    if computes_on_cpu(written_since(self.log_path, log_begin)):
                        self._refuse_misplaced("Ollama found no GPU, and computes on the CPU without a word")
                    self.watch = self._new_watch(process, port, oom_mark)  # there before its task has begun
                    nursery.start_soon(self._keep_watch, self.watch, reasons, nursery.cancel_scope)
                    await self._warm(port)
                if self.goal is Goal.RUN:
                    await self._serve(port)
            except StartFailed as error:
                reasons.append(str(error))
            nursery.cancel_scope.cancel()
        return reasons[0] if reasons else self.cause or f"{self.goal.value} asked for"

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

    def _new_watch(self, process: WorkerProcess, port: int, oom_mark: OomMark) -> Watch:
        watched = Watched(
            self.spec, self.house, process, port, oom_mark, serving=lambda: self.state in SERVING,
            recycle=lambda cause: self.end(Goal.RESTART, cause=cause), holds=self._holds,
        )  # fmt: skip
        return Watch(watched, self.placed)

    async def _keep_watch(self, watch: Watch, reasons: list[str], scope: trio.CancelScope) -> None:
        reasons.append(await watch.run())
        scope.cancel()

    def _holds(self, models: frozenset[str]) -> None:
        self.models = models
        self.house.leases.worker_models(self.spec.id, models)

    async def _answer(self, process: WorkerProcess, port: int) -> None:
        """Return when it answers and owns its port. Raises StartFailed."""
        timeout_s = self.house.settings.start_timeout_s
        with trio.move_on_after(timeout_s) as answering:
            pause_s = 0.02
            while await self.house.prober.version(port) is None or not await owns_port(process.pid, port):
                await trio.sleep(pause_s)
                pause_s = min(0.5, pause_s * 1.5)
        if answering.cancelled_caught:
            raise StartFailed(f"it did not answer on port {port} within {timeout_s:g} s (START_TIMEOUT_S)")
        await _unless_cancelled()
        self._move(Event.ANSWERED, cause=f"it answers on port {port}")

    def _refuse_misplaced(self, fault: str | None) -> None:
        """Refuse to be ready where it was not placed: raises StartFailed once, then it is shown and avoided."""
        if fault is None or self.spec.placement == CPU:
            return
        if self.placed.restarts == 0:
            self.placed.restarts += 1
            raise StartFailed(fault)
        if self.placed.leave(fault, trio.current_time()):
            self.house.events.record("worker_degraded", level="error", worker=self.spec.id, cause=fault)

    async def _warm(self, port: int) -> None:
        """Load the first required model once it is in the store. Raises StartFailed."""
        required = self.house.settings.required_models
        if required and self.spec.id != PRIMARY and self.house.store:
            await self.house.store.wait_present()
            await self.house.prober.load(port, required[0], LOAD_TIMEOUT_S)
            self.models = frozenset({full_name(required[0])})
            loaded = await self.house.prober.ps(port) or ()
            self._refuse_misplaced(misplaced(loaded, (), None, (), 0.0))

    async def _serve(self, port: int) -> None:
        """Be ready, and follow the operator's wishes, until the goal is no longer to run (then drained, or forced)."""
        leases, worker_id = self.house.leases, self.spec.id
        await _unless_cancelled()
        self._move(Event.WARMED, cause=f"{', '.join(sorted(self.models))} loaded" if self.models else "it answers")
        self.ready_since = trio.current_time()
        cordoned = self.wish is not Wish.SERVE
        leases.worker_ready(worker_id, port=port, slots=self.spec.slots, models=self.models, cordoned=cordoned)
        self.house.budget.give_back(worker_id)
        self.failing_since, self.failure = None, ""
        if self.watch is not None:
            self.watch.serves()
        while self.goal is Goal.RUN:
            await _unless_cancelled()
            if self.wish is Wish.SERVE and self.state is not State.READY:
                self._move(Event.UNCORDON, cause="asked for")
                leases.uncordon(worker_id)
            elif self.wish is Wish.CORDON and self.state is State.READY:
                leases.cordon(worker_id)
                self._move(Event.CORDON, cause="asked for")
            elif self.wish is Wish.DRAIN:
                if await self._drain(lambda: self.wish is not Wish.DRAIN or self.goal is not Goal.RUN, math.inf):
                    self.wish = Wish.CORDON
            elif self.wish is Wish.CORDON and self.state is State.DRAINING:
                self._move(Event.DRAINED, cause="its last lease has ended")
            else:
                await self._news.wait()
        if not self.force and worker_id != PRIMARY:
            await self._drain(lambda: self.force, self.house.settings.drain_timeout_s)

    async def _drain(self, given_up: Callable[[], bool], timeout_s: float) -> bool:
        """Take no new leases and wait for the last one to end, or until `given_up`. Returns whether it has ended."""
        await _unless_cancelled()
        self.house.leases.cordon(self.spec.id)
        if self.state is not State.DRAINING:
            self._move(Event.DRAIN, cause=self.cause or "asked for")
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

    # -- small parts -------------------------------------------------------------------------------------------

    @contextmanager
    def _port(self) -> Iterator[int]:
        self.port = self.house.ports.take(self.port)
        try:
            yield self.port
        finally:
            self.house.ports.give_back(self.port)

    def _refuse_missing_gpu(self) -> None:
        """Never start a pinned worker whose GPU is not there: Ollama would compute on the CPU without a word."""
        if self.spec.placement != CPU and (problem := self.house.gpus.problem(self.spec.placement)):
            raise StartFailed(problem)

    def _move(self, event: Event, *, cause: str, **more: object) -> None:
        before, self.state = self.state, after(self.state, event)
        level = "warning" if event in (Event.EXITED, Event.BACK_OFF) else "info"
        self.house.events.record(
            "worker_" + self.state.lower(), level=level, worker=self.spec.id, was=before.value, by=event.value,
            cause=cause, **more,
        )  # fmt: skip
        self._changed()


async def _unless_cancelled() -> None:
    """Before a move or a word to the dispatcher: the process may have exited in the very step that woke this task.

    The dispatcher has been told then that the worker is lost, and the task is cancelled; only a checkpoint says so.
    """
    await trio.lowlevel.checkpoint_if_cancelled()

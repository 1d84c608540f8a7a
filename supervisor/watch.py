"""Looks after one process of a worker: gathers the facts of the ladder, and does what `health` says of them.

Facts come from tasks of their own, since each may hang in its own way: probes, what /api/ps says, one token. A
look once a second puts them together. Exits are not its business: `worker` sees them by pidfd.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import trio

from supervisor.beat import beat
from supervisor.command import PRIMARY
from supervisor.errors import NotAChatModel, StartFailed
from supervisor.gpu import GpuReading
from supervisor.health import (
    Expiry,
    Finding,
    Silence,
    Step,
    expiries,
    gravest,
    judge_in_kernel,
    judge_silence,
    judge_stopped,
    judge_stuck,
    misplaced,
)
from supervisor.house import House, WorkerSpec
from supervisor.memory import MemoryTrack
from supervisor.oom import OomMark, killed
from supervisor.placement import CPU
from supervisor.probe import Loaded
from supervisor.process import WorkerProcess
from supervisor.store import full_name
from supervisor.usage import Usage
from supervisor.words import Trouble

LOOK_INTERVAL_S = 1.0
# A suspect is looked at more often: its limit is to be kept to the moment.
SUSPECT_INTERVAL_S = 0.25
# With these a hang is noticed within HANG_TIMEOUT_S and two seconds, and not before.
PROBE_INTERVAL_S = 1.5
PS_INTERVAL_S = 10.0
# Once a probe has gone unanswered the next one follows soon.
SILENT_INTERVAL_S = 0.2
# One token of a loaded model on an idle worker; FIRST_BYTE_TIMEOUT_S where that is less.
CANARY_TIMEOUT_S = 30.0
# Ollama starts another runner at the next request; meanwhile the model counts as not loaded.
RELOAD_TIMEOUT_S = 600.0
# An answer may be just about to begin: a worker is recycled when nothing has been under way for so long.
RECYCLE_IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Stall:
    """A real request that made no progress: `phase` is first byte or stall; `at` is when it was given up."""

    phase: str
    silent_s: float
    at: float


@dataclass(slots=True)
class Placed:
    """Whether a worker computes where it was placed; outlives its processes.

    `restarts` counts those for this cause since it was last proven; `fault` is set while it is left as it is.
    """

    restarts: int = 0
    fault: str | None = None
    since: float = 0.0


@dataclass(slots=True)
class Watch:
    """One process of one worker, from its first answer to its end. Read freely; its own tasks write."""

    spec: WorkerSpec
    house: House
    process: WorkerProcess
    port: int
    placed: Placed
    oom_mark: OomMark
    serving: Callable[[], bool]  # whether leases may be under way
    recycle: Callable[[str], None]  # restart it when its leases have ended; not a failure
    holds: Callable[[frozenset[str]], None]  # it has these models loaded
    loaded: tuple[Loaded, ...] = ()
    finding: Finding | None = None
    put_off: bool = False  # the restart budget is spent
    memory: MemoryTrack | None = None
    _silence: Silence = field(default_factory=Silence)
    _stopped_since: float | None = None
    _kernel_since: float | None = None
    _expiries: dict[str, Expiry] | None = None
    _placement: Finding | None = None
    _unproven: Finding | None = None
    _stall: Stall | None = None
    _stalls: int = 0  # in a row, with no byte of any answer between them
    _stalled_at: float = -math.inf
    _proven_at: float = -math.inf
    _loaded_since: float = math.inf
    _runner_seen: bool = False
    _runners: frozenset[int] = frozenset()
    _lost: frozenset[int] | None = None  # the runners that have been reported
    _not_chat: frozenset[str] = frozenset()
    _avoided: bool = False
    _recycling: bool = False

    async def run(self) -> str:
        """Return why the process must be replaced. Cancellation ends the watch and nothing else."""
        reason = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe)
            if self.spec.id != PRIMARY:
                nursery.start_soon(self._take_inventory)
                nursery.start_soon(self._try_out)
            while not reason:
                await beat(LOOK_INTERVAL_S if self.finding is None else SUSPECT_INTERVAL_S)
                await trio.lowlevel.checkpoint_if_cancelled()  # the process may have exited in this very step
                self._look_for_runner(nursery)
                self._recycle_if_large()
                reason = self._follow(self._judge())
            nursery.cancel_scope.cancel()
        return reason

    def stalled(self, phase: str, silent_s: float) -> None:
        """Take the gateway's word that a real request made no progress."""
        now = trio.current_time()
        self._stalls = 1 if self._progressed_since(self._stalled_at) else self._stalls + 1
        self._stall, self._stalled_at = Stall(phase, silent_s, now), now
        self._record("worker_stalled", phase=phase, silent_s=round(silent_s, 1))

    def runner_died(self) -> None:
        """Take the gateway's word that a runner ended under a request. Ollama starts another; said once a runner."""
        if self._runners != self._lost:
            self._lost = self._runners
            self._record("runner_lost", level="warning", cause="its runner ended under a request")

    def serves(self) -> None:
        """The worker has just become ready: what is known of the place it computes in holds for its leases too."""
        self._proven_at = trio.current_time()
        if self.placed.fault:
            self._avoid()

    def trouble(self) -> Trouble | None:
        """What the ladder has found, for people."""
        finding = self.finding
        if finding is None:
            return None
        since = datetime.now(UTC) - timedelta(seconds=max(0.0, trio.current_time() - finding.since))
        tried = "it takes a request only when no other worker can"
        if self.put_off:
            return Trouble(finding.what, since, tried, "it is restarted as soon as others that were are ready again")
        return Trouble(finding.what, since, tried, "it is restarted if that does not end by itself")

    # -- gathering -----------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        hang_timeout_s = self.house.settings.hang_timeout_s
        while True:
            asked_at = trio.current_time()
            patience_s = min(5.0, max(0.5, hang_timeout_s / 6))  # several probes fit into the limit
            answered = await self.house.prober.version(self.port, timeout_s=patience_s) is not None
            self._silence = self._silence.after(answered=answered, asked_at=asked_at)
            await beat(PROBE_INTERVAL_S if answered else SILENT_INTERVAL_S)

    async def _take_inventory(self) -> None:
        while True:
            await beat(PS_INTERVAL_S, after_s=PROBE_INTERVAL_S / 2)  # not with a probe: it has the kept connection
            await self._look_at_models()

    async def _look_at_models(self) -> None:
        loaded = await self.house.prober.ps(self.port)
        await trio.lowlevel.checkpoint_if_cancelled()
        if loaded is not None and self.serving():
            self._read_inventory(loaded)

    def _read_inventory(self, loaded: tuple[Loaded, ...]) -> None:
        now = trio.current_time()
        self._expiries = expiries(self._expiries or {}, loaded, datetime.now(UTC), now)
        names = frozenset(model.name for model in loaded)
        if names != frozenset(model.name for model in self.loaded):
            self._loaded_since = now
        self.loaded = loaded
        usage = self._usage()
        if usage is None or usage.runner_pids or not self._runners:  # else what is listed has lost its runner
            self.holds(names)
        self._check_placement(now)
        if usage is not None and usage.private_bytes is not None:
            self.memory = (self.memory or MemoryTrack()).sampled(now, usage.private_bytes, self._vram_bytes())

    def _check_placement(self, now: float) -> None:
        """Compare what /api/ps and NVML say with where the worker was placed (ollama#14258)."""
        usage = self._usage()
        if self.spec.placement == CPU or usage is None or not self.loaded or self._recycling:
            self._placement = None
            return
        gpu, foreign = _on_gpus(self.house.gpus.reading, self.spec.placement)
        fault = misplaced(self.loaded, usage.pids, gpu, foreign, now - self._loaded_since)
        if fault is None:
            self._placement = None
            if gpu is not None and gpu.process_pids is not None and gpu.process_pids & usage.pids:
                self._proven_placed()
        elif self.placed.restarts == 0:
            self._placement = Finding("misplaced", fault, now, Step.RESTART)
        elif self.placed.fault is None:
            self.placed.fault, self.placed.since = fault, now
            self._record("worker_degraded", level="error", cause=fault)
            self._avoid()

    def _proven_placed(self) -> None:
        """NVML shows the worker on its GPU: whatever was wrong with its place before is over."""
        if self.placed.fault is not None:
            self._record("worker_placed", placement=str(self.spec.placement))
        self.placed.restarts, self.placed.fault = 0, None

    def _look_for_runner(self, nursery: trio.Nursery) -> None:
        """Notice that the runner is gone; whether it died or was unloaded, /api/ps knows."""
        usage = self._usage()
        if usage is None:
            return
        if usage.runner_pids:
            self._runner_seen, self._runners = True, frozenset(usage.runner_pids)
        elif self._runner_seen and self.serving():
            self._runner_seen = False
            nursery.start_soon(self._runner_gone)

    async def _runner_gone(self) -> None:
        """A model that /api/ps still lists without a runner has lost it: load the required one again.

        Ollama itself would find out at the next request, which would have to wait for the load.
        """
        listed = await self.house.prober.ps(self.port)
        await trio.lowlevel.checkpoint_if_cancelled()
        usage = self._usage()
        if listed is None or usage is None or usage.runner_pids or not self.serving():
            return
        names = frozenset(model.name for model in listed)
        self.loaded = ()
        self.holds(frozenset())
        if not names:
            return
        oom = await trio.to_thread.run_sync(killed, self._runners, self.oom_mark)
        self._record(
            "runner_lost",
            level="warning",
            models=sorted(names),
            cause=oom or "its runner is gone, though /api/ps lists its model",
        )
        required = [full_name(model) for model in self.house.settings.required_models[:1]]
        if required and required[0] in names and self.house.leases.inflight(self.spec.id) == 0:
            await self._reload(required[0])

    async def _reload(self, model: str) -> None:
        try:
            await self.house.prober.load(self.port, model, RELOAD_TIMEOUT_S)
        except StartFailed as error:
            self._record("model_not_reloaded", level="warning", model=model, cause=str(error))
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.serving():
            self.holds(frozenset({model}))
            self._record("model_reloaded", model=model)

    # -- one token -----------------------------------------------------------------------------------------------

    async def _try_out(self) -> None:
        while True:
            await beat(LOOK_INTERVAL_S)
            if self._stall is not None and self._progressed_since(self._stall.at):
                self._stall = None
            if self.serving() and (self._stall is not None or self._canary_due()):
                await self._ask_one_token()

    def _canary_due(self) -> bool:
        after_s, idle_since = self.house.settings.canary_after_s, self.house.leases.idle_since(self.spec.id)
        if after_s == 0 or idle_since is None or self._unproven is not None:
            return False
        return trio.current_time() - max(idle_since, self._proven_at) >= after_s

    def _candidate(self) -> Loaded | None:
        """Return a loaded model that one token can be asked of without a reload, or None.

        A reload happens when the context length differs: it is known from /api/ps (newer versions), or the model
        is the required one, which was loaded with Ollama's default.
        """
        required = frozenset(full_name(model) for model in self.house.settings.required_models[:1])
        for model in sorted(self.loaded, key=lambda model: model.name not in required):
            known = model.context_length is not None or model.name in required
            if known and model.name not in self._not_chat:
                return model
        return None

    async def _ask_one_token(self) -> None:
        stall, began = self._stall, trio.current_time()
        await self._look_at_models()  # what is loaded, and until when, is to be true now
        model = self._candidate()
        timeout_s = min(CANARY_TIMEOUT_S, self.house.settings.first_byte_timeout_s)
        if model is None:
            # Nothing can be asked of it. One stalled request may be at fault itself, a second one in a row is not.
            if stall is not None and self._stalls > 1:
                self._unproven = Finding("hung", _stalled(stall), stall.at, Step.RESTART)
            self._proven_at, self._stall = began, None
            return
        keep_alive = _keep_alive(model.expires_at, datetime.now(UTC))
        try:
            fault = await self.house.prober.canary(
                self.port, model.name, context_length=model.context_length, keep_alive=keep_alive,
                timeout_s=timeout_s,
            )  # fmt: skip
        except NotAChatModel:
            self._not_chat |= {model.name}
            return
        if fault is None or self._progressed_since(began):
            self._proven_at, self._stall, self._unproven = trio.current_time(), None, None
            return
        cause = f"{_stalled(stall)}, and then {fault}" if stall else f"one token, asked when idle: {fault}"
        self._unproven = Finding("hung", cause, began, Step.RESTART)

    def _progressed_since(self, moment: float) -> bool:
        progress_at = self._progress_at()
        return progress_at is not None and progress_at > moment

    def _progress_at(self) -> float | None:
        return self.house.leases.progress_at(self.spec.id)

    # -- judging -------------------------------------------------------------------------------------------------

    def _judge(self) -> Finding | None:
        now, limits = trio.current_time(), self.house.settings
        usage = self._usage()
        stopped = usage.stopped if usage is not None else frozenset()
        seen_at = usage.measured_at if usage is not None else now
        self._stopped_since = (self._stopped_since or seen_at) if stopped else None
        stalled = None
        if self._stall is not None:
            stalled = Finding("stalled", _stalled(self._stall), self._stall.at, Step.AVOID)
        in_kernel = usage.stuck if usage is not None else frozenset()
        self._kernel_since = (self._kernel_since or now) if in_kernel else None
        stuck = judge_stuck(self._expiries or {}, self.house.leases.idle_since(self.spec.id), now)
        return gravest(
            [
                judge_stopped(stopped, self._stopped_since, now, limits.hang_timeout_s),
                judge_silence(self._silence, self._progress_at(), now, limits.hang_timeout_s),
                self._placement,
                self._unproven,
                stuck if self.serving() else None,
                stalled,
                judge_in_kernel(in_kernel, self._kernel_since),
            ]
        )

    def _follow(self, finding: Finding | None) -> str:
        """Do what a finding calls for; return the reason when the process is to be replaced now."""
        now = trio.current_time()
        if finding is None:
            if self.finding is not None:
                self._record("worker_trusted", cause=f"no longer: {self.finding.what}")
                self.finding, self.put_off = None, False
                self._avoid()
            return ""
        if self.finding is None and finding.step is Step.AVOID:
            self._record("worker_suspect", level="warning", cause=finding.what)
        before, self.finding = self.finding, finding
        self._avoid()
        if finding.step is not Step.RESTART:
            return ""
        if not self.house.budget.take(self.spec.id, self.house.fleet_size(), now):
            if not self.put_off:
                self._record("restart_put_off", level="warning", cause=finding.what)
            self.put_off = True
            return ""
        since_s = round(now - finding.since, 1)
        said = before is None or before.step is not Step.RESTART or self.put_off
        if said:
            self._record(f"worker_{finding.kind}", level="warning", cause=finding.what, for_s=since_s)
        if finding.kind == "misplaced":  # slow, not broken: its answers may end first
            self.placed.restarts += 1
            self._recycling, self._placement = True, None
            self.recycle(finding.what)
            return ""
        return finding.what

    def _avoid(self) -> None:
        wanted = self.finding is not None or self.placed.fault is not None
        if self.serving() and wanted != self._avoided:
            self._avoided = wanted
            self.house.leases.avoid(self.spec.id, avoided=wanted)

    def _recycle_if_large(self) -> None:
        limit, idle_since = self.house.settings.worker_memory_limit_bytes, self.house.leases.idle_since(self.spec.id)
        if limit is None or self.memory is None or idle_since is None or self._recycling:
            return
        if self.memory.over(int(limit)) and trio.current_time() - idle_since >= RECYCLE_IDLE_S:
            self._recycling = True
            size = self.memory.samples[-1].private_bytes
            cause = f"its memory is {size} bytes, over WORKER_MEMORY_LIMIT_BYTES ({int(limit)})"
            self._record("worker_recycled", cause=cause)
            self.recycle(cause)

    # -- small parts ---------------------------------------------------------------------------------------------

    def _usage(self) -> Usage | None:
        """Return what is measured of this very process, None while there is nothing yet."""
        usage = self.house.usage(self.spec.id)
        return usage if usage is not None and usage.leader == self.process.pid else None

    def _vram_bytes(self) -> int | None:
        usage = self._usage()
        for gpu in self.house.gpus.reading.gpus:
            if gpu.uuid == self.spec.placement and usage is not None and gpu.processes is not None:
                return sum(process.memory_bytes or 0 for process in gpu.processes if process.pid in usage.pids)
        return None

    def _record(self, event: str, *, level: str = "info", **fields: object) -> None:
        self.house.events.record(event, level=level, worker=self.spec.id, **fields)


@dataclass(frozen=True, slots=True)
class _Pinned:
    memory_used_bytes: int
    process_pids: frozenset[int] | None


def _on_gpus(reading: GpuReading, placement: str) -> tuple[_Pinned | None, frozenset[int]]:
    """Return the GPU of a placement, if the reading can be relied on, and the processes of all other GPUs."""
    if reading.fault is not None or reading.stuck_s:
        return None, frozenset()
    own: _Pinned | None = None
    foreign: set[int] = set()
    for gpu in reading.gpus:
        pids = None if gpu.processes is None else frozenset(process.pid for process in gpu.processes)
        if gpu.uuid == placement:
            own = _Pinned(gpu.memory_used_bytes, pids) if gpu.fault is None else None
        elif pids and not gpu.mig_devices:  # a split GPU lists what its parts compute
            foreign |= pids
    return own, frozenset(foreign)


def _stalled(stall: Stall) -> str:
    where = "gave no first byte" if stall.phase == "first byte" else "fell silent within its answer"
    return f"a request {where} for {stall.silent_s:.0f} s"


def _keep_alive(expires_at: datetime | None, wall: datetime) -> str | int:
    """Return the keep_alive with which a model stays no longer than it would have stayed anyway."""
    if expires_at is None or expires_at - wall > timedelta(days=365):
        return -1
    return f"{max(1, int((expires_at - wall).total_seconds()))}s"

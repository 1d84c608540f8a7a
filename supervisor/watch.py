"""Looks after one process of a worker: gathers the facts of the ladder, and does what `health` says of them.

Facts come from tasks of their own, since each may hang in its own way: probes, what /api/ps says, one token. A
look once a second puts them together. Exits are not its business: `life` sees them by pidfd.
"""

import math
from datetime import UTC, datetime

import trio

from supervisor.beat import beat
from supervisor.command import PRIMARY
from supervisor.errors import NotAChatModel
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
)
from supervisor.memory import MemoryTrack
from supervisor.placed import Placed, misplaced, on_gpus, vram_bytes
from supervisor.placement import CPU
from supervisor.probe import Loaded
from supervisor.proof import Proof, keep_alive_until
from supervisor.runner import Runner
from supervisor.watched import Watched

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
# An answer may be just about to begin: a worker is recycled when nothing has been under way for so long.
RECYCLE_IDLE_S = 5.0


class Watch:
    """One process of one worker, from its first answer to its end. Read freely; its own tasks write."""

    def __init__(self, it: Watched, placed: Placed) -> None:
        """`placed` is the worker's: it outlives the process."""
        self.finding: Finding | None = None
        self.put_off = False  # a restart, since the budget is spent
        self.memory: MemoryTrack | None = None
        self._it = it
        self._placed = placed
        self._proof = Proof()
        self._runner = Runner(it)
        self._loaded: tuple[Loaded, ...] = ()
        self._loaded_since = math.inf
        self._expiries: dict[str, Expiry] = {}
        self._silence = Silence()
        self._stopped_since: float | None = None
        self._kernel_since: float | None = None
        self._misplaced: Finding | None = None
        self._avoided = False
        self._recycling = False

    async def run(self) -> str:
        """Return why the process must be replaced. Cancellation ends the watch and nothing else."""
        reason = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe)
            if self._it.spec.id != PRIMARY:
                nursery.start_soon(self._take_inventory)
                nursery.start_soon(self._try_out)
            while not reason:
                await beat(LOOK_INTERVAL_S if self.finding is None else SUSPECT_INTERVAL_S)
                await trio.lowlevel.checkpoint_if_cancelled()  # the process may have exited in this very step
                if self._runner.has_gone():
                    nursery.start_soon(self._runner.make_up_for_loss, self._none_loaded)
                self._recycle_if_large()
                reason = self._follow(self._judge())
            nursery.cancel_scope.cancel()
        return reason

    def stalled(self, phase: str, silent_s: float) -> None:
        """Take the gateway's word that a real request made no progress."""
        self._proof.stalled(phase, silent_s, trio.current_time(), self._it.progress_at())
        self._it.record("worker_stalled", phase=phase, silent_s=round(silent_s, 1))

    def runner_died(self) -> None:
        """Take the gateway's word that a runner ended under a request."""
        self._runner.died()

    def serves(self) -> None:
        """The worker has just become ready: what is known of the place it computes in holds for its leases too."""
        self._proof.serves(trio.current_time())
        if self._placed.fault:
            self._avoid()

    # -- gathering -----------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        it = self._it
        while True:
            asked_at = trio.current_time()
            patience_s = min(5.0, max(0.5, it.house.settings.hang_timeout_s / 6))  # several probes fit into the limit
            answered = await it.house.prober.version(it.port, timeout_s=patience_s) is not None
            self._silence = self._silence.after(answered=answered, asked_at=asked_at)
            await beat(PROBE_INTERVAL_S if answered else SILENT_INTERVAL_S)

    async def _take_inventory(self) -> None:
        while True:
            await beat(PS_INTERVAL_S, after_s=PROBE_INTERVAL_S / 2)  # not with a probe: it has the kept connection
            await self._look_at_models()

    async def _look_at_models(self) -> None:
        loaded = await self._it.house.prober.ps(self._it.port)
        await trio.lowlevel.checkpoint_if_cancelled()
        if loaded is not None and self._it.serving():
            self._read_inventory(loaded)

    def _read_inventory(self, loaded: tuple[Loaded, ...]) -> None:
        now, it = trio.current_time(), self._it
        self._expiries = expiries(self._expiries, loaded, datetime.now(UTC), now)
        names = frozenset(model.name for model in loaded)
        if names != frozenset(model.name for model in self._loaded):
            self._loaded_since = now
        self._loaded = loaded
        if self._runner.holds_what_is_listed():
            it.holds(names)
        self._check_placement(now)
        usage = it.usage()
        if usage is not None and usage.private_bytes is not None:
            vram = vram_bytes(it.house.gpus.reading, it.spec.placement, usage.pids)
            self.memory = (self.memory or MemoryTrack()).sampled(now, usage.private_bytes, vram)

    def _none_loaded(self) -> None:
        self._loaded = ()
        self._it.holds(frozenset())

    def _check_placement(self, now: float) -> None:
        """Compare what /api/ps and NVML say with where the worker was placed (`placed`)."""
        it, usage = self._it, self._it.usage()
        self._misplaced = None
        if it.spec.placement == CPU or usage is None or not self._loaded or self._recycling:
            return
        gpu, foreign = on_gpus(it.house.gpus.reading, it.spec.placement)
        fault = misplaced(self._loaded, usage.pids, gpu, foreign, now - self._loaded_since)
        if fault is None:
            if gpu is not None and gpu.shows(usage.pids):
                self._proven_placed()
        elif self._placed.restarts == 0:
            self._misplaced = Finding("misplaced", fault, now, Step.RESTART)
        elif self._placed.leave(fault, now):
            it.record("worker_degraded", level="error", cause=fault)
            self._avoid()

    def _proven_placed(self) -> None:
        """NVML shows the worker on its GPU: whatever was wrong with its place before is over."""
        if self._placed.fault is not None:
            self._it.record("worker_placed", placement=str(self._it.spec.placement))
        self._placed.forgive()

    # -- one token -----------------------------------------------------------------------------------------------

    async def _try_out(self) -> None:
        it, proof = self._it, self._proof
        while True:
            await beat(LOOK_INTERVAL_S)
            after_s = it.house.settings.canary_after_s
            if proof.due(trio.current_time(), it.progress_at(), it.idle_since(), after_s) and it.serving():
                await self._ask_one_token()

    async def _ask_one_token(self) -> None:
        it, proof = self._it, self._proof
        stall, began = proof.stall, trio.current_time()
        await self._look_at_models()  # what is loaded, and until when, is to be true now
        model = proof.candidate(self._loaded, it.required())
        if model is None:
            proof.nothing_to_ask(stall, began)
            return
        try:
            fault = await it.house.prober.canary(
                it.port, model.name, context_length=model.context_length,
                keep_alive=keep_alive_until(model.expires_at, datetime.now(UTC)),
                timeout_s=min(CANARY_TIMEOUT_S, it.house.settings.first_byte_timeout_s),
            )  # fmt: skip
        except NotAChatModel:
            proof.not_chat(model.name)
            return
        proof.asked(stall, began, fault, trio.current_time(), it.progress_at())

    # -- judging -------------------------------------------------------------------------------------------------

    def _judge(self) -> Finding | None:
        it, now, usage = self._it, trio.current_time(), self._it.usage()
        hang_timeout_s = it.house.settings.hang_timeout_s
        stopped = usage.stopped if usage is not None else frozenset()
        seen_at = usage.measured_at if usage is not None else now
        self._stopped_since = (self._stopped_since or seen_at) if stopped else None
        in_kernel = usage.stuck if usage is not None else frozenset()
        self._kernel_since = (self._kernel_since or now) if in_kernel else None
        return gravest(
            [
                judge_stopped(stopped, self._stopped_since, now, hang_timeout_s),
                judge_silence(self._silence, it.progress_at(), now, hang_timeout_s),
                self._misplaced,
                self._proof.unproven,
                judge_stuck(self._expiries, it.idle_since(), now) if it.serving() else None,
                self._proof.suspicion,
                judge_in_kernel(in_kernel, self._kernel_since),
            ]
        )

    def _follow(self, finding: Finding | None) -> str:
        """Do what a finding calls for; return the reason when the process is to be replaced now."""
        it, before, self.finding = self._it, self.finding, finding
        if finding is None:
            if before is not None:
                it.record("worker_trusted", cause=f"no longer: {before.what}")
                self.put_off = False
                self._avoid()
            return ""
        if before is None and finding.step is Step.AVOID:
            it.record("worker_suspect", level="warning", cause=finding.what)
        self._avoid()
        return self._restart(finding, before) if finding.step is Step.RESTART else ""

    def _restart(self, finding: Finding, before: Finding | None) -> str:
        """Have the process replaced as far as the budget goes; return the reason when that is to be now."""
        it, now = self._it, trio.current_time()
        if not it.house.budget.take(it.spec.id, it.house.fleet_size(), now):
            if not self.put_off:
                it.record("restart_put_off", level="warning", cause=finding.what)
            self.put_off = True
            return ""
        if before is None or before.step is not Step.RESTART or self.put_off:
            it.record(
                f"worker_{finding.kind}", level="warning", cause=finding.what, for_s=round(now - finding.since, 1)
            )
        if finding.kind == "misplaced":  # slow, not broken: its answers may end first
            self._placed.restarts += 1
            self._recycling, self._misplaced = True, None
            it.recycle(finding.what)
            return ""
        return finding.what

    def _avoid(self) -> None:
        wanted = self.finding is not None or self._placed.fault is not None
        if self._it.serving() and wanted != self._avoided:
            self._avoided = wanted
            self._it.house.leases.avoid(self._it.spec.id, avoided=wanted)

    def _recycle_if_large(self) -> None:
        it, limit, idle_since = self._it, self._it.house.settings.worker_memory_limit_bytes, self._it.idle_since()
        if limit is None or self.memory is None or idle_since is None or self._recycling:
            return
        if self.memory.over(int(limit)) and trio.current_time() - idle_since >= RECYCLE_IDLE_S:
            self._recycling = True
            size = self.memory.samples[-1].private_bytes
            cause = f"its memory is {size} bytes, over WORKER_MEMORY_LIMIT_BYTES ({int(limit)})"
            it.record("worker_recycled", cause=cause)
            it.recycle(cause)

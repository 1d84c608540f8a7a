"""The ward of the GPUs: takes readings and events, has `gpu_health` judge them, and tells the fleet what follows.

It owns each GPU's verdict. Plain calls only, made by the tasks that read NVML and by the operator: a quarantine
and "no worker is started there" are one step.
"""

from datetime import UTC, datetime
from typing import Protocol

import trio

from supervisor.events import EventLog
from supervisor.gpu import Gpu, GpuReading
from supervisor.gpu_events import GpuEvent
from supervisor.gpu_health import Decision, GpuKeeper, GpuVerdict, Note, Quarantine, Release, RestartWorkers
from supervisor.placement import Placement, find_gpu
from supervisor.wanted import QuarantineFile
from supervisor.xid import xid


class Workers(Protocol):
    """What the ward tells the fleet."""

    def quarantine(self, uuid: str, cause: str, *, drain: bool) -> None:
        """End the GPU's workers."""

    def release(self, uuid: str) -> None:
        """Start them again."""

    def restart_on(self, uuid: str, cause: str) -> None:
        """Restart them."""

    def healed(self, uuid: str) -> None:
        """The GPU answers again."""


class Ward:
    """The newest reading and what it means. `admit` the fleet before the first decision can be needed."""

    def __init__(self, events: EventLog, file: QuarantineFile) -> None:
        self._events = events
        self._file = file
        self._by_operator: frozenset[str] = frozenset()
        self._keeper = GpuKeeper()
        self._fleet: Workers | None = None
        self.reading = GpuReading((), None, None)

    def admit(self, fleet: Workers) -> None:
        """Tell this fleet from now on."""
        self._fleet = fleet

    def restore(self) -> None:
        """Quarantine again what the operator had quarantined before a restart. After the first reading."""
        self._by_operator = self._file.load()
        for uuid in sorted(self._by_operator):
            for decision in self._keeper.quarantine(uuid, trio.current_time(), datetime.now(UTC)):
                self._carry_out(decision, by="operator, before a restart")

    # -- what the readers of NVML say ------------------------------------------------------------------------------

    def publish(self, reading: GpuReading) -> None:
        """Take a new reading of all GPUs."""
        before, self.reading = self.reading, reading
        self._say_stuck(before, reading)
        faulty = {gpu.uuid for gpu in before.gpus if gpu.fault is not None}
        for decision in self._keeper.observe(reading, trio.current_time(), datetime.now(UTC)):
            self._carry_out(decision, by="chimera")
        for gpu in reading.gpus:
            if gpu.fault is None and gpu.uuid in faulty and self._fleet is not None:
                self._fleet.healed(gpu.uuid)

    def happened(self, event: GpuEvent) -> None:
        """Take an event: an Xid, an ECC error, a lost GPU."""
        decisions = self._keeper.event(event, trio.current_time(), datetime.now(UTC))
        if event.xid is not None and decisions:  # the same one again within a minute is counted, not said
            row = xid(event.xid)
            self._events.record(
                "gpu_xid", level="warning", gpu=event.uuid, code=row.code, action=row.action.value, cause=row.meaning
            )
            decisions = [decision for decision in decisions if not isinstance(decision, Note)]
        for decision in decisions:
            self._carry_out(decision, by="chimera")

    def _say_stuck(self, before: GpuReading, now: GpuReading) -> None:
        if now.stuck_s and not before.stuck_s:
            self._events.record("nvml_stuck", level="warning", cause=now.fault)
        elif before.stuck_s and not now.stuck_s:
            self._events.record("nvml_answers", after_s=round(before.stuck_s, 1))

    def _carry_out(self, decision: Decision, *, by: str) -> None:
        match decision:
            case Quarantine(uuid, reason, drain):
                self._events.record("gpu_quarantined", level="error", gpu=uuid, cause=reason, by=by)
                if self._fleet is not None:
                    self._fleet.quarantine(uuid, f"GPU {uuid} is quarantined: {reason}", drain=drain)
            case Release(uuid, reason):
                self._events.record("gpu_released", gpu=uuid, cause=reason, by=by)
                if self._fleet is not None:
                    self._fleet.release(uuid)
            case RestartWorkers(uuid, reason):
                self._events.record("gpu_workers_restarted", level="warning", gpu=uuid, cause=reason)
                if self._fleet is not None:
                    self._fleet.restart_on(uuid, reason)
            case Note(uuid, text, level):
                self._events.record("gpu_noted", level=level, gpu=uuid, cause=text)

    # -- what workers and the operator ask -------------------------------------------------------------------------

    def problem(self, placement: Placement) -> str | None:
        """Return why a worker cannot be placed there now, or None."""
        if placement in self._keeper.quarantined:
            return f"GPU {placement} is quarantined: {self.verdict(placement).reason}"
        for gpu in self.reading.gpus:
            if gpu.uuid == placement:
                return f"GPU {gpu.index}: {gpu.fault}" if gpu.fault else None
        return f"GPU {placement} is not there" + (f": {self.reading.fault}" if self.reading.fault else "")

    @property
    def quarantined(self) -> frozenset[str]:
        """The GPUs that take no worker."""
        return self._keeper.quarantined

    def verdict(self, uuid: str) -> GpuVerdict:
        """What there is to be seen of a GPU."""
        return self._keeper.verdict(uuid, trio.current_time())

    def quarantine(self, gpu: str | int) -> Gpu:
        """Do as the operator says: take a GPU out of use until the operator releases it. Raises UnknownGpu."""
        found = find_gpu(gpu, self.reading.gpus)
        self._remember(self._by_operator | {found.uuid})
        for decision in self._keeper.quarantine(found.uuid, trio.current_time(), datetime.now(UTC)):
            self._carry_out(decision, by="operator")
        return found

    def release(self, gpu: str | int) -> Gpu:
        """Do as the operator says: let a quarantined GPU be used again. Raises UnknownGpu."""
        found = find_gpu(gpu, self.reading.gpus)
        self._remember(self._by_operator - {found.uuid})
        for decision in self._keeper.release(found.uuid):
            self._carry_out(decision, by="operator")
        return found

    def _remember(self, by_operator: frozenset[str]) -> None:
        if by_operator != self._by_operator:
            self._by_operator = by_operator
            self._file.save(by_operator)

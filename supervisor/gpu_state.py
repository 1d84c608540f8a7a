"""What is held against one GPU, and until when. Pure: values in, decisions out; `now` comes with each call.

Times are a `Moment`: monotonic seconds to reckon with, and the date for people.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal, NamedTuple, TypeAlias

from supervisor.gpu_reading import RESETS, Gpu
from supervisor.xid import Action, Xid

# A GPU that fails to answer once may have been asked at a bad moment.
FAULTY_READINGS: Final = 2
# How long a quarantined GPU must answer well, without a new fault, to be released by itself.
RELEASE_AFTER_S: Final = 30.0
# Clocks that drop for a moment are a GPU at work; for longer somebody must look at its cooling or its power.
SLOW_AFTER_S: Final = 60.0
# One fault comes as several Xids: they restart the workers once.
RESTART_APART_S: Final = 10.0
# The same Xid is said again after this long at the earliest; each one is counted.
SAID_AGAIN_AFTER_S: Final = 60.0
XIDS_KEPT: Final = 10


class Moment(NamedTuple):
    """When: `now` in monotonic seconds, `at` as an aware date for people."""

    now: float
    at: datetime


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The GPU takes no worker any more; those there are to end, without waiting for answers unless `drain`."""

    uuid: str
    reason: str
    drain: bool


@dataclass(frozen=True, slots=True)
class Release:
    """The GPU takes workers again."""

    uuid: str
    reason: str


@dataclass(frozen=True, slots=True)
class RestartWorkers:
    """The GPU is well, what its workers hold there is not: they are to start anew, unless they just have."""

    uuid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the operator; `uuid` is "" where it is about no one GPU."""

    uuid: str
    text: str
    level: Literal["info", "warning"]


Decision: TypeAlias = Quarantine | Release | RestartWorkers | Note


@dataclass(frozen=True, slots=True)
class XidSeen:
    """An Xid that was reported; `count` times in a row, the last one `at`."""

    code: int
    meaning: str
    action: Action
    at: datetime
    count: int = 1


@dataclass(slots=True)
class Cause:
    """Why a GPU is quarantined without an operator's order. `away`: since then it has for a time not answered.
    `action`: since then the driver has asked for a reset.
    """

    reason: str
    since: Moment
    drain: bool
    needs_reset: bool = False
    away: bool = False
    action: bool = False
    reset_seen: bool = False

    @property
    def waits_for_reset(self) -> bool:
        """Whether a reset is needed of which there is no sign yet."""
        return self.needs_reset and not self.reset_seen


@dataclass(slots=True)
class GpuState:
    """One GPU, or one MIG device. Its owner reads the fields; they change by the methods alone."""

    uuid: str
    mig_of: str | None = None
    fault: str | None = None
    fault_since: Moment | None = None
    faulty_readings: int = 0
    well_since: float | None = None
    cause: Cause | None = None
    by_operator: Moment | None = None
    # Troubles that it goes on working with: words -> since when.
    slow: str | None = None
    slow_since: Moment | None = None
    slow_said: bool = False
    remap_since: Moment | None = None
    recovery: str | None = None
    recovery_since: Moment | None = None
    accepted: str | None = None  # the recovery action that the operator has decided to live with
    ecc: int | None = None
    xids: deque[XidSeen] = field(default_factory=lambda: deque(maxlen=XIDS_KEPT))
    restarted_at: float | None = None
    said_at: dict[int, float] = field(default_factory=dict)

    def unknown(self) -> None:
        """NVML as a whole tells nothing: this is held against no GPU, and shows none to be well."""
        self.faulty_readings, self.well_since, self.slow_since = 0, None, None
        self.fault, self.fault_since = None, None

    def silent(self, fault: str, when: Moment) -> None:
        """A reading says that the GPU does not answer. Twice in a row it is quarantined, without waiting."""
        if self.fault is None:
            self.fault_since = when
        self.fault, self.well_since, self.slow_since = fault, None, None
        self.faulty_readings += 1
        if self.faulty_readings >= FAULTY_READINGS:
            self.hold(fault, self.fault_since or when, drain=False, away=True)

    def lost(self, fault: str, when: Moment) -> None:
        """The driver reports that the GPU is lost: that is certain at once."""
        self.well_since = None
        self.hold(fault, when, drain=False, away=True)

    def hold(self, reason: str, when: Moment, *, drain: bool, needs_reset: bool = False, away: bool = False) -> None:
        """Quarantine it; what is held against it already stays, a need of a reset is added."""
        if self.cause is None:
            self.cause = Cause(reason, when, drain, needs_reset)
        elif needs_reset:  # whatever was a sign of a reset was one before this
            self.cause = replace(
                self.cause, reason=reason, needs_reset=True, away=False, action=False, reset_seen=False
            )
        self.cause.away |= away

    def answers(self, gpu: Gpu, when: Moment) -> list[Note]:
        """A reading says that the GPU answers. Releases it when that has lasted; returns what is to be said."""
        self.fault, self.fault_since, self.faulty_readings = None, None, 0
        notes = [*self._slowness(gpu, when), *self._repairs(gpu, when)]
        wants_reset = self.recovery in RESETS and self.recovery != self.accepted
        if wants_reset:
            known = self.cause is not None and self.cause.needs_reset
            self.hold(f"the driver asks for: {self.recovery}", when, drain=True, needs_reset=not known)
            self.well_since = None
        elif self.well_since is None:
            self.well_since = when.now
        if self.cause is not None:
            if self.cause.away or (self.cause.action and self.recovery is None):
                self.cause.reset_seen = True
            self.cause.action |= self.recovery is not None
            if not wants_reset and not self.cause.waits_for_reset and self.well_for_s(when.now) >= RELEASE_AFTER_S:
                self.cause = None
        return notes

    def well_for_s(self, now: float) -> float:
        """How long it has answered well, without a new fault."""
        return 0.0 if self.well_since is None else now - self.well_since

    def release(self) -> None:
        """The operator's word: whatever was held against it is forgotten."""
        self.cause, self.by_operator, self.faulty_readings, self.well_since = None, None, 0, None
        self.accepted = self.recovery

    def xid(self, row: Xid, when: Moment) -> Action | None:
        """Take note of an Xid; return what is to be done, None if that has been done or said just now."""
        same = self.xids and self.xids[-1].code == row.code
        count = self.xids.pop().count + 1 if same else 1
        self.xids.append(XidSeen(row.code, row.meaning, row.action, when.at, count))
        if row.action is Action.QUARANTINE:
            self.well_since = None
            self.hold(words(row), when, drain=not row.void and self.fault is None, needs_reset=row.needs_reset)
        elif row.action is Action.RESTART:
            self.well_since = None
            if self.cause is None and self.by_operator is None:
                if self.restarted_at is not None and when.now - self.restarted_at < RESTART_APART_S:
                    return None
                self.restarted_at = when.now
                return Action.RESTART
        said_at = self.said_at.get(row.code)
        if said_at is not None and when.now - said_at < SAID_AGAIN_AFTER_S:
            return None
        self.said_at[row.code] = when.now
        return row.action if row.action is Action.QUARANTINE else Action.NOTE

    def _slowness(self, gpu: Gpu, when: Moment) -> list[Note]:
        if gpu.slowdown is None:
            said, self.slow, self.slow_since, self.slow_said = self.slow_said, None, None, False
            return [Note(self.uuid, "its clocks are no longer slowed down", "info")] if said else []
        self.slow, self.slow_since = gpu.slowdown, self.slow_since or when
        if self.slow_said or when.now - self.slow_since.now <= SLOW_AFTER_S:
            return []
        self.slow_said = True
        text = f"its clocks have been slowed down for {SLOW_AFTER_S:.0f} s ({self.slow}): look at its cooling and power"
        return [Note(self.uuid, text, "warning")]

    def _repairs(self, gpu: Gpu, when: Moment) -> list[Note]:
        notes: list[Note] = []
        if gpu.remap_pending and self.remap_since is None:
            text = "memory rows wait to be remapped: plan a reset of the GPU (or a reboot)"
            notes.append(Note(self.uuid, text, "warning"))
        if not gpu.remap_pending and self.remap_since is not None:
            notes.append(Note(self.uuid, "no memory row waits to be remapped any more", "info"))
        self.remap_since = (self.remap_since or when) if gpu.remap_pending else None
        if gpu.ecc_uncorrected is not None:
            if self.ecc is not None and gpu.ecc_uncorrected > self.ecc:
                text = f"{gpu.ecc_uncorrected - self.ecc} more uncorrected memory errors"
                notes.append(Note(self.uuid, text, "warning"))
            self.ecc = gpu.ecc_uncorrected
        if gpu.recovery_action != self.recovery:
            self.recovery, self.recovery_since, self.accepted = gpu.recovery_action, when, None
            text = (
                f"the driver asks for: {self.recovery}" if self.recovery else "the driver asks for no repair any more"
            )
            notes.append(Note(self.uuid, text, "warning" if self.recovery else "info"))
        return notes


def words(row: Xid) -> str:
    """Return an Xid in words."""
    return f"Xid {row.code}: {row.meaning}"

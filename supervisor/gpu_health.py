"""Which GPUs are quarantined, why, and what happens next: the readings, the driver's events and the operator's
orders, added up. Pure: `now` (monotonic seconds) and `at` (an aware date, for people) come with each call.

- A GPU that fails to answer two readings in a row is quarantined without waiting for its answers; an Xid does what
  its row in supervisor/xid.py says; what the driver itself asks for (NVML's field 230) counts as an Xid would.
- Trouble of NVML as a whole (stuck, driver and library apart, driver gone) stops nothing: workers that run may go on.
- A quarantine ends by itself when the GPU has answered well for a while. If a reset is needed there must be a sign
  of one: the GPU was away and has come back, or the driver has ceased to ask for it. Else the operator decides, and
  what an operator quarantined is released by an operator alone.
- Slow clocks and rows that wait to be remapped are told, and never stop anything.
- A MIG device shares the lot of its GPU: events arrive at the whole GPU only (nvml.h).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from supervisor.gpu_reading import RESETS, Gpu, GpuEvent, GpuReading
from supervisor.gpu_state import (
    FAULTY_READINGS,
    RELEASE_AFTER_S,
    Cause,
    Decision,
    GpuState,
    Moment,
    Note,
    Quarantine,
    Release,
    RestartWorkers,
    XidSeen,
    words,
)
from supervisor.xid import Action, xid

__all__ = [
    "FAULTY_READINGS", "RELEASE_AFTER_S", "Decision", "GpuKeeper", "GpuVerdict", "Note", "Quarantine", "Release",
    "RestartWorkers", "XidSeen",
]  # fmt: skip

LOST: Final = "the driver reports that the GPU is lost"
UNAVAILABLE: Final = "the driver reports that the GPU is unavailable"
BY_OPERATOR: Final = "quarantined by the operator"
RESET_IT: Final = "reset the GPU (nvidia-smi --gpu-reset; stop chimera first if that says the GPU is in use) or reboot"

Verdict = Literal["well", "degraded", "faulty", "quarantined"]


@dataclass(frozen=True, slots=True)
class GpuVerdict:
    """What an operator sees of a GPU. `since` is monotonic, `since_at` the date; None and "" where all is well.

    `next` says in a sentence what happens next, or what a person must do.
    """

    uuid: str
    verdict: Verdict
    reason: str
    since: float | None
    since_at: datetime | None
    next: str
    xids: tuple[XidSeen, ...]


class GpuKeeper:
    """Keeps what is known of each GPU. Each call returns what is to be done, in order; the caller does it."""

    def __init__(self) -> None:
        self._states: dict[str, GpuState] = {}
        self._told: frozenset[str] = frozenset()
        self._nvml: str | None = None  # what is wrong with NVML as a whole, as last said
        self._nvml_since: Moment | None = None
        self._nvml_fault: str | None = None  # the same in the words of the newest reading

    @property
    def quarantined(self) -> frozenset[str]:
        """The UUIDs of the GPUs, and MIG devices, that take no worker."""
        return self._told

    def observe(self, reading: GpuReading, now: float, at: datetime) -> list[Decision]:
        """Take a reading, as it comes each second."""
        when = Moment(now, at)
        decisions: list[Decision] = [*self._nvml_news(reading, when)]
        if reading.fault is not None:
            for state in self._states.values():
                state.unknown()
            return decisions
        for gpu in reading.gpus:
            if not gpu.uuid:
                continue
            state = self._state(gpu.uuid)
            state.mig_of = gpu.mig_of
            if gpu.fault is not None:
                state.silent(gpu.fault, when)
            else:
                decisions += state.answers(gpu, when)
        self._forget_devices(reading.gpus)
        return decisions + self._settle(f"it has answered well for {RELEASE_AFTER_S:.0f} s")

    def event(self, event: GpuEvent, now: float, at: datetime) -> list[Decision]:
        """Take what the driver reported at once."""
        when = Moment(now, at)
        if not event.uuid:
            what = words(xid(event.xid)) if event.xid is not None else event.kind
            return [Note("", f"{what}, of a GPU that NVML did not name", "warning")]
        state = self._state(event.uuid)
        match event.kind:
            case "xid":
                return self._xid(state, event.xid or 0, when)
            case "ecc":  # contained or not: the Xid that comes with it says, and it decides
                return [Note(event.uuid, "uncorrected memory error", "warning")]
            case "recovery":  # to what: the next readings tell
                return [Note(event.uuid, "the driver has changed what it asks for", "info")]
            case "lost":
                state.lost(LOST, when)
            case "unavailable":
                state.lost(UNAVAILABLE, when)
        return self._settle()

    def quarantine(self, uuid: str, now: float, at: datetime) -> list[Decision]:
        """Quarantine a GPU by the operator's order; until the operator releases it."""
        state = self._state(uuid)
        state.by_operator = state.by_operator or Moment(now, at)
        return self._settle()

    def release(self, uuid: str) -> list[Decision]:
        """Release a GPU by the operator's order, whoever quarantined it, and take its faults as known.

        New faults count anew. A MIG device of a quarantined GPU stays with it; a note says so.
        """
        state = self._state(uuid)
        state.release()
        decisions = self._settle("released by the operator")
        if uuid in self._told:
            text = f"it shares the quarantine of its GPU: release {state.mig_of}"
            decisions.append(Note(uuid, text, "warning"))
        return decisions

    def verdict(self, uuid: str, now: float) -> GpuVerdict:
        """Return what there is to be seen of a GPU; of one that is not known, that it is well."""
        state = self._states.get(uuid)
        if state is None:
            return GpuVerdict(uuid, "well", "", None, None, "", ())
        parent = self._states.get(state.mig_of) if state.mig_of else None
        verdict, reason, since, then = self._judged(state, now)
        if parent is not None and verdict != "quarantined":
            above = self._judged(parent, now)
            if _RANK[above[0]] > _RANK[verdict]:
                verdict, reason, since, then = above[0], f"its GPU: {above[1]}", above[2], above[3]
        seen = tuple((parent or state).xids)
        return GpuVerdict(uuid, verdict, reason, since and since.now, since and since.at, then, seen)

    # -- small parts ---------------------------------------------------------------------------------------------

    def _state(self, uuid: str) -> GpuState:
        return self._states.setdefault(uuid, GpuState(uuid))

    def _nvml_news(self, reading: GpuReading, when: Moment) -> list[Note]:
        """Say once that NVML as a whole is in trouble, and once that it is not."""
        self._nvml_fault = reading.fault
        trouble = "stuck" if reading.stuck_s else reading.fault
        if not self._states:  # a machine that never had a GPU: the log of the readings has it, for those who wonder
            trouble = None
        if trouble == self._nvml:
            return []
        self._nvml, self._nvml_since = trouble, when
        if trouble is None:
            return [Note("", "NVML answers again", "info")]
        return [Note("", f"{reading.fault}; nothing is stopped: workers that run go on", "warning")]

    def _forget_devices(self, gpus: tuple[Gpu, ...]) -> None:
        """A MIG device that its owner took away is no more: what was held against it goes too."""
        there = {gpu.uuid for gpu in gpus}
        for uuid, state in list(self._states.items()):
            if state.mig_of in there and uuid not in there and state.by_operator is None:
                del self._states[uuid]

    def _xid(self, state: GpuState, code: int, when: Moment) -> list[Decision]:
        row = xid(code)
        action = state.xid(row, when)
        decisions = self._settle()
        match action:
            case Action.RESTART:
                parts = [other.uuid for other in self._states.values() if other.mig_of == state.uuid]
                there = [uuid for uuid in (state.uuid, *parts) if uuid not in self._told]
                decisions += [RestartWorkers(uuid, words(row)) for uuid in there]
            case Action.NOTE:
                decisions.append(Note(state.uuid, words(row), "warning"))
            case Action.QUARANTINE if not decisions:  # it has been quarantined already
                decisions.append(Note(state.uuid, words(row), "warning"))
        return decisions

    def _settle(self, released: str = "") -> list[Decision]:
        """Compare who is to be quarantined with who was told to be: so neither is ever said twice."""
        held = {uuid: hold for uuid, state in self._states.items() if (hold := self._hold(state)) is not None}
        before, self._told = self._told, frozenset(held)
        gone = [Release(uuid, released or "it is no longer there") for uuid in sorted(before - held.keys())]
        new = [Quarantine(uuid, *held[uuid]) for uuid in held if uuid not in before]
        return [*gone, *new]

    def _hold(self, state: GpuState) -> tuple[str, bool] | None:
        """Why a GPU is quarantined and whether it is drained; None if it is not."""
        if state.cause is not None:
            return state.cause.reason, state.cause.drain
        if state.by_operator is not None:
            return BY_OPERATOR, True
        parent = self._states.get(state.mig_of) if state.mig_of else None
        above = self._hold(parent) if parent is not None else None
        return above and (f"its GPU: {above[0]}", above[1])

    def _judged(self, state: GpuState, now: float) -> tuple[Verdict, str, Moment | None, str]:
        """The verdict on a GPU by itself: the word, why, since when, what next."""
        if state.by_operator is not None:
            also = f"; {state.cause.reason}" if state.cause else ""
            return "quarantined", BY_OPERATOR + also, state.by_operator, "it stays so until the operator releases it"
        if state.cause is not None:
            return "quarantined", state.cause.reason, state.cause.since, _release_of(state, state.cause, now)
        if self._nvml_fault is not None:
            return "faulty", self._nvml_fault, self._nvml_since, "nothing is stopped; NVML is asked again each second"
        if state.fault is not None:
            return "faulty", state.fault, state.fault_since, "it is quarantined if it does not answer the next reading"
        if state.recovery is not None:
            known = " (the operator has released it all the same)" if state.recovery in RESETS else ""
            return (
                "degraded",
                f"the driver asks for: {state.recovery}{known}",
                state.recovery_since,
                _GOES_ON + RESET_IT,
            )
        if state.slow_said:
            return "degraded", f"slowed down: {state.slow}", state.slow_since, _GOES_ON + "look at cooling and power"
        if state.remap_since is not None:
            return "degraded", "memory rows wait to be remapped", state.remap_since, _GOES_ON + "plan to " + RESET_IT
        return "well", "", None, ""


_RANK: Final[dict[Verdict, int]] = {"well": 0, "degraded": 1, "faulty": 2, "quarantined": 3}
_GOES_ON: Final = "it goes on working; "


def _release_of(state: GpuState, cause: Cause, now: float) -> str:
    """Say how a quarantine ends."""
    if cause.waits_for_reset:
        return f"{RESET_IT}: after that it is released by itself; or the operator releases it"
    if state.fault is not None or state.well_since is None:
        return f"it is released by itself when it has answered well for {RELEASE_AFTER_S:.0f} s"
    return f"it is released by itself in {max(0.0, RELEASE_AFTER_S - state.well_for_s(now)):.0f} s if it stays well"

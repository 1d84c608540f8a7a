"""What is known of a running worker, and what that adds up to: trust it, avoid it, restart it. Pure.

The ladder, cheap to dear (design.md; each rung's fact is gathered in `watch`): the state of its processes, probes
over HTTP, what /api/ps says, where it computes (judged in `placed`), the progress of real requests and one token (both
in `proof`). Busy is not dead: while bytes of answers flow, silent probes say nothing. The exit itself needs no judging:
`life` sees it by pidfd.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

# One missed probe may be a moment's load, whatever the clock says: a second one must have been sent and missed.
PROBES_MISSED = 2
# Ollama unloads within moments of the last answer; a model still there a minute past its end is stuck (ollama#7779).
STUCK_AFTER_S = 60.0


class Step(IntEnum):
    """What a finding calls for; a higher one includes the lower ones."""

    TRUST = 0
    AVOID = 1  # give it leases only when nobody else could take them
    RESTART = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, since when (monotonic seconds), and what it calls for. `kind` is one word, for events."""

    kind: str
    what: str
    since: float
    step: Step


class LoadedModel(Protocol):
    """What /api/ps says of the end of one model."""

    @property
    def name(self) -> str:
        """Its full name."""
        ...

    @property
    def expires_at(self) -> datetime | None:
        """When it is to be unloaded."""
        ...


@dataclass(frozen=True, slots=True)
class Silence:
    """Probes in a row without a good answer. A value: every change makes a new one."""

    missed: int = 0
    since: float = 0.0  # when the first of them was sent

    def after(self, *, answered: bool, asked_at: float) -> "Silence":
        """Return what is known after one more probe, which was sent at `asked_at`."""
        if answered:
            return Silence()
        return Silence(self.missed + 1, self.since if self.missed else asked_at)


def judge_silence(silence: Silence, progress_at: float | None, now: float, hang_timeout_s: float) -> Finding | None:
    """Judge probes that went unanswered; `progress_at` is when the last byte of a real answer came."""
    if silence.missed < PROBES_MISSED or (progress_at is not None and progress_at >= silence.since):
        return None
    step = Step.RESTART if now - silence.since >= hang_timeout_s else Step.AVOID
    return Finding("hung", f"it answers no probe, {silence.missed} in a row", silence.since, step)


def judge_stopped(pids: Collection[int], since: float | None, now: float, hang_timeout_s: float) -> Finding | None:
    """Judge processes in state T (proc(5)): somebody stopped them, by SIGSTOP or with a debugger."""
    if not pids or since is None:
        return None
    step = Step.RESTART if now - since >= hang_timeout_s else Step.AVOID
    named = ", ".join(str(pid) for pid in sorted(pids))
    return Finding("hung", f"its process {named} is stopped (SIGSTOP, or a debugger)", since, step)


def judge_in_kernel(pids: Collection[int], since: float | None) -> Finding | None:
    """Judge processes that have been in state D for a while (proc(5)): the driver or a disk holds them.

    Not even SIGKILL ends one before that call returns: a restart would only wait for it.
    """
    if not pids or since is None:
        return None
    named = ", ".join(str(pid) for pid in sorted(pids))
    return Finding("held", f"its process {named} is held in the kernel (a driver or a disk)", since, Step.AVOID)


@dataclass(frozen=True, slots=True)
class Expiry:
    """When one model is to be unloaded: as Ollama wrote it, and on our own clock, which nobody sets."""

    written: datetime
    due: float


def expiries(known: dict[str, Expiry], models: Iterable[LoadedModel], wall: datetime, now: float) -> dict[str, Expiry]:
    """Return when each loaded model is due, on the monotonic clock.

    What is written is turned into monotonic time when it is first seen: a wall clock that jumps later changes
    nothing (Ollama's own timers do not follow it either).
    """
    found: dict[str, Expiry] = {}
    for model in models:
        if model.expires_at is None:
            continue
        before = known.get(model.name)
        if before is not None and before.written == model.expires_at:
            found[model.name] = before
        else:
            due = now + max(0.0, (model.expires_at - wall).total_seconds())
            found[model.name] = Expiry(model.expires_at, due)
    return found


def judge_stuck(found: dict[str, Expiry], idle_since: float | None, now: float) -> Finding | None:
    """Judge models that are still there a minute after their time, though nothing has been under way since."""
    if idle_since is None:
        return None
    for name, expiry in sorted(found.items()):
        since = max(expiry.due, idle_since)
        if now - since > STUCK_AFTER_S:
            return Finding("stuck", f"{name} has been stopping for {now - since:.0f} s", since, Step.RESTART)
    return None


def gravest(findings: Iterable[Finding | None]) -> Finding | None:
    """Return the finding that calls for most; among equals the first."""
    best: Finding | None = None
    for finding in findings:
        if finding is not None and (best is None or finding.step > best.step):
            best = finding
    return best

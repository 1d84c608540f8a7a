"""Whether one process of a worker still gives tokens: what real requests say, and one token asked of it. Pure.

The last and dearest rung of the ladder (`health`). A request that stalls makes a worker suspect; one token, asked of a
model that is loaded, clears it or has it restarted. So it is also asked of a worker that has been idle for long.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from supervisor.health import Finding, Step

# A model that is to stay so long is to stay for ever: Ollama writes "for ever" as a date in centuries.
FOR_EVER = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Stall:
    """A real request that made no progress: `phase` is first byte or stall; `at` is when it was given up."""

    phase: str
    silent_s: float
    at: float

    @property
    def what(self) -> str:
        """Say it for people."""
        where = "gave no first byte" if self.phase == "first byte" else "fell silent within its answer"
        return f"a request {where} for {self.silent_s:.0f} s"


class AskableModel(Protocol):
    """What /api/ps says of one model, as far as it matters here."""

    @property
    def name(self) -> str:
        """Its full name."""
        ...

    @property
    def context_length(self) -> int | None:
        """What it is loaded with, None where Ollama does not tell."""
        ...


Model = TypeVar("Model", bound=AskableModel)


@dataclass(slots=True)
class Proof:
    """What is known of one process. All moments are monotonic seconds; `progress_at` is that of the last byte."""

    stall: Stall | None = None  # one that no byte and no token has cleared
    unproven: Finding | None = None
    _stalls: int = 0  # in a row, with no byte of any answer between them
    _stalled_at: float = -math.inf
    _proven_at: float = -math.inf
    _not_chat: frozenset[str] = frozenset()

    def serves(self, now: float) -> None:
        """The worker has just become ready, which proves it."""
        self._proven_at = now

    def stalled(self, phase: str, silent_s: float, now: float, progress_at: float | None) -> None:
        """A real request made no progress for so long."""
        self._stalls = 1 if _after(progress_at, self._stalled_at) else self._stalls + 1
        self.stall, self._stalled_at = Stall(phase, silent_s, now), now

    def due(self, now: float, progress_at: float | None, idle_since: float | None, after_s: float) -> bool:
        """Say whether a token is to be asked now: after a stall, or when idle and unproven for `after_s` (0: never).

        A byte of any answer after a stall clears it. `idle_since` None: a request is under way.
        """
        if self.stall is not None and _after(progress_at, self.stall.at):
            self.stall = None
        if self.stall is not None:
            return True
        if after_s == 0 or idle_since is None or self.unproven is not None:
            return False
        return now - max(idle_since, self._proven_at) >= after_s

    def candidate(self, loaded: Iterable[Model], required: str | None) -> Model | None:
        """Return a loaded model that one token can be asked of without a reload, or None.

        A reload happens when the context length differs: it is known from /api/ps (newer versions), or the model
        is the required one, which was loaded with Ollama's default.
        """
        for model in sorted(loaded, key=lambda model: model.name != required):
            known = model.context_length is not None or model.name == required
            if known and model.name not in self._not_chat:
                return model
        return None

    def not_chat(self, name: str) -> None:
        """No token can be asked of this model."""
        self._not_chat |= {name}

    def nothing_to_ask(self, stall: Stall | None, began: float) -> None:
        """No model can be asked, `stall` or not. One request may be at fault itself, a second one in a row is not."""
        if stall is not None and self._stalls > 1:
            self.unproven = Finding("hung", stall.what, stall.at, Step.RESTART)
        self._proven_at, self.stall = began, None

    def asked(
        self, stall: Stall | None, began: float, fault: str | None, now: float, progress_at: float | None
    ) -> None:
        """One token was asked at `began`, because of `stall` or none; `fault` says why none came."""
        if fault is None or _after(progress_at, began):
            self._proven_at, self.stall, self.unproven = now, None, None
            return
        cause = f"{stall.what}, and then {fault}" if stall else f"one token, asked when idle: {fault}"
        self.unproven = Finding("hung", cause, began, Step.RESTART)

    @property
    def suspicion(self) -> Finding | None:
        """The stall, while nothing has cleared it."""
        return None if self.stall is None else Finding("stalled", self.stall.what, self.stall.at, Step.AVOID)


def keep_alive_until(expires_at: datetime | None, wall: datetime) -> str | int:
    """Return the keep_alive with which a model stays no longer than it would have stayed anyway."""
    if expires_at is None or expires_at - wall > FOR_EVER:
        return -1
    return f"{max(1, int((expires_at - wall).total_seconds()))}s"


def _after(progress_at: float | None, moment: float) -> bool:
    return progress_at is not None and progress_at > moment

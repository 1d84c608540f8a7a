"""When a worker that fails requests is passed over, and when it is tried again. Pure.

A worker that fails at once looks idle, and would draw one request after the other. After two failures in a row it is
passed over for a second; then one request may try it, and whether that goes well decides. Each time it does not, the
pause doubles. What a client got wrong (4xx) and a client that left are no failures.
"""

from dataclasses import dataclass

FAILURES = 2
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is known of one life of a worker. A value: every change makes a new one.

    `open_until` (the caller's clock) is set while it is passed over, `trial` while one request at a time may try it.
    """

    failures: int = 0
    pause_s: float = 0.0
    open_until: float | None = None
    trial: bool = False

    def failed(self, now: float) -> "Breaker":
        """A request failed there before its first byte."""
        failures = self.failures + 1
        if self.open_until is not None or (failures < FAILURES and not self.trial):
            return Breaker(failures, self.pause_s, self.open_until, self.trial)
        pause_s = min(LONGEST_PAUSE_S, self.pause_s * 2) if self.pause_s else FIRST_PAUSE_S
        return Breaker(failures, pause_s, now + pause_s)

    def answered(self) -> "Breaker":
        """A request got an answer: all is forgotten."""
        return _CLOSED

    def at(self, now: float) -> "Breaker":
        """Return what holds now: with its pause over, one request may try it."""
        if self.open_until is None or now < self.open_until:
            return self
        return Breaker(self.failures, self.pause_s, None, trial=True)


_CLOSED = Breaker()

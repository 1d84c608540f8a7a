"""When a failed worker is started again: exponential back-off with jitter, and never a silent giving-up."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
# A worker that stayed ready this long has shown that the cause is gone: its next failure is a first one again.
HEALTHY_AFTER_S = 60.0
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class BackOff:
    """How often in a row a worker has failed. A value: every change makes a new one."""

    failures: int = 0

    def failed(self, *, ready_for_s: float) -> "BackOff":
        """Return the back-off after one more failure; `ready_for_s` is how long the worker was ready before it."""
        return BackOff(1 if ready_for_s >= HEALTHY_AFTER_S else self.failures + 1)

    def delay_s(self, random_unit: float) -> float:
        """Return how long to wait before the next start.

        0.5, 1, 2, … 60 seconds, each varied by up to 20 % either way, so that workers felled by one cause do
        not return in step. `random_unit` is a number in [0, 1) that the caller draws.
        """
        if self.failures == 0:
            return 0.0
        # the exponent is bounded: 2**10000 is no float
        whole = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.failures - 1, 16))
        return whole * (1 - JITTER + 2 * JITTER * random_unit)

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


# How long a restart by judgement counts as under way when its worker does not become ready again.
BUDGET_HELD_S = 60.0


class RestartBudget:
    """How many workers may be down at one time because somebody judged them sick.

    An exit needs no permission: the worker is down already. A judgement may be wrong for all at once (a machine
    that stood still for a moment, a probe that has a bug): so at most a quarter of the fleet, and always one, is
    restarted by judgement before the first of them is ready again or has had its minute.
    """

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}  # worker -> when

    def take(self, worker_id: str, fleet: int, now: float) -> bool:
        """Ask to restart a worker of a fleet of so many. True: go ahead, and `give_back` when it is ready."""
        self._taken = {name: at for name, at in self._taken.items() if now - at < BUDGET_HELD_S}
        if worker_id not in self._taken and len(self._taken) >= max(1, fleet // 4):
            return False
        self._taken[worker_id] = now
        return True

    def give_back(self, worker_id: str) -> None:
        """The worker is ready again, or gone."""
        self._taken.pop(worker_id, None)

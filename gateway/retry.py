"""Whether a request of which nothing has been sent to its client is tried again, and where not to. Pure."""

from dataclasses import dataclass, field

from gateway.affinity import Life
from gateway.errors import ConnectFailed, FirstByteTimeout, LoadFailed, RunnerDied, Stalled, WorkerLost, WorkerRefused
from gateway.slots import Lease, Ticket

# Each worker is tried once per life; this bounds a request that meets nothing but dying workers.
MOST_ATTEMPTS = 5

# What a worker may do to a request.
Failed = ConnectFailed | WorkerLost | WorkerRefused | LoadFailed | RunnerDied | FirstByteTimeout | Stalled

# The budget of the whole gateway: retries that it may have in hand, that it gets back by the second, and by request.
BUDGET = 500.0
BUDGET_PER_S = 10.0
BUDGET_PER_REQUEST = 0.2


@dataclass(slots=True)
class RetryBudget:
    """How many retries the whole gateway may still make: a fleet that fails is not asked many times as much for it.

    A worker of many slots that dies costs one retry for each of them, which is what BUDGET leaves room for; what goes
    on failing gets a fifth of all requests on top (the idea is Finagle's). `now` is any steady clock.
    """

    left: float = field(default=BUDGET, init=False)
    _at: float | None = field(default=None, init=False)

    def request(self) -> None:
        """A request has come."""
        self.left = min(BUDGET, self.left + BUDGET_PER_REQUEST)

    def allows(self, now: float) -> bool:
        """Say whether there is a retry left."""
        if self._at is not None:
            self.left = min(BUDGET, self.left + (now - self._at) * BUDGET_PER_S)
        self._at = now
        return self.left >= 1

    def spend(self) -> None:
        """A request is tried again."""
        self.left -= 1


@dataclass(slots=True)
class Tries:
    """What one request has met so far. The lives that it is not to meet again are its ticket's `excluded`.

    `late`: it has got no first byte in time once. `again`: the life that it asked once more after a runner's death.
    """

    ticket: Ticket
    attempts: int = 0
    late: bool = False
    again: Life | None = None

    def tried(self, lease: Lease) -> frozenset[Life]:
        """Return the lives tried, with the one of the present lease."""
        return self.ticket.excluded | {lease.life}

    def after_refusal(self, *, others: bool) -> bool:
        """Say whether a worker's word that it cannot (502, 503, 504, no such load) sends the request to another.

        `others` says whether there is a worker in service that it has not tried. Where there is none, the worker's
        own words are the answer.
        """
        return others and self.attempts < MOST_ATTEMPTS

    def after_runners_death(self, *, others: bool) -> bool:
        """Say whether a worker's word that its runner died means another try: elsewhere, or once more there."""
        return (others or self.again is None) and self.attempts < MOST_ATTEMPTS

    def another(self, lease: Lease, fault: Failed, *, others: bool) -> bool:
        """Say whether to try again after a fault, and note where the request is not to go then.

        One that gets no first byte is given to one more worker, not to more: it may be its own fault. One whose
        runner died stays with a worker that is the only one, once: Ollama starts another runner there.
        """
        if isinstance(fault, Stalled) or self.attempts >= MOST_ATTEMPTS:
            return False
        if isinstance(fault, FirstByteTimeout):
            if self.late or not others:
                return False
            self.late = True
        if isinstance(fault, RunnerDied) and not others and self.again is None:
            self.again = lease.life
        else:
            self.ticket.excluded |= {lease.life}
        return True

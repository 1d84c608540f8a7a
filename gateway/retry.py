"""Whether a request of which nothing has been sent to its client is tried again, and where not to. Pure."""

from dataclasses import dataclass

from gateway.affinity import Life
from gateway.dispatch import Lease, Ticket
from gateway.errors import ConnectFailed, FirstByteTimeout, RunnerDied, Stalled, WorkerLost, WorkerRefused

# Each worker is tried once per life; this bounds a request that meets nothing but dying workers.
MOST_ATTEMPTS = 5

# What a worker may do to a request.
Failed = ConnectFailed | WorkerLost | WorkerRefused | RunnerDied | FirstByteTimeout | Stalled


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
        """Say whether a worker's word that it cannot just now (502, 503, 504) sends the request to another.

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

"""Who gets which slot: arrive, release, cancel, worker_ready, worker_lost -> grants. Pure.

No await, no clock, no I/O: in trio a function without `await` cannot be interleaved, so there is no lock. The
invariants, each held by a property test: never more leases on a worker than it has slots; no ticket waits
beside a free slot that it could use; every ticket and lease ends exactly once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import NoWorkerWanted, QueueFull

# One life of a worker's process: a restarted worker is another one, and may be tried again.
Life = tuple[str, int]


@dataclass(slots=True, eq=False)
class Ticket:
    """A request waiting for a slot. `excluded` are the lives of workers that it has tried."""

    model: str | None
    number: int = 0
    excluded: frozenset[Life] = frozenset()
    lease: "Lease | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """A granted slot."""

    worker_id: str
    generation: int
    port: int
    model: str | None

    @property
    def life(self) -> Life:
        """The life of the worker that the slot belongs to."""
        return (self.worker_id, self.generation)


@dataclass(slots=True)
class WorkerSlots:
    """A ready worker as the dispatcher sees it."""

    id: str
    generation: int
    port: int
    slots: int
    loaded: frozenset[str]
    cordoned: bool = False
    leases: set[Lease] = field(default_factory=set)

    @property
    def life(self) -> Life:
        """Which life of the worker this is."""
        return (self.id, self.generation)

    @property
    def free(self) -> bool:
        """Whether it has a slot to give."""
        return not self.cordoned and len(self.leases) < self.slots

    def holds(self, model: str | None) -> bool:
        """Say whether a model is loaded, or being loaded for a lease that it has."""
        return model is None or model in self.loaded or any(lease.model == model for lease in self.leases)


class Dispatcher:
    """Workers, tickets and leases. Every method returns the tickets it granted, each with its `lease` set."""

    def __init__(self, queue_size: int, random_unit: Callable[[], float]) -> None:
        """`random_unit` draws a number in [0, 1): it breaks ties, so that equals share evenly."""
        self.queue_size = queue_size
        self.wanted_workers: int | None = None
        self._random_unit = random_unit
        self._workers: dict[str, WorkerSlots] = {}
        self._waiting: list[Ticket] = []
        self._generation = 0
        self._number = 0

    # -- requests ------------------------------------------------------------------------------------------------

    def arrive(self, ticket: Ticket) -> list[Ticket]:
        """Take a new ticket, or one that is tried again after its worker was lost (it then has a number).

        One that comes again keeps its place before all later ones, and is never refused for a full queue.
        Raises QueueFull, NoWorkerWanted; the ticket is then not taken.
        """
        again = ticket.number > 0
        if self.wanted_workers == 0:
            raise NoWorkerWanted
        if not again:
            self._number += 1
            ticket.number = self._number
        ticket.lease = None  # the one it had is over
        place = len(self._waiting)
        while place and self._waiting[place - 1].number > ticket.number:
            place -= 1
        self._waiting.insert(place, ticket)
        granted = self._grant()
        if ticket not in granted and not again and len(self._waiting) > self.queue_size:
            self._waiting.remove(ticket)
            raise QueueFull
        return granted

    def cancel(self, ticket: Ticket) -> list[Ticket]:
        """Take back a ticket, waiting or granted."""
        if ticket.lease is not None:
            return self.release(ticket.lease)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        return []

    def release(self, lease: Lease) -> list[Ticket]:
        """End a lease. Of a worker that was lost meanwhile there is nothing to give back."""
        worker = self._workers.get(lease.worker_id)
        if worker is None or lease not in worker.leases:
            return []
        worker.leases.remove(lease)
        return self._grant()

    # -- workers -------------------------------------------------------------------------------------------------

    def worker_ready(
        self, worker_id: str, port: int, slots: int, models: frozenset[str], *, cordoned: bool = False
    ) -> list[Ticket]:
        """Take a worker's new life into service."""
        self._generation += 1
        self._workers[worker_id] = WorkerSlots(worker_id, self._generation, port, slots, models, cordoned)
        return self._grant()

    def worker_lost(self, worker_id: str) -> WorkerSlots | None:
        """Forget a worker and its leases. Returns what it was."""
        return self._workers.pop(worker_id, None)

    def cordon(self, worker_id: str) -> None:
        """Give no new lease to a worker."""
        if worker := self._workers.get(worker_id):
            worker.cordoned = True

    def uncordon(self, worker_id: str) -> list[Ticket]:
        """Give leases to a worker again."""
        if worker := self._workers.get(worker_id):
            worker.cordoned = False
        return self._grant()

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Learn what a worker has loaded."""
        if worker := self._workers.get(worker_id):
            worker.loaded = models

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Ticket]:
        """The tickets that wait, oldest first."""
        return self._waiting

    def inflight(self, worker_id: str) -> int:
        """How many leases a worker has."""
        worker = self._workers.get(worker_id)
        return len(worker.leases) if worker else 0

    def ready(self) -> list[WorkerSlots]:
        """The workers in service, cordoned ones too."""
        return list(self._workers.values())

    def untried(self, tried: frozenset[Life]) -> bool:
        """Say whether there is a worker in service that is not among `tried`."""
        return any(not worker.cordoned and worker.life not in tried for worker in self._workers.values())

    # -- the decision --------------------------------------------------------------------------------------------

    def _grant(self) -> list[Ticket]:
        """Give every free slot to the oldest ticket that can use it."""
        granted: list[Ticket] = []
        free = [worker for worker in self._workers.values() if worker.free]
        for ticket in list(self._waiting):
            if not free:
                break
            fitting = [worker for worker in free if worker.life not in ticket.excluded]
            if not fitting:
                continue
            worker = min(fitting, key=lambda worker: self._answers_late(worker, ticket.model))
            ticket.lease = Lease(worker.id, worker.generation, worker.port, ticket.model)
            worker.leases.add(ticket.lease)
            self._waiting.remove(ticket)
            granted.append(ticket)
            if not worker.free:
                free.remove(worker)
        return granted

    def _answers_late(self, worker: WorkerSlots, model: str | None) -> tuple[bool, float, float]:
        """Rank a worker with a free slot: the model loaded, then the emptier one, then at random among equals."""
        return (not worker.holds(model), len(worker.leases) / worker.slots, self._random_unit())

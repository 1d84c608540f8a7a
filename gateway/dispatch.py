"""Who gets which slot: arrive, release, cancel, worker_ready, worker_lost -> grants. Pure.

No await, no clock, no I/O: in trio a function without `await` cannot be interleaved, so there is no lock. The
invariants, each held by a property test: never more leases on a worker than it has slots; no ticket waits
beside a free slot that it could use; an avoided worker gets a lease only when no well worker could ever take that
ticket; every ticket and lease ends exactly once.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.affinity import NO_PREFIX, Affinity, Kept, Life, Prefix
from gateway.breaker import Breaker
from gateway.errors import NoWorkerWanted, QueueFull
from gateway.fair import Turns


@dataclass(slots=True, eq=False)
class Ticket:
    """A request waiting for a slot. `excluded` are the lives of workers that it has tried.

    `caller` is whom it is to be fair to, `prefix` how its prompt begins; they stand by `turn`, then by `number`.
    """

    model: str | None
    caller: str = ""
    prefix: Prefix = NO_PREFIX
    number: int = 0
    turn: float = 0.0
    excluded: frozenset[Life] = frozenset()
    lease: "Lease | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """A granted slot. `worker` is the life that it belongs to, also when a newer one has the same id by now."""

    worker: "WorkerSlots"
    model: str | None
    kept: Kept

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self.worker.id

    @property
    def port(self) -> int:
        """Where the worker listens."""
        return self.worker.port

    @property
    def life(self) -> Life:
        """The life of the worker that the slot belongs to."""
        return self.worker.life


@dataclass(slots=True, eq=False)
class WorkerSlots:
    """One life of a ready worker as the dispatcher sees it.

    The times are trio's clock, written by who has one: `ready_at` names the life to the supervisor, `progress_at` is
    when the last byte of an answer came, `idle_since` when its last lease ended (or it became ready).
    """

    id: str
    generation: int
    port: int
    slots: int
    loaded: frozenset[str]
    cordoned: bool = False
    avoided: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    leases: set[Lease] = field(default_factory=set)
    ready_at: float = 0.0
    progress_at: float | None = None
    idle_since: float = 0.0

    @property
    def life(self) -> Life:
        """Which life of the worker this is."""
        return (self.id, self.generation)

    @property
    def free(self) -> bool:
        """Whether it has a slot to give. While it is on trial, one request at a time may try it."""
        return not self.cordoned and len(self.leases) < (1 if self.breaker.trial else self.slots)

    @property
    def shunned(self) -> bool:
        """Whether it is passed over while anybody else could do: by the supervisor's word, or for what it failed."""
        return self.avoided or self.breaker.open_until is not None

    @property
    def well(self) -> bool:
        """Whether tickets may wait for it."""
        return not self.cordoned and not self.shunned

    def holds(self, model: str | None) -> bool:
        """Say whether a model is loaded, or being loaded for a lease that it has."""
        return model is None or model in self.loaded or any(lease.model == model for lease in self.leases)

    def learn(self, model: str | None, *, loaded: bool) -> None:
        """Take from an answer whether a model is loaded now."""
        if model is not None and (model in self.loaded) is not loaded:
            self.loaded = self.loaded ^ {model}


class Dispatcher:
    """Workers, tickets and leases. Every method returns the tickets it granted, each with its `lease` set."""

    def __init__(self, queue_size: int, random_unit: Callable[[], float]) -> None:
        """`random_unit` draws a number in [0, 1): it breaks ties, so that equals share evenly."""
        self.queue_size = queue_size
        self.wanted_workers: int | None = None
        self._random_unit = random_unit
        self._workers: dict[str, WorkerSlots] = {}
        self._waiting: list[Ticket] = []
        self._turns = Turns()
        self._affinity = Affinity()
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
            ticket.number, ticket.turn = self._number, self._turns.turn_of(ticket.caller)
        ticket.lease = None  # the one it had is over
        insort(self._waiting, ticket, key=_place)
        granted = self._grant()
        if ticket not in granted and not again and len(self._waiting) > self.queue_size:
            self._waiting.remove(ticket)
            self._turns.refused(ticket.caller)
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
        self._affinity.ended(lease.kept)
        worker = self._workers.get(lease.worker_id)
        if worker is None or lease not in worker.leases:
            return []
        worker.leases.remove(lease)
        return self._grant()

    # -- workers -------------------------------------------------------------------------------------------------

    def worker_ready(
        self, worker_id: str, port: int, slots: int, models: frozenset[str], *, cordoned: bool = False, now: float = 0.0
    ) -> list[Ticket]:
        """Take a worker's new life into service; nobody avoids it yet. `now` is when it became ready."""
        self._forget(worker_id)
        self._generation += 1
        self._workers[worker_id] = WorkerSlots(
            worker_id, self._generation, port, slots, models, cordoned, ready_at=now, idle_since=now
        )
        return self._grant()

    def worker_lost(self, worker_id: str) -> list[Ticket]:
        """Forget a worker and its leases. With the last well one gone, avoided ones serve."""
        self._forget(worker_id)
        return self._grant()

    def _forget(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._affinity.forget(worker.life)

    def cordon(self, worker_id: str) -> list[Ticket]:
        """Give no new lease to a worker. With the last well one cordoned, avoided ones serve."""
        if worker := self._workers.get(worker_id):
            worker.cordoned = True
        return self._grant()

    def uncordon(self, worker_id: str) -> list[Ticket]:
        """Give leases to a worker again."""
        if worker := self._workers.get(worker_id):
            worker.cordoned = False
        return self._grant()

    def avoid(self, worker_id: str, *, avoided: bool) -> list[Ticket]:
        """Keep tickets away from a worker, or end that: they wait for a well one as long as there is any.

        Well means in service, not cordoned, not avoided, and not tried by the ticket before. A fleet in which all
        are avoided serves as if none were.
        """
        if worker := self._workers.get(worker_id):
            worker.avoided = avoided
        return self._grant()

    def failed(self, lease: Lease, now: float) -> list[Ticket]:
        """A request failed at a worker before its first byte; after some it is passed over for a while."""
        lease.worker.breaker = lease.worker.breaker.failed(now)
        return self._grant()  # with the last well one passed over, all serve

    def answered(self, lease: Lease) -> list[Ticket]:
        """A worker has begun to answer."""
        if lease.worker.breaker.failures == 0:  # nearly every time
            return []
        lease.worker.breaker = lease.worker.breaker.answered()
        return self._grant()

    def forgive(self, now: float) -> list[Ticket]:
        """Let workers be tried whose pause is over."""
        for worker in self._workers.values():
            worker.breaker = worker.breaker.at(now)
        return self._grant()

    def next_trial_at(self) -> float | None:
        """Return when the next of the workers that are passed over may be tried, None when none is."""
        pauses = [at for worker in self._workers.values() if (at := worker.breaker.open_until) is not None]
        return min(pauses, default=None)

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Learn what a worker has loaded."""
        if worker := self._workers.get(worker_id):
            worker.loaded = models
            self._affinity.holds_only(worker.life, models)

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Ticket]:
        """The tickets that wait, oldest first."""
        return self._waiting

    def inflight(self, worker_id: str) -> int:
        """How many leases a worker has."""
        worker = self._workers.get(worker_id)
        return len(worker.leases) if worker else 0

    def worker(self, worker_id: str) -> WorkerSlots | None:
        """Return the life of a worker that is in service."""
        return self._workers.get(worker_id)

    def ready(self) -> list[WorkerSlots]:
        """The workers in service, cordoned ones too."""
        return list(self._workers.values())

    def untried(self, tried: frozenset[Life]) -> bool:
        """Say whether there is a worker in service that is not among `tried`."""
        return any(not worker.cordoned and worker.life not in tried for worker in self._workers.values())

    # -- the decision --------------------------------------------------------------------------------------------

    def _grant(self) -> list[Ticket]:
        """Give every free slot to the ticket whose turn it is among those that can use it."""
        granted: list[Ticket] = []
        free = [worker for worker in self._workers.values() if worker.free] if self._waiting else []
        well = [worker for worker in self._workers.values() if worker.well] if free else []
        for ticket in list(self._waiting):
            if not free:
                break
            fitting = _fitting(ticket, free, well)
            if not fitting:
                continue
            worker = self._soonest(ticket, fitting)
            kept = self._affinity.given(worker.life, ticket.model, worker.slots, ticket.prefix)
            ticket.lease = Lease(worker, ticket.model, kept)
            worker.leases.add(ticket.lease)
            self._waiting.remove(ticket)
            self._turns.served(ticket.turn, waiting=bool(self._waiting))
            granted.append(ticket)
            if not worker.free:
                free.remove(worker)
        return granted

    def _soonest(self, ticket: Ticket, fitting: list[WorkerSlots]) -> WorkerSlots:
        """Return the worker that will answer soonest, of those with a free slot.

        One that has the model loaded; then one that holds the longest beginning of the prompt; then the emptier one;
        then at random among equals.
        """
        if len(fitting) == 1:
            return fitting[0]
        warm = self._affinity.holders(ticket.prefix, {worker.life for worker in fitting}) if ticket.prefix.chain else ()
        return min(
            fitting,
            key=lambda worker: (
                not worker.holds(ticket.model),
                worker.life not in warm,
                len(worker.leases) / worker.slots,
                self._random_unit(),
            ),
        )


def _place(ticket: Ticket) -> tuple[float, int]:
    """Return where a ticket stands among those that wait."""
    return (ticket.turn, ticket.number)


def _fitting(ticket: Ticket, free: list[WorkerSlots], well: list[WorkerSlots]) -> list[WorkerSlots]:
    """Return the workers of `free` that a ticket may be given to; `well` are the well ones, free or not."""
    if not ticket.excluded:  # nearly every ticket
        return [worker for worker in free if not worker.shunned] if well else free
    if any(worker.life not in ticket.excluded for worker in well):
        return [worker for worker in free if not worker.shunned and worker.life not in ticket.excluded]
    return [worker for worker in free if worker.life not in ticket.excluded]

"""Who gets which slot: arrive, release, cancel, worker_ready, worker_lost -> grants. Pure.

No await, no clock, no I/O: in trio a function without `await` cannot be interleaved, so there is no lock. The
invariants, each held by a property test: never more leases on a worker than it has slots; no ticket waits
beside a free slot that it could use; a worker that is passed over gets a lease only when no well worker could ever
take that ticket; every ticket and lease ends exactly once.

So a ticket that comes can only be given a slot itself, and a slot that becomes free can only be given to one that
waits; the rest of the world is looked at when a worker comes, goes or changes.
"""

from collections.abc import Callable, Sequence
from functools import partial

from gateway.affinity import Affinity, Life
from gateway.errors import NoWorkerWanted, QueueFull
from gateway.fair import Turns
from gateway.line import Line
from gateway.pace import CLEARLY, Paces
from gateway.slots import Lease, Ticket, WorkerSlots, any_well

# How often a ticket may be passed by others that stand behind it, per slot of the worker that they are given to: by
# one with a priority, or by one whose model is loaded there while its own is not. More would be starvation.
PASSES_PER_SLOT = 4
# How long a worker is passed over for a model that it could not load.
COOL_S = 30.0
# All bodies that wait together.
QUEUE_BYTES = 1024**3


class Dispatcher:
    """Workers, tickets and leases. Every method returns the tickets whose waiting it ended.

    Each of them has its `lease`; but one that `arrive` put out of a full queue is `displaced`.
    """

    def __init__(self, queue_size: int, random_unit: Callable[[], float], queue_bytes: int = QUEUE_BYTES) -> None:
        """`random_unit` draws a number in [0, 1): it breaks ties, so that equals share evenly.

        The queue holds at most `queue_size` tickets, and `queue_bytes` of their bodies.
        """
        self.queue_size = queue_size
        self.queue_bytes = queue_bytes
        self.wanted_workers: int | None = None
        self._random_unit = random_unit
        self._workers: dict[str, WorkerSlots] = {}
        self._free: set[WorkerSlots] = set()  # those that have a slot to give
        self._paused: dict[str, WorkerSlots] = {}  # those that are passed over until a time, mostly none
        self._line = Line()
        self._turns = Turns()
        self._affinity = Affinity()
        self._paces = Paces()
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
        if fitting := self._fitting(ticket):
            self._give(ticket, self._soonest(ticket, fitting))
            self._turns.served(ticket.turn, waiting=bool(self._line))
            return [ticket]
        displaced = [] if again else self._room_for(ticket)
        self._line.add(ticket)
        return displaced

    def _room_for(self, ticket: Ticket) -> list[Ticket]:
        """Return the tickets that had to leave the queue for this one, mostly none. Raises QueueFull."""
        displaced: list[Ticket] = []
        while (full := len(self._line) >= self.queue_size) or self._line.bytes + ticket.body_bytes > self.queue_bytes:
            leaves = self._line.displaceable_by(ticket, bytes_short=not full)
            if leaves is None:
                self._turns.refused(ticket.caller)
                for one in displaced:  # it would not have been enough
                    one.displaced = False
                    self._line.add(one)
                ticket.number = 0
                raise QueueFull
            self._line.remove(leaves)
            leaves.displaced = True
            displaced.append(leaves)
        for one in displaced:
            self._turns.refused(one.caller)
        return displaced

    def cancel(self, ticket: Ticket) -> list[Ticket]:
        """Take back a ticket, waiting or granted."""
        if ticket.lease is not None:
            return self.release(ticket.lease)
        if ticket.waiting:
            self._line.remove(ticket)
            if not ticket.excluded:  # else its turn has come once
                self._turns.refused(ticket.caller)
            if not self._line:
                self._turns.nobody_waits()
        return []

    def release(self, lease: Lease) -> list[Ticket]:
        """End a lease. Of a worker that was lost meanwhile there is nothing to give back."""
        self._affinity.ended(lease.kept)
        worker = self._workers.get(lease.worker_id)
        if worker is None or lease not in worker.leases:
            return []
        worker.leases.remove(lease)
        return self._grant([worker])

    # -- workers -------------------------------------------------------------------------------------------------

    def worker_ready(
        self, worker_id: str, port: int, slots: int, models: frozenset[str], *, cordoned: bool = False, now: float = 0.0
    ) -> list[Ticket]:
        """Take a worker's new life into service; nobody avoids it yet. `now` is when it became ready."""
        self._forget(worker_id)
        self._generation += 1
        self._workers[worker_id] = WorkerSlots(
            worker_id, self._generation, port, slots, models, cordoned, polled=models, ready_at=now, idle_since=now
        )
        return self._grant()

    def worker_lost(self, worker_id: str) -> list[Ticket]:
        """Forget a worker and its leases. With the last well one gone, avoided ones serve."""
        self._forget(worker_id)
        return self._grant()

    def _forget(self, worker_id: str) -> None:
        self._paused.pop(worker_id, None)
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._free.discard(worker)
            self._affinity.forget(worker.life)
            self._paces.forget(worker.life)

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

        Well means in service, not cordoned, not passed over, and not tried by the ticket before. A fleet in which all
        are avoided serves as if none were.
        """
        if worker := self._workers.get(worker_id):
            worker.avoided = avoided
        return self._grant()

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Learn what a worker has loaded."""
        if worker := self._workers.get(worker_id):
            worker.told(models)
            self._affinity.holds_only(worker.life, models)

    # -- what answers tell of a worker ---------------------------------------------------------------------------

    def failed(self, lease: Lease, now: float) -> list[Ticket]:
        """A request failed at a worker before its first byte; after some it is passed over for a while."""
        lease.worker.breaker = lease.worker.breaker.failed(now)
        self._note_paused(lease.worker)
        return self._grant()  # with the last well one passed over, all serve

    def cool(self, worker: WorkerSlots, model: str | None, now: float) -> list[Ticket]:
        """A worker could not load a model: it is passed over for that model, and for no other, for COOL_S."""
        worker.cooled[model] = now + COOL_S
        self._note_paused(worker)
        worker.learn(model, loaded=False)
        return self._grant()

    def answered(self, lease: Lease) -> list[Ticket]:
        """A worker has begun to answer."""
        worker = lease.worker
        if worker.breaker.failures == 0 and not worker.cooled:  # nearly every time
            return []
        worker.breaker = worker.breaker.answered()
        worker.cooled.pop(lease.model, None)
        self._note_paused(worker)
        return self._grant()

    def took(self, lease: Lease, seconds_per_token: float) -> None:
        """An answer of a worker took so long for each of its tokens."""
        if self._workers.get(lease.worker_id) is lease.worker:
            self._paces.took(lease.life, lease.model, seconds_per_token)

    def forgive(self, now: float) -> list[Ticket]:
        """Let workers be tried whose pause is over."""
        for worker in list(self._paused.values()):
            worker.breaker = worker.breaker.at(now)
            for model in [model for model, until in worker.cooled.items() if until <= now]:
                del worker.cooled[model]
            self._note_paused(worker)
        return self._grant()

    def _note_paused(self, worker: WorkerSlots) -> None:
        if self._workers.get(worker.id) is not worker:
            return  # it is gone
        if worker.breaker.open_until is not None or worker.cooled:
            self._paused[worker.id] = worker
        else:
            self._paused.pop(worker.id, None)

    def next_trial_at(self) -> float | None:
        """Return when the next of the workers that are passed over may be tried, None when none is."""
        if not self._paused:  # nearly every time
            return None
        times = [at for worker in self._paused.values() for at in (worker.breaker.open_until, *worker.cooled.values())]
        return min(at for at in times if at is not None)

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Ticket]:
        """The tickets that wait, in the order of their turns."""
        return self._line.tickets

    @property
    def waiting_bytes(self) -> int:
        """What the bodies of the tickets that wait take."""
        return self._line.bytes

    def position(self, ticket: Ticket) -> int:
        """Return where a waiting ticket stands, 1 for the next one; those that may pass it stand before it."""
        return self._line.position(ticket)

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

    def _grant(self, changed: Sequence[WorkerSlots] | None = None) -> list[Ticket]:
        """Give the free slots of `changed` workers (None: of all) to those whose turn it is, if they can use them."""
        granted: list[Ticket] = []
        may_have = list(self._workers.values()) if changed is None else changed
        for worker in may_have:
            self._note_free(worker)
        if not self._line:
            return granted
        for worker in may_have:
            while worker.free and (ticket := self._next_for(worker)) is not None:
                best = worker if changed is not None else self._soonest(ticket, self._fitting(ticket))
                self._line.remove(ticket)
                self._give(ticket, best)
                granted.append(ticket)
        if granted and not self._line:
            self._turns.nobody_waits()
        return granted

    def _next_for(self, worker: WorkerSlots) -> Ticket | None:
        """Return the ticket that a worker's free slot goes to: whose turn it is, but that three others may pass it.

        One with a higher priority; one whose model is loaded there while its own is not: else two models that do not
        fit beside each other would push each other out with every request; and where the worker is slower than
        others, one that says that it is short: a long one begun there last is what all would wait for.
        """
        if worker.shunned and not self._line.tried_again and any(map(_plainly_well, self._workers.values())):
            return None  # all wait for that other one, however many they are
        fits = partial(self._may_use, worker)
        head = self._line.first(fits)
        if head is None:
            return None
        chosen = head
        most = PASSES_PER_SLOT * worker.slots
        if head.passed < most:
            chosen = self._line.most_urgent(head, fits)
        if chosen.passed < most and worker.rank(chosen) == 2:
            least = chosen.priority
            warm = self._line.first_for(
                {*worker.held(), None}, lambda one: one.priority >= least and worker.suits(one) and fits(one)
            )
            if warm is not None:
                if chosen is not head:
                    chosen.passed += 1
                chosen = warm
        if chosen.passed < most and worker.life in self._paces.slower(chosen.model):
            short = self._line.shortest(chosen, lambda one: worker.rank(one) <= worker.rank(chosen) and fits(one))
            if short is not chosen is not head:
                chosen.passed += 1
            chosen = short
        if chosen is head:
            self._turns.served(head.turn, waiting=True)
        else:
            head.passed += 1
        return chosen

    def _may_use(self, worker: WorkerSlots, ticket: Ticket) -> bool:
        """Say whether a ticket may have a slot of a worker, be there one or not; the worker is not cordoned."""
        if ticket.excluded and worker.life in ticket.excluded:
            return False
        return not worker.shuns(ticket.model) or not any_well(self._workers.values(), ticket)

    def _fitting(self, ticket: Ticket) -> list[WorkerSlots]:
        """Return the workers with a slot that a ticket may have now."""
        if not self._free:  # every time while tickets wait: to look at each worker would take most of a decision
            return []
        model, tried, workers = ticket.model, ticket.excluded, self._workers.values()
        # while one of them is well, nobody is given a slot of one that is passed over
        well = [worker for worker in workers if worker.free and not worker.shuns(model) and worker.life not in tried]
        return well or [worker for worker in workers if worker.free and self._may_use(worker, ticket)]

    def _give(self, ticket: Ticket, worker: WorkerSlots) -> None:
        kept = self._affinity.given(worker.life, ticket.model, worker.slots, ticket.prefix)
        ticket.lease = Lease(worker, ticket.model, kept)
        worker.take(ticket.lease, ticket.load_options)
        self._note_free(worker)

    def _note_free(self, worker: WorkerSlots) -> None:
        if worker.free:
            self._free.add(worker)
        else:
            self._free.discard(worker)

    def _soonest(self, ticket: Ticket, fitting: list[WorkerSlots]) -> WorkerSlots:
        """Return the worker that will answer soonest, of those with a free slot.

        One that has the model loaded; then one that holds the longest beginning of the prompt; then the emptier one,
        a slow one counting as fuller than it is; then at random among equals.
        """
        if len(fitting) == 1:
            return fitting[0]
        warm = self._affinity.holders(ticket.prefix, {worker.life for worker in fitting}) if ticket.prefix.chain else ()
        slower, random_unit = self._paces.slower(ticket.model), self._random_unit

        def cost(worker: WorkerSlots) -> tuple[int, bool, float, float]:
            slowness = slower.get(worker.life, 1.0) if slower else 1.0
            if slowness < CLEARLY:
                fullness = len(worker.leases) / worker.slots
            else:  # even idle, as if so many times its next lease were there
                fullness = (len(worker.leases) + 1) / worker.slots * slowness
            return worker.rank(ticket), worker.life not in warm, fullness, random_unit()

        return min(fitting, key=cost)


def _plainly_well(worker: WorkerSlots) -> bool:
    return not worker.cordoned and not worker.shunned and not worker.cooled

"""Waiting for a slot. The only file that waits on the dispatcher, and where the supervisor's word reaches it."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from gateway.affinity import NO_PREFIX, Prefix
from gateway.dispatch import QUEUE_BYTES, Dispatcher
from gateway.errors import NoWorkerWanted, QueueFull, QueueTimeout, ShuttingDown
from gateway.slots import Lease, Ticket, WorkerSlots

log = structlog.get_logger("gateway")

# How often at most a client that wants to know is told of its place in the queue.
NOTICE_EVERY_S = 1.0
# What one lease changes of the mean that waits are estimated by.
SHARE_OF_NEWEST = 0.1

# Told a ticket's position (1 is next) and how long it may still take in seconds, None when nothing can be said.
Notice = Callable[[int, float | None], Awaitable[None]]


class Waiting(Ticket, eq=False):
    """A ticket somebody waits for.

    `since` is trio's clock at its first arrival, `waited_s` what it has spent in the queue, over all its arrivals.
    `granted` is set with a lease, or with the word that there will be none; None where nobody had to wait for it.
    `notice` hears of its place.
    """

    since: float = 0.0
    waited_s: float = 0.0
    granted_at: float = 0.0
    request_id: str = ""
    notice: Notice | None = None
    granted: trio.Event | None = None
    turned_away: NoWorkerWanted | ShuttingDown | QueueFull | None = None


class Admission:
    """Gives leases, one `with` block each. To the supervisor it is the `Leases` that it tells about workers."""

    def __init__(
        self,
        queue_size: int,
        queue_timeout_s: float,
        random_unit: Callable[[], float],
        port_lost: Callable[[int], None] = lambda _: None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """`port_lost` is told the port of each worker that is lost: connections to it are of no more use.

        At most `queue_size` tickets wait, and `queue_bytes` of their bodies.
        """
        self._port_lost = port_lost
        self.queue_timeout_s = queue_timeout_s
        self.dispatcher = Dispatcher(queue_size, random_unit, queue_bytes)
        self._mean_lease_s: float | None = None
        self._tickets: set[Waiting] = set()
        self._shut = False
        self._drained: dict[str, trio.Event] = {}

    # -- for the exchange ----------------------------------------------------------------------------------------

    def ticket(
        self, model: str | None, caller: str = "", prefix: Prefix = NO_PREFIX, *, load_options: str = "",
        priority: int = 0, body_bytes: int = 0, most_tokens: int | None = None, request_id: str = "",
        notice: Notice | None = None,
    ) -> Waiting:  # fmt: skip
        """Make the ticket of one request; it may be given to `lease` again, after a worker was lost.

        Callers that wait take turns; `prefix` is how the prompt begins, for the worker that still holds it.
        """
        return Waiting(
            model, caller, prefix, load_options, priority, body_bytes, most_tokens,
            since=trio.current_time(), request_id=request_id, notice=notice,
        )  # fmt: skip

    def lease(self, ticket: Waiting) -> "_Hold":
        """Wait for a slot and hold it for the block (`async with`).

        Raises QueueFull, NoWorkerWanted and ShuttingDown at once or while it waits (another caller had less in the
        full queue), QueueTimeout when the ticket has waited QUEUE_TIMEOUT_S in all; what it spent at a worker that
        was lost is no waiting.
        Cancellation, waiting or holding, gives the place back at once.
        """
        return _Hold(self, ticket)

    async def take(self, ticket: Waiting) -> Lease:
        """Wait for a slot, which `leave` gives back; else as `lease`."""
        self._arrive(ticket)
        if ticket.lease is not None:
            return ticket.lease
        try:
            ticket.granted = trio.Event()
            return await self._wait(ticket, ticket.granted)
        except BaseException:
            self.leave(ticket)
            raise

    def _arrive(self, ticket: Waiting) -> None:
        if self._shut:
            raise ShuttingDown
        ticket.granted = None
        self._forgive()
        self._wake(self.dispatcher.arrive(ticket))
        self._tickets.add(ticket)

    def leave(self, ticket: Waiting) -> None:
        """Give back what a ticket has: a slot, or its place in the queue."""
        self._tickets.discard(ticket)
        self._wake(self.dispatcher.cancel(ticket))
        if ticket.lease is not None:
            now = trio.current_time()
            mean, last = self._mean_lease_s, now - ticket.granted_at
            self._mean_lease_s = last if mean is None else mean + (last - mean) * SHARE_OF_NEWEST
            if not ticket.lease.worker.leases:
                ticket.lease.worker.idle_since = now
            self._note_drained(ticket.lease.worker_id)

    async def _wait(self, ticket: Waiting, granted: trio.Event) -> Lease:
        began = trio.current_time()
        deadline = began + self.queue_timeout_s - ticket.waited_s
        told: tuple[int, float | None] | None = None
        while not granted.is_set() and trio.current_time() < deadline:
            if ticket.notice is not None and (place := self.place(ticket)) != told:
                told = place
                await ticket.notice(*place)
            look_again_at = self.dispatcher.next_trial_at() or deadline
            if ticket.notice is not None:
                look_again_at = min(look_again_at, trio.current_time() + NOTICE_EVERY_S)
            with trio.CancelScope(deadline=min(look_again_at, deadline)):
                await granted.wait()
            self._forgive()
        ticket.waited_s += trio.current_time() - began
        if ticket.lease is not None:
            return ticket.lease
        if ticket.turned_away is not None:
            raise ticket.turned_away
        raise QueueTimeout(ticket.waited_s, ready_workers=len(self.ready()))

    def failed(self, lease: Lease) -> None:
        """A request failed at its worker before the first byte."""
        before = lease.worker.breaker
        self._wake(self.dispatcher.failed(lease, trio.current_time()))
        after = lease.worker.breaker
        if after.open_until is not None and before.open_until is None:
            log.warning(
                "worker passed over for a while: it fails requests", worker=lease.worker_id, for_s=after.pause_s
            )

    def cool(self, worker: WorkerSlots, model: str | None) -> None:
        """A worker could not load a model."""
        self._wake(self.dispatcher.cool(worker, model, trio.current_time()))
        log.warning("worker passed over for a model that it could not load", worker=worker.id, model=model)

    def answered(self, lease: Lease) -> None:
        """A worker has begun to answer."""
        self._wake(self.dispatcher.answered(lease))

    def took(self, lease: Lease, seconds_per_token: float) -> None:
        """An answer of a worker took so long for each of its tokens."""
        self.dispatcher.took(lease, seconds_per_token)

    def _forgive(self) -> None:
        trial_at = self.dispatcher.next_trial_at()
        if trial_at is not None and trio.current_time() >= trial_at:
            self._wake(self.dispatcher.forgive(trio.current_time()))

    def _wake(self, ended: list[Ticket]) -> None:
        for ticket in ended:
            assert isinstance(ticket, Waiting)  # noqa: S101 - nobody else makes tickets
            ticket.granted_at = trio.current_time()
            if ticket.displaced:
                ticket.turned_away = QueueFull()
            if ticket.granted is not None:
                ticket.granted.set()

    # -- for the supervisor (its protocol `Leases`) --------------------------------------------------------------

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        """Take a worker's new process into service."""
        now = trio.current_time()
        self._wake(self.dispatcher.worker_ready(worker_id, port, slots, models, cordoned=cordoned, now=now))

    def worker_lost(self, worker_id: str) -> None:
        """Give no more leases to a worker; those it has are void."""
        worker = self.dispatcher.worker(worker_id)
        self._wake(self.dispatcher.worker_lost(worker_id))
        self._note_drained(worker_id)
        if worker is not None:
            self._port_lost(worker.port)

    def cordon(self, worker_id: str) -> None:
        """Give no new lease to a worker."""
        self._wake(self.dispatcher.cordon(worker_id))

    def uncordon(self, worker_id: str) -> None:
        """Give leases to a worker again."""
        self._wake(self.dispatcher.uncordon(worker_id))

    def avoid(self, worker_id: str, *, avoided: bool) -> None:
        """While avoided, a worker gets a lease only when no well one could ever take it. A new life is not avoided."""
        self._wake(self.dispatcher.avoid(worker_id, avoided=avoided))

    def progress_at(self, worker_id: str) -> float | None:
        """When the last byte came from this life of a worker, for any lease (trio's clock); None if none ever did."""
        worker = self.dispatcher.worker(worker_id)
        return worker.progress_at if worker is not None else None

    def idle_since(self, worker_id: str) -> float | None:
        """Since when a worker has no lease (trio's clock); None while it has one, or is not in service."""
        worker = self.dispatcher.worker(worker_id)
        return worker.idle_since if worker is not None and not worker.leases else None

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Learn what a worker has loaded."""
        self.dispatcher.worker_models(worker_id, models)

    def inflight(self, worker_id: str) -> int:
        """How many leases a worker has."""
        return self.dispatcher.inflight(worker_id)

    async def wait_drained(self, worker_id: str) -> None:
        """Return when a worker has no lease."""
        while self.dispatcher.inflight(worker_id):
            await self._drained.setdefault(worker_id, trio.Event()).wait()

    def _note_drained(self, worker_id: str) -> None:
        if self.dispatcher.inflight(worker_id):
            return
        event = self._drained.pop(worker_id, None)
        if event is not None:
            event.set()

    def fleet_wanted(self, count: int) -> None:
        """Learn how many workers there are to be: with none, a request is told so instead of waiting."""
        self.dispatcher.wanted_workers = count
        if count == 0:
            self._turn_away(NoWorkerWanted)

    # -- for the door and the admin API --------------------------------------------------------------------------

    def shut(self) -> None:
        """Answer every waiting ticket, and each that comes, with ShuttingDown. Leases go on."""
        self._shut = True
        self._turn_away(ShuttingDown)

    def _turn_away(self, why: type[NoWorkerWanted | ShuttingDown]) -> None:
        for ticket in self._tickets:
            if ticket.lease is None and ticket.granted is not None:
                ticket.turned_away = why()
                ticket.granted.set()

    async def wait_all_drained(self) -> None:
        """Return when no lease is left anywhere."""
        for worker in self.dispatcher.ready():
            await self.wait_drained(worker.id)

    def ready(self) -> list[WorkerSlots]:
        """The workers in service that are not cordoned."""
        return [worker for worker in self.dispatcher.ready() if not worker.cordoned]

    def queue(self) -> dict[str, float]:
        """The queue as the admin API shows it."""
        waiting = [ticket for ticket in self.dispatcher.waiting if isinstance(ticket, Waiting)]
        oldest = min((ticket.since for ticket in waiting), default=None)
        return {
            "depth": len(waiting),
            "size": self.dispatcher.queue_size,
            "oldest_s": 0.0 if oldest is None else round(trio.current_time() - oldest, 3),
            "bytes": self.dispatcher.waiting_bytes,
            "size_bytes": self.dispatcher.queue_bytes,
        }

    def place(self, ticket: Ticket) -> tuple[int, float | None]:
        """Return a waiting ticket's position (1 is next), and how long it may still take, in seconds.

        An estimate: it goes by how long leases have lasted of late and how many slots there are.
        """
        position = self.dispatcher.position(ticket)
        return position, _estimate_s(position, self._step_s())

    def _step_s(self) -> float | None:
        """Return how often a slot becomes free, in seconds; None while no lease has ended, or there is no slot."""
        slots = sum(worker.slots for worker in self.ready() if not worker.shunned)
        return None if self._mean_lease_s is None or not slots else self._mean_lease_s / slots

    def tickets(self) -> list[dict[str, Any]]:
        """The tickets that wait, as the admin API shows them, the next one first."""
        now, step_s = trio.current_time(), self._step_s()
        rows = []
        for ticket in self.dispatcher.waiting:
            assert isinstance(ticket, Waiting)  # noqa: S101 - nobody else makes tickets
            position = self.dispatcher.position(ticket)
            rows.append(
                {
                    "position": position, "estimated_wait_s": _estimate_s(position, step_s),
                    "waited_s": round(now - ticket.since, 3),
                    "request": ticket.request_id, "caller": ticket.caller, "model": ticket.model,
                    "priority": ticket.priority, "body_bytes": ticket.body_bytes,
                    "attempts": len(ticket.excluded) + 1,
                }
            )  # fmt: skip
        return sorted(rows, key=lambda row: row["position"])

    def __repr__(self) -> str:
        leases = sum(len(worker.leases) for worker in self.dispatcher.ready())
        return f"<Admission {leases} leases, {len(self.dispatcher.waiting)} tickets>"


class _Hold:
    """A slot held for a block. Not written with contextlib: this is on every request's way (docs/performance.md)."""

    __slots__ = ("_admission", "_ticket")

    def __init__(self, admission: Admission, ticket: Waiting) -> None:
        self._admission = admission
        self._ticket = ticket

    async def __aenter__(self) -> Lease:
        return await self._admission.take(self._ticket)

    async def __aexit__(self, *_: object) -> None:
        self._admission.leave(self._ticket)


def _estimate_s(position: int, step_s: float | None) -> float | None:
    return None if step_s is None else round(position * step_s, 1)

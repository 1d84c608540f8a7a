"""A gateway's inside, from admission to the workers, with scripted workers on real sockets."""

import trio

from gateway.admission import Admission
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.upstream import Upstream
from tests.fakes.worker_server import Behaviour, WorkerServer

NOTHING_LEFT = "<Admission 0 leases, 0 tickets>"


class Hall:
    """An exchange and its workers. Two equal workers are chosen in the order in which they came."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.admission = Admission(queue_size=4, queue_timeout_s=20.0, random_unit=self._in_order)
        self.upstream = Upstream(first_byte_timeout_s=1000.0, stall_timeout_s=1000.0)
        self.metrics = Metrics()
        self.silences: list[tuple[str, float, str, float]] = []
        self.deaths: list[str] = []
        self.exchange = Exchange(self.admission, self.upstream, self.metrics, primary_port=1, watch=self)
        self._nursery = nursery
        nursery.start_soon(self.upstream.run)
        self._draws = 0.0

    def _in_order(self) -> float:
        self._draws += 1e-6  # the worker that came first wins a tie
        return self._draws

    def no_progress(self, worker_id: str, ready_at: float, phase: str, silent_s: float) -> None:
        """The exchange's `WorkerWatch`."""
        self.silences.append((worker_id, ready_at, phase, silent_s))

    def runner_died(self, worker_id: str, ready_at: float) -> None:
        """The exchange's `WorkerWatch`."""
        self.deaths.append(worker_id)

    def patience(self, *, first_byte_timeout_s: float = 1000.0, stall_timeout_s: float = 1000.0) -> None:
        self.upstream._first_byte_timeout_s = first_byte_timeout_s
        self.upstream._stall_timeout_s = stall_timeout_s

    def ready(self, worker_id: str, server: WorkerServer, slots: int = 1) -> None:
        self.admission.worker_ready(worker_id, port=server.port, slots=slots, models=frozenset(), cordoned=False)

    async def worker(self, worker_id: str, *script: Behaviour, slots: int = 1) -> WorkerServer:
        server = WorkerServer(list(script))
        await self._nursery.start(server.run)
        self.ready(worker_id, server, slots)
        return server

    async def primary(self, *script: Behaviour, refuses_early: bool = False) -> WorkerServer:
        server = WorkerServer(list(script), refuses_early=refuses_early)
        await self._nursery.start(server.run)
        self.exchange.primary_port = server.port
        return server

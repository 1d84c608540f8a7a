"""The fleet: which workers are wanted, and one task for each. `run_fleet` owns those tasks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog
import trio

from supervisor.config import MOST_WORKERS, WORKER_PORTS
from supervisor.errors import NoRoom, NotUnderstood, UnknownWorker
from supervisor.gpu import Gpu
from supervisor.lifecycle import State
from supervisor.placement import CPU, Placement, find_gpu, place
from supervisor.wanted import WantedFile
from supervisor.worker import Goal, House, Worker, WorkerSpec

log = structlog.get_logger("fleet")

MOST_AT_ONCE = 64
# After a bug of ours in one worker's task.
AFTER_A_BUG_S = 1.0


class FleetSize(Protocol):
    """Told how many workers are wanted, so that a request knows whether waiting makes sense."""

    def fleet_wanted(self, count: int) -> None:
        """There are to be so many workers."""


class Fleet:
    """The workers there are, and every change of the wanted fleet. All calls are plain; tasks do the rest."""

    def __init__(self, house: House, size: FleetSize, wanted: WantedFile, gpus: Callable[[], Sequence[Gpu]]) -> None:
        self._house = house
        self._size = size
        self._wanted = wanted
        self._gpus = gpus
        self._next_number = 0
        self._nursery: trio.Nursery | None = None
        self.workers: dict[str, Worker] = {}
        self.quarantined: frozenset[str] = frozenset()

    async def run(
        self, placements: Sequence[Placement], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the saved fleet, or one worker per placement when none is saved. The fleet's task.

        Never returns; cancellation ends every worker's process group, all at the same time.
        """
        saved = self._wanted.load()
        if saved:
            specs, self._next_number = saved
        else:
            specs = [self._new_spec(placement, None) for placement in placements]
        async with trio.open_nursery() as self._nursery:
            for spec in specs:
                self._launch(spec)
            self._size.fleet_wanted(len(self.workers))
            task_status.started()
            await trio.sleep_forever()

    # -- the operator's calls ------------------------------------------------------------------------------------

    def spawn(self, gpu: str | int | None, count: int, slots: int | None) -> list[Worker]:
        """Add workers, on one GPU, on the CPU, or where there is most room (None). They start at once.

        Raises NotUnderstood, UnknownGpu, NoRoom.
        """
        if not 1 <= count <= MOST_AT_ONCE:
            raise NotUnderstood(f"count is {count}; it must be between 1 and {MOST_AT_ONCE}")
        if slots is not None and not 1 <= slots <= 1024:
            raise NotUnderstood(f"slots is {slots}; it must be between 1 and 1024")
        if len(self.workers) + count > MOST_WORKERS:
            raise NoRoom(f"there are {len(self.workers)} workers; {MOST_WORKERS} is the most")
        placed = [worker.spec.placement for worker in self.workers.values() if worker.goal is not Goal.REMOVE]
        placements = place(gpu, count, self._gpus(), placed, self.quarantined)
        added = [self._launch(self._new_spec(placement, slots)) for placement in placements]
        self._changed()
        return added

    def prune(self, workers: Iterable[Worker], *, force: bool) -> list[Worker]:
        """Drain (unless `force`) and remove workers. Returns those that it concerned."""
        pruned = list(workers)
        for worker in pruned:
            worker.end(Goal.REMOVE, force=force)
        self._changed()
        return pruned

    def restart(self, worker: Worker) -> None:
        """Drain a worker and start it again, at once if it is backing off. Raises NoRoom in quarantine."""
        if worker.goal is Goal.QUARANTINE:
            raise NoRoom(f"{worker.spec.id} is on a quarantined GPU; release {worker.spec.placement} first")
        worker.end(Goal.RESTART)

    def find(self, worker_id: str) -> Worker:
        """Return a worker by id. Raises UnknownWorker, which lists those there are."""
        try:
            return self.workers[worker_id]
        except KeyError:
            there = ", ".join(self.workers) or "none"
            raise UnknownWorker(f"there is no worker {worker_id!r}; workers here: {there}") from None

    def on_gpu(self, gpu: str | int) -> list[Worker]:
        """Return the workers placed on a GPU, or on `cpu`. Raises UnknownGpu."""
        cpu = str(gpu).lower() == "cpu"
        placement = CPU if cpu else Placement(find_gpu(gpu, self._gpus()).uuid)
        return [worker for worker in self.workers.values() if worker.spec.placement == placement]

    def idle(self) -> list[Worker]:
        """Return the ready workers without a lease."""
        return [
            worker for worker in self.workers.values() if worker.state is State.READY and self.inflight(worker) == 0
        ]

    def inflight(self, worker: Worker) -> int:
        """How many leases a worker has."""
        return self._house.leases.inflight(worker.spec.id)

    def quarantine(self, gpu: str | int) -> Gpu:
        """Take a GPU out of use: its workers are drained and stopped until it is released. Raises UnknownGpu."""
        found = find_gpu(gpu, self._gpus())
        self.quarantined |= {found.uuid}
        self._house.events.record("gpu_quarantined", level="warning", gpu=found.uuid, by="operator")
        for worker in self.on_gpu(found.uuid):
            worker.end(Goal.QUARANTINE)
        return found

    def release(self, gpu: str | int) -> Gpu:
        """Let a quarantined GPU be used again; its workers start. Raises UnknownGpu."""
        found = find_gpu(gpu, self._gpus())
        self.quarantined -= {found.uuid}
        self._house.events.record("gpu_released", gpu=found.uuid, by="operator")
        for worker in self.on_gpu(found.uuid):
            worker.release()
        return found

    async def wait_settled(self, workers: Iterable[Worker]) -> None:
        """Return when each of the workers is ready, has failed, or is gone. No deadline: the caller has one."""
        for worker in workers:
            while worker.state in (State.STARTING, State.WARMING):
                await worker.wait_changed()

    async def wait_gone(self, workers: Iterable[Worker]) -> None:
        """Return when each of the workers is gone. No deadline: the caller has one."""
        for worker in workers:
            while worker.state is not State.GONE:
                await worker.wait_changed()

    # -- small parts ---------------------------------------------------------------------------------------------

    def _new_spec(self, placement: Placement, slots: int | None) -> WorkerSpec:
        self._next_number += 1
        return WorkerSpec(f"w{self._next_number}", placement, slots or self._house.settings.worker_slots)

    def _launch(self, spec: WorkerSpec) -> Worker:
        assert self._nursery is not None, "the fleet is not running"  # noqa: S101 - a bug of ours, not of a caller's
        # its number chooses its port while that is free, so that ports stand in the order of the workers
        number = int(spec.id[1:]) if spec.id[1:].isdecimal() else 1
        port = self._house.settings.worker_port_base + (number - 1) % WORKER_PORTS
        worker = self.workers[spec.id] = Worker(spec, self._house, port=port)
        self._nursery.start_soon(self._own, worker, name=f"worker {spec.id}")
        return worker

    async def _own(self, worker: Worker) -> None:
        """Own one worker. A bug in its task costs this worker a restart, not the fleet its life."""
        while True:
            try:
                await worker.run()
            except Exception:
                log.exception("a worker's task failed; this is a bug in Chimera", worker=worker.spec.id)
                worker.state = State.STARTING
                await trio.sleep(AFTER_A_BUG_S)
                continue
            break
        del self.workers[worker.spec.id]

    def _changed(self) -> None:
        staying = [worker.spec for worker in self.workers.values() if worker.goal is not Goal.REMOVE]
        self._size.fleet_wanted(len(staying))
        try:
            self._wanted.save(staying, self._next_number)
        except OSError as error:
            log.error("the fleet cannot be saved; a restart will not know this change", cause=str(error))

"""The fleet: which workers are wanted, and one task for each. `run_fleet` owns those tasks."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog
import trio

from supervisor.change import Seat, refit
from supervisor.config import MOST_SLOTS, WORKER_PORTS
from supervisor.config_values import MOST_WORKERS
from supervisor.errors import NoRoom, NotUnderstood, UnknownWorker
from supervisor.house import House, WorkerSpec
from supervisor.lifecycle import State
from supervisor.placement import CPU, Placement, find_gpu, place
from supervisor.standing import SERVING, Goal
from supervisor.wanted import WantedFile
from supervisor.worker import Worker

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

    def __init__(self, house: House, size: FleetSize, wanted: WantedFile) -> None:
        self._house = house
        self._size = size
        self._wanted = wanted
        self._next_number = 0
        self._nursery: trio.Nursery | None = None
        self.workers: dict[str, Worker] = {}
        self.unplaced: tuple[str, ...] = ()  # what of WORKERS has no place here, a sentence each

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
            specs = [self._new_spec(placement, None, pinned=True) for placement in placements]
        async with trio.open_nursery() as self._nursery:
            for spec in specs:
                worker = self._launch(spec)
                if spec.placement in self._house.gpus.quarantined:
                    worker.end(Goal.QUARANTINE, cause=self._house.gpus.problem(spec.placement))
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
        if slots is not None and not 1 <= slots <= MOST_SLOTS:
            raise NotUnderstood(f"slots is {slots}; it must be between 1 and {MOST_SLOTS}")
        if len(self.workers) + count > MOST_WORKERS:
            raise NoRoom(f"there are {len(self.workers)} workers; {MOST_WORKERS} is the most")
        placed = [worker.placement for worker in self.workers.values() if worker.goal is not Goal.REMOVE]
        placements = place(gpu, count, self._house.gpus.reading.gpus, placed, self._house.gpus.quarantined)
        added = [self._launch(self._new_spec(placement, slots, pinned=gpu is not None)) for placement in placements]
        self._changed()
        return added

    def prune(self, workers: Iterable[Worker], *, force: bool) -> list[Worker]:
        """Drain (unless `force`) and remove workers. Returns those that it concerned."""
        pruned = list(workers)
        for worker in pruned:
            worker.end(Goal.REMOVE, force=force, cause="pruned by the operator")
        self._changed()
        return pruned

    def refit(self, placements: Sequence[Placement], workers_setting: str) -> tuple[list[str], list[str]]:
        """Make the fleet what a changed WORKERS asks for; return the ids of those that go, drained, and that come.

        Raises NoRoom when that would be too many.
        """
        staying = [worker for worker in self.workers.values() if worker.goal is not Goal.REMOVE]
        seats = [Seat(w.spec.id, str(w.placement), w.state is State.READY) for w in staying]
        going, coming = refit(seats, [str(placement) for placement in placements])
        if len(self.workers) + len(coming) > MOST_WORKERS:
            raise NoRoom(f"{len(self.workers)} workers and {len(coming)} more: {MOST_WORKERS} is the most")
        for worker_id in going:
            self.workers[worker_id].end(Goal.REMOVE, cause="WORKERS has changed")
        added = [self._launch(self._new_spec(Placement(placement), None, pinned=True)) for placement in coming]
        self._size.fleet_wanted(len(staying) - len(going) + len(added))
        self._wanted.forget(workers_setting)
        return going, [worker.spec.id for worker in added]

    def resize(self, before: int, after: int) -> None:
        """Give the workers that had WORKER_SLOTS slots the new number, from their next start on."""
        for worker in self.workers.values():
            if worker.slots == before:
                worker.resize(after)
        if self._wanted.there:
            self._changed()

    def restart(self, worker: Worker) -> None:
        """Drain a worker and start it again, at once if it is backing off. Raises NoRoom in quarantine."""
        if worker.goal is Goal.QUARANTINE:
            raise NoRoom(f"{worker.spec.id} is on a quarantined GPU; release {worker.spec.placement} first")
        worker.restart()

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
        placement = CPU if cpu else Placement(find_gpu(gpu, self._house.gpus.reading.gpus).uuid)
        return self._placed_on(placement)

    def idle(self) -> list[Worker]:
        """Return the ready workers without a lease."""
        return [
            worker for worker in self.workers.values() if worker.state is State.READY and self.inflight(worker) == 0
        ]

    @property
    def memory_limit_bytes(self) -> int | None:
        """The host memory above which an idle worker is restarted; None: no limit."""
        limit = self._house.settings.worker_memory_limit_bytes
        return None if limit is None else int(limit)

    def inflight(self, worker: Worker) -> int:
        """How many leases a worker has."""
        return self._house.leases.inflight(worker.spec.id)

    # -- what befalls a GPU (told by `ward`, who decides it) -----------------------------------------------------

    def quarantine(self, uuid: str, cause: str, *, drain: bool) -> None:
        """Take a GPU out of use. Its workers are ended, drained first if `drain`.

        One whose place the operator left open goes on elsewhere, if any other GPU will have it; the others wait
        for the release.
        """
        moved = False
        for worker in self._placed_on(uuid):
            target = None if worker.spec.pinned else self._elsewhere()
            if target is None:
                worker.end(Goal.QUARANTINE, force=not drain, cause=cause)
            else:
                worker.move(target, force=not drain, cause=f"moved to {target}: {cause}")
                moved = True
        if moved:
            self._changed()

    def release(self, uuid: str) -> None:
        """Let a quarantined GPU be used again; the workers that waited for it start."""
        for worker in self._placed_on(uuid):
            worker.release()

    def restart_on(self, uuid: str, cause: str) -> None:
        """Drain the workers of a GPU and start them again; one that is on its way up or down has met it already."""
        for worker in self._placed_on(uuid):
            if worker.state in SERVING:
                worker.end(Goal.RESTART, cause=cause)

    def healed(self, uuid: str) -> None:
        """A GPU answers again: workers that wait out a failure there need not wait longer."""
        for worker in self._placed_on(uuid):
            worker.healed()

    def no_progress(self, worker_id: str, ready_at: float, phase: str, silent_s: float) -> None:
        """Take the gateway's word that a request made no progress at a worker."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.stalled(ready_at, phase, silent_s)

    def runner_died(self, worker_id: str, ready_at: float) -> None:
        """Take the gateway's word that an answer said so."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.runner_died(ready_at)

    def _placed_on(self, uuid: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.placement == uuid]

    def _elsewhere(self) -> Placement | None:
        """Return the GPU on which a worker goes on that has to leave its own; None when there is none."""
        placed = [worker.placement for worker in self.workers.values() if worker.goal is not Goal.REMOVE]
        well = [gpu for gpu in self._house.gpus.reading.gpus if gpu.fault is None]
        try:
            (target,) = place(None, 1, well, placed, self._house.gpus.quarantined)
        except NoRoom:
            return None
        return None if target == CPU else target

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

    def _new_spec(self, placement: Placement, slots: int | None, *, pinned: bool) -> WorkerSpec:
        self._next_number += 1
        return WorkerSpec(f"w{self._next_number}", placement, slots or self._house.settings.worker_slots, pinned)

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
        staying = [
            replace(worker.spec, placement=worker.placement, slots=worker.slots)
            for worker in self.workers.values()
            if worker.goal is not Goal.REMOVE
        ]
        self._size.fleet_wanted(len(staying))
        try:
            self._wanted.save(staying, self._next_number)
        except OSError as error:
            log.error("the fleet cannot be saved; a restart will not know this change", cause=str(error))

"""What an operator sees and may order: the fleet as rows of JSON values, for the admin API and the command line."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import trio

from supervisor.command import PRIMARY
from supervisor.errors import NoRoom, NotUnderstood, UnknownGpu, UnknownWorker
from supervisor.events import EventLog
from supervisor.fleet import Fleet
from supervisor.gpu import Gpu
from supervisor.gpu_health import GpuVerdict
from supervisor.lifecycle import shown
from supervisor.placement import CPU
from supervisor.store import ModelStore
from supervisor.trouble import problem_of, trouble_of
from supervisor.usage import Usage, UsageMeter
from supervisor.ward import Ward
from supervisor.words import Trouble
from supervisor.worker import Worker
from supervisor.worker_log import last_lines, tail

Row = dict[str, Any]

LOG_POLL_S = 0.25


class Operator:
    """The operator's view. Reads other people's facts, and orders through `Fleet`, their owner."""

    def __init__(
        self, fleet: Fleet, primary: Worker, store: ModelStore, meter: UsageMeter, events: EventLog,
        ward: Ward,
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._primary = primary
        self._store = store
        self._meter = meter
        self._events = events
        self._ward = ward

    def refusal_of(self, error: Exception) -> Literal["not_understood", "not_found", "no_room"] | None:
        """Return what kind of refusal an error is; None for one that is no refusal but a bug."""
        match error:
            case NotUnderstood():
                return "not_understood"
            case UnknownGpu() | UnknownWorker():
                return "not_found"
            case NoRoom():
                return "no_room"
            case _:
                return None

    # -- what there is -------------------------------------------------------------------------------------------

    def instances(self) -> list[Row]:
        """Every worker, as contract.md has it."""
        return [self._row(worker) for worker in self._fleet.workers.values()]

    def instance(self, worker_id: str) -> Row:
        """One worker, or the primary. Raises UnknownWorker."""
        return self.primary() if worker_id == PRIMARY else self._row(self._fleet.find(worker_id))

    def primary(self) -> Row:
        """The primary, and what the model store is doing."""
        row, store = self._row(self._primary), self._store
        trouble = row["trouble"] or _trouble_row(store.trouble)
        return row | {
            "state": self._primary.state.value, "store": store.problem or store.progress, "trouble": trouble,
        }  # fmt: skip

    def gpus(self) -> Row:
        """The GPUs: memory, utilisation, temperature, power, processes, verdict; `fault` says why there are none.

        `unplaced` says which parts of WORKERS have no place here.
        """
        reading = self._ward.reading
        return {
            "gpus": [self._gpu_row(gpu) for gpu in reading.gpus],
            "driver_version": reading.driver_version,
            "fault": reading.fault,
            "unplaced": list(self._fleet.unplaced),
        }

    def _gpu_row(self, gpu: Gpu) -> Row:
        workers = [w.spec.id for w in self._fleet.workers.values() if w.placement == gpu.uuid]
        verdict = self._ward.verdict(gpu.uuid)
        return {
            "index": gpu.index,
            "uuid": gpu.uuid,
            "name": gpu.name,
            "mig_of": gpu.mig_of,
            "memory_used_bytes": gpu.memory_used_bytes,
            "memory_total_bytes": gpu.memory_total_bytes,
            "utilisation_percent": gpu.utilisation_percent,
            "temperature_c": gpu.temperature_c,
            "power_w": gpu.power_w,
            "processes": [{"pid": p.pid, "memory_bytes": p.memory_bytes} for p in gpu.processes or ()],
            "workers": workers,
            "verdict": verdict.verdict,
            "trouble": _gpu_trouble(verdict),
            "fault": gpu.fault,
            "slowdown": gpu.slowdown,
            "remap_pending": gpu.remap_pending,
            "recovery_action": gpu.recovery_action,
            "ecc_uncorrected": gpu.ecc_uncorrected,
            "xids": [
                {"code": x.code, "meaning": x.meaning, "action": x.action.value, "count": x.count,
                 "at": x.at.isoformat(timespec="milliseconds")}
                for x in verdict.xids
            ],
        }  # fmt: skip

    def _row(self, worker: Worker) -> Row:
        usage = self._meter.latest.get(worker.spec.id, Usage())
        process, last = worker.process, worker.last_exit
        status = last.status if last else None
        return {
            "id": worker.spec.id,
            "state": shown(worker.state, self._fleet.inflight(worker)),
            "placement": str(worker.spec.placement),
            "gpu": self._gpu_of(worker),
            "port": worker.port,
            "pid": process.pid if process else None,
            "url": f"http://127.0.0.1:{worker.port}" if worker.port else None,
            "slots": worker.spec.slots,
            "inflight": self._fleet.inflight(worker),
            "models": sorted(worker.models),
            "restarts": worker.restarts,
            "started_at": process.started_at.isoformat(timespec="seconds") if process else None,
            "uptime_s": worker.uptime_s(trio.current_time()),
            "last_exit": None if last is None else {
                "reason": last.reason,
                "code": status.code if status else None,
                "signal": status.signal if status else None,
                "at": last.at.isoformat(timespec="seconds"),
                "log": list(last.log),
            },
            "problem": problem_of(worker),
            "trouble": _trouble_row(trouble_of(worker)),
            "degraded": worker.degraded,
            "memory": self._memory(worker, usage),
            "rss_bytes": usage.rss_bytes if process else 0,
            "cpu_percent": usage.cpu_percent if process else 0.0,
            "gpu_memory_bytes": self._gpu_memory(worker, usage),
        }  # fmt: skip

    def _memory(self, worker: Worker, usage: Usage) -> Row:
        track = worker.watch.memory if worker.watch is not None else None
        return {
            "private_bytes": usage.private_bytes if worker.process else None,
            "growth_bytes_per_h": track.growth_bytes_per_h if track is not None else None,
            "vram_growth_bytes_per_h": track.vram_growth_bytes_per_h if track is not None else None,
            "limit_bytes": self._fleet.memory_limit_bytes,
        }

    def _gpu_of(self, worker: Worker) -> Row | None:
        if worker.spec.placement == CPU:
            return None
        for gpu in self._ward.reading.gpus:
            if gpu.uuid == worker.spec.placement:
                return {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name}
        return {"index": None, "uuid": str(worker.spec.placement), "name": None}

    def _gpu_memory(self, worker: Worker, usage: Usage) -> int | None:
        if worker.spec.placement == CPU:
            return None
        here = [gpu for gpu in self._ward.reading.gpus if gpu.uuid == worker.spec.placement]
        processes = [process for gpu in here for process in gpu.processes or ()]
        return sum(p.memory_bytes or 0 for p in processes if p.pid in usage.pids)

    # -- orders --------------------------------------------------------------------------------------------------

    def spawn(self, gpu: str | int | None, count: int, slots: int | None) -> list[str]:
        """Add workers; return their ids. Raises NotUnderstood, UnknownGpu, NoRoom."""
        return [worker.spec.id for worker in self._fleet.spawn(gpu, count, slots)]

    def prune(self, ids: Sequence[str] | None, gpu: str | int | None, *, idle: bool, force: bool) -> list[str]:
        """Remove the workers that every given condition names; all, when none is given. Returns their ids.

        Raises UnknownWorker and UnknownGpu, and then nothing is pruned.
        """
        names = list(self._fleet.workers) if ids is None else list(dict.fromkeys(ids))
        chosen = [self._fleet.find(name) for name in names]
        if gpu is not None:
            there = self._fleet.on_gpu(gpu)
            chosen = [worker for worker in chosen if worker in there]
        if idle:
            resting = self._fleet.idle()
            chosen = [worker for worker in chosen if worker in resting]
        return [worker.spec.id for worker in self._fleet.prune(chosen, force=force)]

    def order(self, worker_id: str, verb: str) -> None:
        """Carry out drain, cordon, uncordon or restart. Raises UnknownWorker, NoRoom, NotUnderstood."""
        worker = self._fleet.find(worker_id)
        match verb:
            case "drain":
                worker.drain()
            case "cordon":
                worker.cordon()
            case "uncordon":
                worker.uncordon()
            case "restart":
                self._fleet.restart(worker)
            case _:
                raise NotUnderstood(f"{verb!r} is none of drain, cordon, uncordon, restart")

    async def wait_settled(self, ids: Sequence[str]) -> None:
        """Return when each worker is ready, has failed or is gone."""
        await self._fleet.wait_settled([self._fleet.workers[name] for name in ids if name in self._fleet.workers])

    async def wait_gone(self, ids: Sequence[str]) -> None:
        """Return when each worker is gone."""
        await self._fleet.wait_gone([self._fleet.workers[name] for name in ids if name in self._fleet.workers])

    def quarantine(self, gpu: str) -> Row:
        """Take a GPU out of use. Raises UnknownGpu."""
        return self._gpu_row(self._ward.quarantine(gpu))

    def release(self, gpu: str) -> Row:
        """Let a GPU be used again. Raises UnknownGpu."""
        return self._gpu_row(self._ward.release(gpu))

    # -- what happened -------------------------------------------------------------------------------------------

    def events(self) -> list[Row]:
        """What happened, oldest first."""
        return self._events.newest()

    def follow_events(self) -> AsyncIterator[Row]:
        """Yield what happened, then each thing as it happens."""
        return self._events.follow()

    def log_lines(self, worker_id: str, count: int) -> list[str]:
        """Return the last lines of a worker's log, or the primary's. Raises UnknownWorker. Blocks: reads a file."""
        return last_lines(self._log_path(worker_id), count)

    def _log_path(self, worker_id: str) -> Path:
        return (self._primary if worker_id == PRIMARY else self._fleet.find(worker_id)).log_path

    async def follow_log(self, worker_id: str, count: int) -> AsyncIterator[str]:
        """Yield the last lines of a log and then each new one, over rotations too. Ends by cancellation."""
        path = self._log_path(worker_id)
        known, position = tail(path)
        *lines, rest = known.split(b"\n")  # the last one is not whole yet
        for line in lines[-count:] if count > 0 else []:
            yield line.decode("utf-8", "replace")
        while True:
            await trio.sleep(LOG_POLL_S)
            size = path.stat().st_size if path.exists() else 0
            if size < position:
                if rest:
                    yield rest.decode("utf-8", "replace")
                position, rest = 0, b""  # set aside, and begun anew
            if size == position:
                continue
            with path.open("rb") as log:
                log.seek(position)
                *lines, rest = (rest + log.read(1024 * 1024)).split(b"\n")
                position = log.tell()
            for line in lines:
                yield line.decode("utf-8", "replace")


def _trouble_row(trouble: Trouble | None) -> Row | None:
    if trouble is None:
        return None
    since = trouble.since.isoformat(timespec="seconds")
    return {"what": trouble.what, "since": since, "tried": trouble.tried, "next": trouble.next}


def _gpu_trouble(verdict: GpuVerdict) -> Row | None:
    if verdict.verdict == "well" or verdict.since_at is None:
        return None
    tried = "its workers were ended or moved" if verdict.verdict == "quarantined" else "nothing was tried"
    return _trouble_row(Trouble(verdict.reason, verdict.since_at, tried, verdict.next))

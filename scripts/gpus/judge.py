"""What the programs' reports, NVML's lists and the admin API's rows add up to: one function for each question. Pure."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.gpus.row import MIB, Seen

Json = dict[str, Any]

READY = ("IDLE", "BUSY")
# The driver's own use of a GPU's memory comes and goes a little; a program takes many times as much.
SPARE_BYTES = 64 * MIB
IN_A_CONTAINER = "in a container NVML may count in the host's process ids, or list nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """What a CUDA program says of itself (cuda_runner.py): the worker whose runner it is, the devices it can see."""

    pid: int
    worker: str
    visible: str | None
    uuids: tuple[str, ...]
    error: str | None


def read_reports(text: str) -> list[Report]:
    """Return the reports of whole lines, oldest first."""
    found: list[Report] = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        fields = json.loads(line)
        found.append(Report(**{**fields, "uuids": tuple(fields["uuids"])}))
    return found


def newest(reports: Iterable[Report], but: Collection[int] = ()) -> dict[str, Report]:
    """Return each worker's newest report, of a program that is not one of the pids `but`."""
    return {report.worker: report for report in reports if report.pid not in but}


def short(uuid: str) -> str:
    """A UUID as people tell it from others."""
    return uuid[:12]


def share(gpu: Json) -> str:
    """The GPU whose lot it shares: itself, or of a MIG device its GPU."""
    return str(gpu["mig_of"] or gpu["uuid"])


def everywhere(workers: Sequence[Json], placements: Sequence[str]) -> Seen:
    """Whether each of the placements has one ready worker, and nothing else has."""
    there = sorted(row["placement"] for row in workers if row["state"] in READY)
    text = ", ".join(f"{row['id']} {row['state']} on {short(row['placement'])}" for row in workers)
    return Seen(text or "no worker", there == sorted(placements) and len(workers) == len(there))


def pinned(workers: Sequence[Json], programs: Mapping[str, Report]) -> Seen:
    """Whether each worker's program saw one device, and that is its worker's placement."""
    texts, good = list[str](), bool(workers)
    for row in workers:
        report = programs.get(row["id"])
        saw = tuple(uuid.lower() for uuid in report.uuids) if report else ()
        good = good and report is not None and report.error is None and saw == (row["placement"].lower(),)
        texts.append(f"{row['id']} on {short(row['placement'])} saw {_devices(report)}")
    return Seen("; ".join(texts) or "no worker", good)


def unseeing(worker: Json, programs: Mapping[str, Report]) -> Seen:
    """Whether a CPU worker's program saw no device."""
    report = programs.get(worker["id"])
    good = worker["placement"] == "cpu" and report is not None and report.error is None and not report.uuids
    visible = report.visible if report else None
    return Seen(f"{worker['id']} with CUDA_VISIBLE_DEVICES={visible} saw {_devices(report)}", good)


def _devices(report: Report | None) -> str:
    if report is None:
        return "nothing yet: its program has not reported"
    failed = f" ({report.error})" if report.error else ""
    return (", ".join(map(short, report.uuids)) or "no device") + failed


def listed(workers: Sequence[Json], programs: Mapping[str, Report], gpus: Sequence[Json], least_bytes: int) -> Seen:
    """Whether NVML lists each program on its GPU with the memory it took, and on no other GPU."""
    texts, good = list[str](), bool(workers)
    for row in workers:
        pid = programs[row["id"]].pid if row["id"] in programs else None
        (own,) = [gpu for gpu in gpus if gpu["uuid"] == row["placement"]]
        others = [
            gpu for gpu in gpus if gpu["uuid"] not in (own["uuid"], own["mig_of"]) and _held(gpu, pid) is not None
        ]
        held = _held(own, pid)
        good = good and held is not None and held >= least_bytes and not others
        where = f"{held // MIB} MiB on {short(own['uuid'])}" if held is not None else f"not on {short(own['uuid'])}"
        also = "".join(f", also on {short(gpu['uuid'])}" for gpu in others)
        texts.append(f"{row['id']}'s {pid}: {where}{also}" + (f" ({IN_A_CONTAINER})" if held is None else ""))
    return Seen("; ".join(texts) or "no worker", good)


def _held(gpu: Json, pid: int | None) -> int | None:
    """The memory that NVML gives a process on a GPU, 0 where it does not tell; None if it is not listed there."""
    return next((process["memory_bytes"] or 0 for process in gpu["processes"] if process["pid"] == pid), None)


def agreed(workers: Sequence[Json], programs: Mapping[str, Report], gpus: Sequence[Json]) -> Seen:
    """Whether each worker's gpu_memory_bytes is what NVML says of its program."""
    nvml = {(gpu["uuid"], process["pid"]): process["memory_bytes"] for gpu in gpus for process in gpu["processes"]}
    texts, good = list[str](), bool(workers)
    for row in workers:
        report, says = programs.get(row["id"]), row["gpu_memory_bytes"] or 0
        held = nvml.get((row["placement"], report.pid)) if report else None
        good = good and says > 0 and says == held
        texts.append(f"{row['id']}: {says // MIB} MiB, NVML {(held or 0) // MIB} MiB")
    return Seen("; ".join(texts) or "no worker", good)


def telemetry(gpus: Sequence[Json]) -> Seen:
    """Whether each GPU tells what it is and how it is.

    Of a MIG device NVML tells the memory alone, and of a GPU that is split no utilisation (nvml.h).
    """
    split = {gpu["mig_of"] for gpu in gpus}
    texts, good = list[str](), bool(gpus)
    for gpu in gpus:
        needed = ["name", "memory_total_bytes", "memory_used_bytes"]
        needed += ["temperature_c", "power_w"] if gpu["mig_of"] is None else []
        needed += ["utilisation_percent"] if gpu["mig_of"] is None and gpu["uuid"] not in split else []
        missing = [name for name in needed if gpu[name] in (None, "")]
        good = good and not missing and gpu["memory_total_bytes"] > 0 and gpu["fault"] is None
        shown = f"{gpu['memory_used_bytes'] // MIB} of {gpu['memory_total_bytes'] // MIB} MiB"
        units = {"utilisation_percent": "%", "temperature_c": "°C", "power_w": "W"}
        state = "".join(f", {gpu[name]} {unit}" for name, unit in units.items() if gpu[name] is not None)
        lacks = f"; not told: {', '.join(missing)}" if missing else ""
        texts.append(f"{gpu['name']}: {shown}{state}{lacks}" + (f"; {gpu['fault']}" if gpu["fault"] else ""))
    return Seen(" / ".join(texts) or "no GPU", good)


def grown(used: Mapping[str, int], before: Mapping[str, int], programs_on: Mapping[str, int], each_bytes: int) -> Seen:
    """Whether memory in use has grown, on each GPU of `programs_on`, by what its programs allocated."""
    more = {uuid: used.get(uuid, 0) - before.get(uuid, 0) for uuid in programs_on}
    text = "; ".join(f"{short(uuid)} {size // MIB} MiB more than before" for uuid, size in more.items())
    return Seen(text, all(more[uuid] >= count * each_bytes for uuid, count in programs_on.items()))


def returned(used: Mapping[str, int], before: Mapping[str, int], uuids: Iterable[str]) -> Seen:
    """Whether memory in use on those GPUs is what it was before any program was there."""
    more = {uuid: used[uuid] - before.get(uuid, 0) for uuid in uuids if uuid in used}
    text = "; ".join(f"{short(uuid)} {size / MIB:+.0f} MiB against before" for uuid, size in more.items())
    return Seen(text or "NVML does not answer", bool(more) and all(size < SPARE_BYTES for size in more.values()))


def gone(pids: Collection[int], gpus: Sequence[Json], living: Collection[int]) -> Seen:
    """Whether none of the processes lives, and none is in NVML's list."""
    on_gpus = {process["pid"] for gpu in gpus for process in gpu["processes"]} & set(pids)
    text = f"of {len(pids)} programs {len(living)} live, {len(on_gpus)} stand in NVML's list"
    return Seen(text, bool(pids) and not living and not on_gpus)


def proven(workers: Sequence[Json], events: Sequence[Json]) -> Seen:
    """Whether no worker was restarted, or is degraded, because it does not compute where it was placed."""
    doubts = [event for event in events if event["event"] in ("worker_misplaced", "worker_degraded")]
    degraded = [row["id"] for row in workers if row["degraded"]]
    restarts = sum(row["restarts"] for row in workers)
    causes = "".join(f"; {event['worker']}: {event['cause']}" for event in doubts)
    text = f"{len(workers)} workers, {len(degraded)} degraded, {restarts} restarts{causes}"
    return Seen(text, bool(workers) and not doubts and not degraded and restarts == 0)


def again(workers: Sequence[Json], old: Collection[int], programs: Mapping[str, Report]) -> Seen:
    """Whether each worker is ready, in another process than the pids `old`, with a program that has reported."""
    texts, good = list[str](), bool(workers)
    for row in workers:
        new = row["state"] in READY and row["pid"] not in old and row["id"] in programs
        good = good and new
        texts.append(f"{row['id']} {row['state']}" + (" in a new process" if new else ""))
    return Seen(", ".join(texts) or "no worker", good)


def untouched(workers: Sequence[Json], before: Mapping[str, int]) -> Seen:
    """Whether the workers of `before` (their processes then) are ready in the same processes."""
    if not before:
        return Seen("there is no other GPU here", good=True)
    now = {row["id"]: row["pid"] for row in workers if row["state"] in READY}
    same = [name for name, pid in before.items() if now.get(name) == pid]
    return Seen(f"{len(same)} of {len(before)} in the same process", len(same) == len(before))

"""What `chimera doctor` makes of the machine: GPUs, Ollama, disks, memory, limits, clock. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from supervisor.doctor import Finding, fault, ok, size, warning
from supervisor.gpu_reading import NO_DEVICES, NO_LIBRARY, GpuReading

# The oldest Ollama that the tests run with: the CPU build's.
OLDEST_OLLAMA = (0, 5, 4)
# Below these a file system counts as nearly full, and as full.
FEW_BYTES = 1024**3
NO_BYTES = 64 * 1024**2
# A worker's serve and its runner have some dozens of threads.
TASKS_PER_WORKER = 100


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What is known of the GPUs. `cards`: NVIDIA's display devices on the PCI bus.

    `nodes`: which files of /dev/nvidia* the service's user may open (None: not known). `persistent`: persistence
    mode by GPU index. `wanted`: what of WORKERS cannot be had.
    """

    cards: int
    reading: GpuReading
    nodes: Mapping[str, bool | None] = field(default_factory=dict)
    persistent: Mapping[int, bool] = field(default_factory=dict)
    wanted: Sequence[str] = ()


def gpus(facts: GpuFacts, user: str) -> list[Finding]:
    """Judge the driver and the GPUs; `user` runs the workers."""
    reading = facts.reading
    found = [fault("gpu", text, "nvidia-smi -L lists those that there are; set WORKERS") for text in facts.wanted]
    if not reading.gpus and not facts.cards and reading.fault in (NO_LIBRARY, NO_DEVICES):
        return found or [ok("gpu", "no NVIDIA GPU; workers run on the CPU")]
    if reading.fault is not None and not reading.gpus:
        if reading.fault == NO_LIBRARY:
            advice = "install NVIDIA's driver, and reboot; until then workers run on the CPU"
        else:
            advice = "look at nvidia-smi, and at dmesg | grep -i nvrm; a reboot loads the driver anew"
        return [
            *found,
            fault("gpu", f"{facts.cards} NVIDIA GPUs on the bus, but none can be used: {reading.fault}", advice),
        ]
    names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in reading.gpus)
    found += [
        fault(
            "gpu",
            f"GPU {gpu.index}{f' ({gpu.uuid})' if gpu.uuid else ''}: {gpu.fault}",
            "look at nvidia-smi and dmesg | grep -i xid",
        )
        for gpu in reading.gpus
        if gpu.fault is not None
    ]
    found += _nodes(facts.nodes, user)
    loose = [str(index) for index, on in facts.persistent.items() if not on]
    if loose:
        found.append(
            warning(
                "gpu",
                f"persistence mode is off (GPU {', '.join(loose)}): the driver starts anew with each first use",
                "sudo systemctl enable --now nvidia-persistenced",
            )
        )
    return found or [ok("gpu", f"{names}; driver {reading.driver_version}")]


def _nodes(nodes: Mapping[str, bool | None], user: str) -> list[Finding]:
    found: list[Finding] = []
    if not any(name.endswith("/nvidia-uvm") for name in nodes):
        found.append(
            warning(
                "gpu",
                "there is no /dev/nvidia-uvm, without which CUDA finds no GPU",
                "sudo nvidia-modprobe -c 0 -u (the service does it at its start)",
            )
        )
    shut = [name for name, opens in nodes.items() if opens is False]
    if shut:
        found.append(
            fault(
                "gpu",
                f"{user} may not open {', '.join(shut)}",
                f"put {user} into the group that owns them (ls -l /dev/nvidia*)",
            )
        )
    return found


def ollama(path: str, said: str | None, problem: str | None, *, gpu: bool, cuda: bool) -> list[Finding]:
    """Judge the program. `said`: what `--version` printed, `problem`: why it printed nothing.

    `gpu`: there is one to be used; `cuda`: libraries for it lie beside the program.
    """
    if problem is not None:
        return [fault("ollama", f"{path} cannot be run: {problem}", "install Ollama anew, or set OLLAMA_BIN")]
    version = version_in(said or "")
    if version is None:
        return [warning("ollama", f"{path} does not say its version", "look at it: ollama --version")]
    name = f"{path}, version {'.'.join(map(str, version))}"
    if version < OLDEST_OLLAMA:
        oldest = ".".join(map(str, OLDEST_OLLAMA))
        return [
            warning("ollama", f"{name}, is older than {oldest}, the oldest known to work", "install a newer Ollama")
        ]
    if gpu and not cuda:
        return [
            warning(
                "ollama",
                f"{name}, has no CUDA libraries beside it: it computes on the CPU",
                "install Ollama as a whole, with its lib/ollama folder: https://ollama.com/download",
            )
        ]
    return [ok("ollama", name)]


def version_in(said: str) -> tuple[int, int, int] | None:
    """Return the version that `ollama --version` printed, whatever else it said."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, by what of ours lies on it. `inodes` None: it does not count them."""

    holds: tuple[str, ...]
    free_bytes: int
    total_bytes: int
    free_inodes: int | None = None
    total_inodes: int | None = None


def disks(rows: Sequence[Disk], logs_bytes: int, logs_most_bytes: int, missing_bytes: int) -> list[Finding]:
    """Judge the room. `missing_bytes`: of required models that are not in the store yet, as far as that is known."""
    found: list[Finding] = []
    for disk in rows:
        told = f"{', '.join(disk.holds)}: {size(disk.free_bytes)} free of {size(disk.total_bytes)}"
        free_up = "free some space, or set the folder to another disk"
        need = missing_bytes if "store" in disk.holds else 0
        logs = max(0, logs_most_bytes - logs_bytes) if "LOG_DIR" in disk.holds else 0
        few_inodes = disk.free_inodes is not None and disk.free_inodes * 100 < (disk.total_inodes or 0)
        if disk.free_bytes < NO_BYTES or disk.free_inodes == 0:
            what = "full" if disk.free_inodes != 0 else "full: no inode is free"
            found.append(fault("disk", f"{told}; {what}", free_up))
        elif need > disk.free_bytes:
            found.append(fault("disk", f"{told}; the required models need {size(need)} more", free_up))
        elif disk.free_bytes < FEW_BYTES or few_inodes:
            found.append(warning("disk", f"{told}; nearly full{' (inodes)' if few_inodes else ''}", free_up))
        elif logs > disk.free_bytes:
            found.append(
                warning("disk", f"{told}; logs may take {size(logs)} more", f"{free_up}, or lower LOG_MAX_BYTES")
            )
        else:
            found.append(ok("disk", told))
    return found


def memory(available_bytes: int, total_bytes: int, swap_used_bytes: int, need_bytes: int) -> list[Finding]:
    """Judge the host's memory; `need_bytes`: what workers that are still to start load into it."""
    told = f"{size(available_bytes)} of {size(total_bytes)} available"
    if need_bytes > available_bytes:
        return [
            warning(
                "memory",
                f"{told}; the workers on the CPU load {size(need_bytes)}",
                "fewer workers on the CPU (WORKERS), or a smaller first REQUIRED_MODEL",
            )
        ]
    if swap_used_bytes > total_bytes // 4:
        return [
            warning(
                "memory",
                f"{told}; {size(swap_used_bytes)} are in swap, which is slow",
                "look who uses it (top, sorted by memory); WORKER_MEMORY_LIMIT_BYTES bounds workers",
            )
        ]
    return [ok("memory", told)]


def limits(connections: int, wanted: int, tasks: int | None, workers: int) -> list[Finding]:
    """Judge open files, as the `connections` that they allow of `wanted` ones, and tasks (None: no limit)."""
    found: list[Finding] = []
    if connections < wanted:
        found.append(
            warning(
                "limits",
                f"open files are enough for {connections} of {wanted} connections",
                "raise the limit (ulimit -Hn, LimitNOFILE=), or lower MAX_CONNECTIONS",
            )
        )
    if tasks is not None and tasks < TASKS_PER_WORKER * (workers + 2):
        found.append(
            warning(
                "limits",
                f"{tasks} tasks are few for {workers} workers",
                "raise the limit (ulimit -u, TasksMax= in systemd)",
            )
        )
    return found or [ok("limits", f"open files for {connections} connections, {tasks or 'any number of'} tasks")]


def clock(now_s: float, installed_s: float, *, synchronised: bool | None) -> list[Finding]:
    """Judge the clock on the wall, seconds since 1970; `installed_s`: when this Chimera was put here."""
    if now_s < installed_s - 86400:
        return [
            fault(
                "clock",
                "it stands before the day on which Chimera was installed: no certificate will be valid",
                "set it: sudo timedatectl set-ntp true",
            )
        ]
    if synchronised is False:
        return [warning("clock", "it is not synchronised", "sudo timedatectl set-ntp true")]
    return [ok("clock", "synchronised" if synchronised else "plausible; nobody says whether it is synchronised")]

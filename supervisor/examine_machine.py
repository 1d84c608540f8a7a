"""What `chimera doctor` reads of the machine: GPUs, Ollama, disks, memory, limits, clock. All of it blocks."""

import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from supervisor import doctor_machine
from supervisor.doctor import Finding, fault, unseen
from supervisor.doctor_machine import Disk, GpuFacts
from supervisor.embedded import MODEL_BYTES
from supervisor.errors import SupervisorError
from supervisor.examine import Subject, asked, may, run_as
from supervisor.examine_service import required, store_of
from supervisor.locate import Ollama, locate_ollama
from supervisor.log_keeper import look
from supervisor.nvml import Nvml, persistence_modes
from supervisor.placement import wanted_fleet

PCI = Path("/sys/bus/pci/devices")
DEVICES = Path("/dev")
# PCI's numbers: who made it, and the class of things that show or compute (03).
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"

# What of MAX_CONNECTIONS a limit of open files allows: (wanted, soft, hard) -> (connections, descriptors).
Bound = Callable[[int, int, int], tuple[int, int]]


def gpus(subject: Subject) -> Sequence[Finding]:
    """The driver, NVML, the device files."""
    nvml = Nvml(retry_s=0.0)
    reading = nvml.read(time.monotonic())
    persistent = persistence_modes() if reading.gpus else {}
    nvml.close()
    nodes = {str(path): may(subject.account, path, "rw") for path in device_nodes(DEVICES)} if reading.gpus else {}
    named = subject.settings.workers
    wanted = wanted_fleet(named, reading.gpus, 1)[1] if named is not None else []
    return doctor_machine.gpus(GpuFacts(cards_on(PCI), reading, nodes, persistent, wanted), subject.account.name)


def cards_on(bus: Path) -> int:
    """Return how many of NVIDIA's display devices there are; 0 where nobody tells."""
    found = 0
    for device in bus.glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)
    return found


def device_nodes(folder: Path) -> list[Path]:
    """Return the device files that CUDA opens: nvidia0, …, nvidiactl, nvidia-uvm."""
    return sorted(path for path in folder.glob("nvidia*") if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", path.name))


def ollama(subject: Subject) -> Sequence[Finding]:
    """The program that would be run."""
    try:
        found = locate_ollama(subject.settings, subject.environ)
    except SupervisorError as error:
        return [fault("ollama", str(error), "install Ollama, or set OLLAMA_BIN")]
    # where nobody answers: what is asked for is the program's own version
    environ = dict(subject.environ) | {"HOME": str(subject.account.home), "OLLAMA_HOST": "127.0.0.1:1"}
    done = run_as([str(found.path), "--version"], subject.account, environ)
    if done is None:
        problem: str | None = f"{subject.account.name} cannot start it, or it does not end"
    else:
        problem = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]
    said = None if done is None else done.stdout + done.stderr
    gpu = cards_on(PCI) > 0 and found.embedded is None
    return doctor_machine.ollama(str(found.path), said, problem, gpu=gpu, cuda=has_cuda(found))


def has_cuda(found: Ollama) -> bool:
    """Say whether CUDA's libraries lie where Ollama looks for them: in lib/ollama beside its folder, or beside it."""
    program = found.path.resolve()
    folders = (program.parent.parent / "lib" / "ollama", program.parent / "lib" / "ollama", program.parent)
    return any(next(folder.glob(pattern), None) for folder in folders for pattern in ("*cuda*", "*/*cuda*"))


def disks(subject: Subject) -> Sequence[Finding]:
    """The room where the store, the state and the logs lie."""
    settings = subject.settings
    places = {"store": store_of(subject), "STATE_DIR": settings.state_dir, "LOG_DIR": settings.log_dir}
    try:
        logs_bytes = sum(file.size_bytes for file in look(settings.log_dir))
    except OSError:
        logs_bytes = 0
    missing = [name for name, count in required(subject).bytes_of.items() if count is None]
    needed = MODEL_BYTES if missing and _embedded(subject) else 0  # of any other model nobody here knows the size
    return doctor_machine.disks(_file_systems(places.items()), logs_bytes, settings.log_max_bytes, needed)


def _embedded(subject: Subject) -> bool:
    try:
        return locate_ollama(subject.settings, subject.environ).embedded is not None
    except SupervisorError:
        return False


def _file_systems(places: Iterable[tuple[str, Path]]) -> list[Disk]:
    holds: dict[int, tuple[Path, list[str]]] = {}
    for name, path in places:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        holds.setdefault(there.stat().st_dev, (there, []))[1].append(name)
    rows: list[Disk] = []
    for there, names in holds.values():
        room = os.statvfs(there)
        inodes = (room.f_favail, room.f_files) if room.f_files else (None, None)
        rows.append(Disk(tuple(names), room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize, *inodes))
    return rows


def memory(subject: Subject) -> Sequence[Finding]:
    """The host's memory, and what workers on the CPU need of it."""
    there, swap = psutil.virtual_memory(), psutil.swap_memory()
    sizes = [count for count in required(subject).bytes_of.values() if count is not None]
    on_cpu = sum(count for where, count in subject.settings.workers or () if where.lower() == "cpu")
    need = sizes[0] * on_cpu if sizes and subject.pid is None else 0
    return doctor_machine.memory(there.available, there.total, swap.used, need)


def limits(subject: Subject, bound: Bound) -> Sequence[Finding]:
    """Open files and tasks: of the Chimera that runs, else of the unit, else of who asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tasks: int | None = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    unit = subject.unit
    if unit:
        soft = hard = _count(unit.get("LimitNOFILE", "")) or -1
        tasks = _count(unit.get("TasksMax", ""))
    elif subject.pid is not None:
        try:
            soft, hard = psutil.Process(subject.pid).rlimit(psutil.RLIMIT_NOFILE)
        except psutil.AccessDenied:
            return [unseen("limits", f"process {subject.pid}")]
    connections, _ = bound(subject.settings.max_connections, soft, hard)
    workers = sum(count for _, count in subject.settings.workers or ()) or 1
    return doctor_machine.limits(
        connections, subject.settings.max_connections, None if tasks in (None, resource.RLIM_INFINITY) else tasks,
        workers,
    )  # fmt: skip


def _count(text: str) -> int | None:
    """Return a limit as systemctl shows it, None for no limit (infinity, or all of 64 bits)."""
    return int(text) if text.isdecimal() and int(text) < 2**63 else None


def clock(_: Subject) -> Sequence[Finding]:
    """The clock on the wall."""
    said = asked(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    synchronised = {"yes": True, "no": False}.get((said or "").strip())
    return doctor_machine.clock(
        datetime.now(UTC).timestamp(), Path(__file__).stat().st_mtime, synchronised=synchronised
    )

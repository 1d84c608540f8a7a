"""What faults need of Linux: processes looked at and signalled, a memory cgroup, a full disk, a shifted clock.

Nothing here outlives its block, and no process is touched but those that a scenario names by pid.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CLOCK_SHIM = ROOT / "tests" / "fakes" / "clockshift.c"
CGROUPS = Path("/sys/fs/cgroup")
HOG = "held = bytearray(64 * 1024**2); print('held', flush=True)"
HOG_TIMEOUT_S = 20.0


def boot_s() -> float:
    """Seconds since boot: the clock of a process's start time in /proc (proc(5), field 22)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started_boot_s(pid: int) -> float | None:
    """When a process started, in seconds since boot (to 10 ms); None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alive(process: psutil.Process) -> bool:
    """Whether this very process is there and no zombie, which holds no memory."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """The memory that the living ones of these processes have."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if alive(process):
                total += process.memory_info().rss
    return total


def signalled(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to this very process; nothing happens when it is gone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def signalled_pid(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that a worker's row has just named; nothing happens when it is gone."""
    with suppress(psutil.NoSuchProcess):
        signalled(psutil.Process(pid), number)


# --- Memory


def _memory_cgroup() -> Path | None:
    """Where a memory cgroup of our own may be made; None when this machine or user allows none."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent = CGROUPS / "memory" / path.lstrip("/")
            return parent if os.access(parent, os.W_OK) else None
    subtree = CGROUPS / "cgroup.subtree_control"
    there = subtree.exists() and "memory" in subtree.read_text(encoding="utf-8").split()
    return CGROUPS if there and os.access(CGROUPS, os.W_OK) else None


@contextmanager
def short_of_memory(folder_name: str, limit_bytes: int) -> Iterator[Path | None]:
    """Give a memory cgroup with a limit; None where none can be made. Processes in it go back to its parent."""
    parent = _memory_cgroup()
    if parent is None:
        yield None
        return
    group = parent / folder_name
    group.mkdir()
    try:
        legacy = group / "memory.limit_in_bytes"
        (legacy if legacy.exists() else group / "memory.max").write_text(str(limit_bytes))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text(encoding="utf-8").split():
            with suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def oom_kill(group: Path, victim: psutil.Process) -> None:
    """Have the kernel's OOM killer end `victim`: it and a hog share a cgroup that is too small, it is to go first."""
    Path(f"/proc/{victim.pid}/oom_score_adj").write_text("1000")
    (group / "cgroup.procs").write_text(str(victim.pid))
    into = ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(group), sys.executable, "-ISc", HOG]
    # the kernel goes on to the hog, whose memory it is, once the victim's end has freed too little
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(into, check=False, capture_output=True, timeout=HOG_TIMEOUT_S)


# --- Disk and clock


@contextmanager
def full_disk(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Make `folder` a place that takes not one byte more; yields how that was done.

    As root a small tmpfs, filled; otherwise the files `names` are links to /dev/full, whose writes fail alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    try:
        if not mounted:
            for name in names:
                (folder / name).symlink_to("/dev/full")
        yield "a tmpfs of 64 KiB" if mounted else "links to /dev/full"
    finally:
        if mounted:
            _run("umount", "--lazy", str(folder))


def fill(folder: Path) -> None:
    """Write into a folder until its disk is full."""
    with suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        for _ in range(1024):
            file.write(b"x" * 4096)


def _run(*argv: str) -> bool:
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


class ShiftedClock:
    """A wall clock for Chimera and its children alone, which the harness moves."""

    def __init__(self, folder: Path) -> None:
        """Compile the shim; CalledProcessError if cc fails."""
        self._library, self._file = folder / "clockshift.so", folder / "clockshift"
        flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
        subprocess.run(["cc", *flags, "-o", self._library, CLOCK_SHIM, "-ldl"], check=True)
        self.jump(0)

    def environ(self) -> dict[str, str]:
        """The variables with which a process has this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCKSHIFT": str(self._file)}

    def jump(self, seconds: int) -> None:
        """From now on the clock is so far from the machine's. In place: the file is mapped."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

"""What processes have cost, from the kernel's accounts: CPU (user and system) and memory.

/proc/PID/stat counts CPU in hundredths of a second, too coarse for a run of a second. Each process has a clock of its
own CPU time (clock_getcpuclockid(3)), in nanoseconds, threads that have ended included.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

# CPUCLOCK_SCHED of include/linux/posix-timers.h: what the scheduler has counted, user and system.
_SCHED = 2


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that these processes have used together, without their children.

    What a process that has ended meanwhile used is not in it.
    """
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime((~pid << 3) | _SCHED)
        except OSError:
            continue
    return total


def with_children(pid: int) -> tuple[int, ...]:
    """Return a process and all its living descendants; nothing when it has ended."""
    try:
        process = psutil.Process(pid)
        return (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one or more processes.

    `anonymous_bytes`: RssAnon, their own pages in memory. `proportional_bytes`: Pss, with their share of pages that
    others have too (libraries, what was there before a fork).
    """

    anonymous_bytes: int
    proportional_bytes: int


def memory(pids: Iterable[int]) -> Memory:
    """Return the memory of these processes together; one that has ended has none."""
    anonymous = proportional = 0
    for pid in pids:
        try:
            anonymous += field_bytes(Path(f"/proc/{pid}/status").read_text(), "RssAnon")
            proportional += field_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Memory(anonymous, proportional)


def field_bytes(text: str, name: str) -> int:
    """Return a field of /proc/PID/status or smaps_rollup (in kB there), in bytes; 0 when it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0

"""What /proc says of processes: one cheap pass for all of them (proc(5)). Blocks; call it in a thread.

Sixty-four workers are looked at each second: so no psutil objects here, one read per process (17 µs), and the rarer
question of private memory apart. A machine with eight GPUs has thousands of processes, nearly all of them kernel
threads: a `Census`, taken again and again, soon passes over those that are none of ours.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
DEAD = frozenset({"Z", "X"})
# A child is for a moment in the group of the process that started it: once is not enough.
_OUTSIDE_LOOKS = 3
# It is gone, or /proc is mounted so that others' processes are not ours to see (hidepid, proc(5)).
_NOT_THERE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Proc:
    """One process. `state` is proc(5)'s letter: R, S, D, T (stopped), t (traced), Z (zombie), X."""

    pid: int
    ppid: int
    pgid: int
    state: str
    cpu_ticks: int
    start_ticks: int
    rss_bytes: int


def parse_stat(text: bytes) -> Proc:
    """Read one /proc/PID/stat. The name may hold anything, parentheses too: fields begin after the last one."""
    head, _, rest = text.rpartition(b") ")
    pid = int(head.partition(b" ")[0])
    fields = rest.split()
    return Proc(
        pid=pid,
        ppid=int(fields[1]),
        pgid=int(fields[2]),
        state=fields[0].decode("ascii"),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def scan(proc: Path = PROC) -> dict[int, tuple[Proc, ...]]:
    """Return every living process by process group; zombies are none. Raises OSError when /proc cannot be read."""
    return Census(proc).take(None)


class Census:
    """Process groups, looked for again and again among all the processes of the machine.

    A process that has been seen outside the wanted groups a few times is not read again: it cannot come in, for
    setpgid(2) does not lead from one session into another, and each worker begins a session. It is known by its
    number and its inode in /proc, which a later process of the same number does not share.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._wanted: frozenset[int] = frozenset()
        self._outside: dict[tuple[str, int], int] = {}  # how often each was seen outside

    def take(self, wanted: Collection[int] | None) -> dict[int, tuple[Proc, ...]]:
        """Return the living processes of the wanted groups (None: of all), by group; zombies are none.

        Raises OSError when /proc cannot be read, such as for want of a file descriptor: that says nothing about
        the processes.
        """
        before = self._outside
        if wanted is not None:
            if not self._wanted.issuperset(wanted):
                before = {}  # what was outside may belong to a new group
            self._wanted = frozenset(wanted)
        self._outside = {}
        groups: dict[int, list[Proc]] = {}
        with os.scandir(self._proc) as entries:
            known = [(entry.name, entry.inode()) for entry in entries if entry.name.isdecimal()]
        for key in known:
            seen = before.get(key, 0)
            if seen >= _OUTSIDE_LOOKS:
                self._outside[key] = seen
                continue
            found = stat_of(key[0], self._proc)
            if found is None:
                continue
            if wanted is not None and found.pgid not in self._wanted:
                self._outside[key] = seen + 1
            elif found.state not in DEAD:
                groups.setdefault(found.pgid, []).append(found)
        return {pgid: tuple(members) for pgid, members in groups.items()}


def stat_of(pid: int | str, proc: Path = PROC) -> Proc | None:
    """Return one process, None when it is gone (or hidden from us). Raises OSError when /proc cannot be read."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - Path.open costs as much again
            return parse_stat(file.read(4096))
    except _NOT_THERE:
        return None


def private_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Return a process's own memory, in RAM and in swap; None when it is gone. Raises OSError like `stat_of`.

    RssAnon and VmSwap: what is shared or read from files is not a leak, and what a leak has grown to may long have
    been swapped out (ollama#18106).
    """
    try:
        text = (proc / str(pid) / "status").read_bytes()
    except _NOT_THERE:
        return None
    total = 0
    for line in text.splitlines():
        if line.startswith((b"RssAnon:", b"VmSwap:")):
            total += int(line.split()[1]) * 1024
    return total

"""What /proc says of processes: one cheap pass for all of them (proc(5)). Blocks; call it in a thread.

Sixty-four workers are looked at each second: so no psutil objects here, one read per process, and the rarer question
of private memory apart.
"""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
DEAD = frozenset({"Z", "X"})


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
    """Return every living process by process group; zombies are none."""
    groups: dict[int, list[Proc]] = {}
    with os.scandir(proc) as entries:
        names = [entry.name for entry in entries if entry.name.isdecimal()]
    for name in names:
        found = stat_of(name, proc)
        if found is not None and found.state not in DEAD:
            groups.setdefault(found.pgid, []).append(found)
    return {pgid: tuple(members) for pgid, members in groups.items()}


def stat_of(pid: int | str, proc: Path = PROC) -> Proc | None:
    """Return one process, None when it is gone."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - Path.open costs as much again
            return parse_stat(file.read(4096))
    except (FileNotFoundError, ProcessLookupError):
        return None


def private_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Return a process's own memory, in RAM and in swap; None when it is gone.

    RssAnon and VmSwap: what is shared or read from files is not a leak, and what a leak has grown to may long have
    been swapped out (ollama#18106).
    """
    try:
        text = (proc / str(pid) / "status").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    total = 0
    for line in text.splitlines():
        if line.startswith((b"RssAnon:", b"VmSwap:")):
            total += int(line.split()[1]) * 1024
    return total

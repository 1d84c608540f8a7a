"""Whether the kernel's out-of-memory killer ended a process: for the name of the fault, never to decide a restart.

Certain when the kernel's log names the process; probable when a process was killed and a count of such kills has
risen meanwhile: the whole machine's (/proc/vmstat, since Linux 4.13), and our own cgroup's, memory.events in v2 (with
all below it) or memory.oom_control in v1 (without). A service manager does not tell: a kill in a delegated sub-cgroup
is none of the service's own. Nothing here raises: a machine may keep all of it from us.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from supervisor.cgroup import OWN, oom_kills_in, own_cgroup

VMSTAT = Path("/proc/vmstat")
KMSG = Path("/dev/kmsg")
MEMORY_V1 = Path("/sys/fs/cgroup/memory")
_RECORD_BYTES = 8192  # the kernel gives one record a read
_MOST_RECORDS = 20_000
# oom-kill:constraint=CONSTRAINT_MEMCG,...,task=ollama,pid=4711,uid=0
# Memory cgroup out of memory: Killed process 4711 (ollama) total-vm:...
_VICTIM = re.compile(
    r"oom-kill:.*\bpid=(\d{1,9})\b|[Oo]ut of memory.*: Killed process (\d{1,9})\b|^Killed process (\d{1,9})\b"
)


@dataclass(frozen=True, slots=True)
class OomMark:
    """How many processes had been killed for want of memory at one moment; None where that cannot be read.

    `cgroup` counts those of our own cgroup, and below it where `covers` is true: then it misses no worker.
    """

    machine: int | None = None
    cgroup: int | None = None
    covers: bool = False

    def risen(self, now: "OomMark") -> int | None:
        """Return how many there may have been of ours until `now`, None when nothing tells."""
        machine = None if self.machine is None or now.machine is None else max(0, now.machine - self.machine)
        cgroup = None if self.cgroup is None or now.cgroup is None else max(0, now.cgroup - self.cgroup)
        if cgroup is None or machine is None:
            return machine if cgroup is None else cgroup
        return cgroup if self.covers else max(cgroup, machine)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a machine tells of OOM kills: the files, any of which may be absent or kept from us."""

    vmstat: Path = VMSTAT
    kmsg: Path = KMSG
    events_v2: Path | None = None
    control_v1: Path | None = None


@cache
def own_sources() -> Sources:
    """Return the files of this machine and of our own cgroups."""
    return sources_of(own_cgroup(), OWN)


def sources_of(v2: Path | None, own: Path, memory_v1: Path = MEMORY_V1) -> Sources:
    """Return the files for a process with these cgroups: in `own` v1's are lines like 4:memory:/path (cgroups(7))."""
    v1 = None
    try:
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                v1 = memory_v1 / path.lstrip("/") / "memory.oom_control"
    except (OSError, ValueError):
        pass
    return Sources(events_v2=v2 / "memory.events" if v2 is not None else None, control_v1=v1)


def mark(sources: Sources | None = None) -> OomMark:
    """Return the mark of this moment. Cheap: two small files, 40 µs."""
    files = sources or own_sources()
    machine = oom_kills_in(files.vmstat)
    if files.events_v2 is not None and (kills := oom_kills_in(files.events_v2)) is not None:
        return OomMark(machine, kills, covers=True)
    return OomMark(machine, oom_kills_in(files.control_v1) if files.control_v1 is not None else None)


def victims(records: Iterable[str]) -> list[int]:
    """Return the processes that the kernel's log names as killed for want of memory, oldest first.

    One kill is told in two records, of which the first may be left out when kills come thick (mm/oom_kill.c).
    """
    named: list[int] = []
    for record in records:
        found = _VICTIM.search(record.partition(";")[2] or record)  # "level,sequence,time,flags;text"
        if found is not None:
            pid = int(next(part for part in found.groups() if part))
            if not named or named[-1] != pid:
                named.append(pid)
    return named


def killed(pids: Collection[int], since: OomMark, sources: Sources | None = None) -> str | None:
    """Say that processes, which were ended by SIGKILL, were victims of the OOM killer; None when nothing says so.

    `since` is a mark taken before they were. Blocks some milliseconds.
    """
    files = sources or own_sources()
    now = mark(files)
    risen = since.risen(now)
    if risen == 0:
        return None
    named = victims(_kernel_log(files.kmsg))
    if since.machine is not None and now.machine is not None:
        # The log holds old kills too, of processes whose numbers may be others' by now: only so many are new.
        named = named[-max(1, now.machine - since.machine) :]
    pid = next((pid for pid in reversed(named) if pid in pids), None)
    if pid is not None:
        return f"OOM: the kernel ended process {pid} because memory ran out"
    if risen is not None:
        return "probably OOM: a process was killed, and the kernel has ended one because memory ran out"
    return None


def _kernel_log(kmsg: Path) -> Iterable[str]:
    """Yield what the kernel's log still holds, oldest first (Documentation/ABI/testing/dev-kmsg)."""
    try:
        file = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(file, _RECORD_BYTES)
            except BrokenPipeError:  # records were overwritten meanwhile: the next read goes on after them
                continue
            except OSError:  # BlockingIOError: the end
                return
            if not record:
                return
            yield from record.decode("utf-8", "replace").splitlines()
    finally:
        os.close(file)

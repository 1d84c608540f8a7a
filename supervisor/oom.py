"""Whether the kernel's out-of-memory killer ended a process: for the name of the fault, never to decide a restart.

Certain when the kernel's log names the process, probable when a process was killed and the kernel's own counter of
such kills has risen meanwhile (/proc/vmstat, oom_kill, since Linux 4.13). A service manager does not tell: a kill in a
delegated sub-cgroup is none of the service's own. Nothing here raises: a machine may keep all of it from us.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192  # the kernel gives one record a read
_MOST_RECORDS = 20_000
# oom-kill:constraint=CONSTRAINT_MEMCG,...,task=ollama,pid=4711,uid=0
# Memory cgroup out of memory: Killed process 4711 (ollama) total-vm:...
_NAMES = re.compile(r"oom-kill:.*\bpid=(\d+)|[Oo]ut of memory.*Killed process (\d+)|^Killed process (\d+)")


@dataclass(frozen=True, slots=True)
class OomMark:
    """Where the kernel's counts stood at one moment; None where they cannot be read."""

    kills: int | None


def mark(vmstat: Path = VMSTAT) -> OomMark:
    """Return the mark of this moment. Cheap: one small file."""
    try:
        text = vmstat.read_text(encoding="ascii")
    except OSError:
        return OomMark(None)
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return OomMark(int(found[1]) if found else None)


def named_in(records: Iterable[str], pids: Collection[int]) -> int | None:
    """Return the first of the processes that the kernel's log names as killed for lack of memory."""
    for record in records:
        found = _NAMES.search(record.partition(";")[2] or record)  # "level,sequence,time,flags;text"
        if found is not None:
            pid = int(next(part for part in found.groups() if part))
            if pid in pids:
                return pid
    return None


def killed(pids: Collection[int], since: OomMark, vmstat: Path = VMSTAT, kmsg: Path = KMSG) -> str | None:
    """Say that processes, which were ended by SIGKILL, were victims of the OOM killer; None when nothing says so.

    `since` is a mark taken before. Blocks some milliseconds.
    """
    now = mark(vmstat)
    if since.kills is not None and now.kills is not None and now.kills <= since.kills:
        return None
    pid = named_in(_kernel_log(kmsg), pids)
    if pid is not None:
        return f"OOM: the kernel ended process {pid} because memory ran out"
    if since.kills is not None and now.kills is not None:
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

"""A cgroup for each worker, where the service manager has delegated one to us: so that nothing escapes its end.

A process can leave its process group (setsid), never its cgroup; writing 1 to cgroup.kill ends all of them at once
(Linux 5.14, Documentation/admin-guide/cgroup-v2.rst). systemd delegates with Delegate=yes and marks the directory
with the extended attribute user.delegate (or trusted.delegate) = 1. Without that, cgroups are left alone: they
belong to whoever made them. Nothing here raises where cgroups are not to be had.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger("cgroup")

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")
# The shell is replaced by the worker: it only puts itself, and so what it becomes, into the cgroup first. Where that
# is refused the worker runs all the same, and its log has the shell's complaint.
_JOIN = 'echo $$ > "$0"; exec "$@"'


@dataclass(frozen=True, slots=True)
class WorkerCgroup:
    """The cgroup of one worker's processes."""

    path: Path

    def joined(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Return a command that joins the cgroup and then becomes `argv`."""
        return ("/bin/sh", "-c", _JOIN, str(self.path / "cgroup.procs"), *argv)

    def kill(self) -> None:
        """End every process in it by SIGKILL, those that left their process group too."""
        with suppress(OSError):  # an older kernel: the process group has been killed already
            (self.path / "cgroup.kill").write_text("1")

    def pids(self) -> list[int]:
        """Return the processes in it."""
        try:
            return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def remove(self) -> None:
        """Remove it; one that still has a process stays."""
        with suppress(OSError):
            self.path.rmdir()


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The delegated cgroup, in which each worker gets its own."""

    root: Path

    def of(self, worker_id: str) -> WorkerCgroup | None:
        """Return a worker's cgroup, made if it is not there; None, once warned of, where it cannot be made."""
        path = self.root / f"worker-{worker_id}"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            log.warning("a worker runs without a cgroup of its own", cgroup=str(path), error=error.strerror)
            return None
        return WorkerCgroup(path)


def find_delegated(environ: Mapping[str, str], own: Path = OWN, mounts: Path = MOUNTS) -> Cgroups | None:
    """Return the cgroup that systemd has delegated to this very service, None when it has not. Blocks a little."""
    if "INVOCATION_ID" not in environ:  # systemd.exec(5): not a service
        return None
    root = own_cgroup(own, mounts)
    if (
        root is None
        or not (_is_delegated(root) or _is_ours_alone(root))
        or not os.access(root / "cgroup.procs", os.W_OK)
    ):
        return None
    log.info("each worker has a cgroup of its own", root=str(root))
    return Cgroups(root)


def own_cgroup(own: Path = OWN, mounts: Path = MOUNTS) -> Path | None:
    """Return the directory of our own cgroup v2, None where there is none (the root is nobody's). Blocks a little."""
    try:
        inside = _own_path(own.read_text(encoding="utf-8"))
        return None if inside in (None, "/") else _mounted_at(mounts.read_text(encoding="utf-8"), inside)
    except OSError:
        return None


def oom_kills_in(events: Path) -> int | None:
    """Return the count of OOM kills in a cgroup's memory.events (v2) or memory.oom_control (v1), None without one."""
    try:
        text = events.read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _own_path(cgroup: str) -> str | None:
    """Return our path in cgroup v2: cgroups(7), the line that begins with 0::."""
    for line in cgroup.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return None


def _mounted_at(mountinfo: str, inside: str) -> Path | None:
    """Return where a path of cgroup v2 is mounted.

    proc(5): the fourth field is the part of the hierarchy that is mounted, the fifth where; what follows " - " begins
    with the type.
    """
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if not after.startswith("cgroup2 ") or len(fields) < 5:
            continue
        part, mount = fields[3:5]
        if part == "/" or inside == part or inside.startswith(f"{part}/"):
            return Path(_unescaped(mount)) / inside.removeprefix(part.rstrip("/")).lstrip("/")
    return None


def _unescaped(field: str) -> str:
    """Return a field of mountinfo as it is: space, tab, newline and backslash are octal there."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _is_delegated(directory: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _is_ours_alone(directory: Path) -> bool:
    """Say whether a cgroup belongs to our user, who is not root, and no other process is in it.

    systemd gives a delegated cgroup to the service's user; older kernels (before 5.7) keep no mark of it there, and
    trusted.delegate is for root's eyes.
    """
    uid = os.geteuid()
    try:
        return uid != 0 and directory.stat().st_uid == uid and WorkerCgroup(directory).pids() == [os.getpid()]
    except OSError:
        return False

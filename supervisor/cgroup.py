"""A cgroup for each worker, where the service manager has delegated one to us: so that nothing escapes its end.

A process can leave its process group (setsid), never its cgroup; writing 1 to cgroup.kill ends all of them at once
(Linux 5.14, Documentation/admin-guide/cgroup-v2.rst). systemd delegates with Delegate=yes and marks the directory
with the extended attribute user.delegate (or trusted.delegate) = 1. Without that, cgroups are left alone: they
belong to whoever made them. Nothing here raises where cgroups are not to be had.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from supervisor.errors import StartFailed

log = structlog.get_logger("cgroup")

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")
# The shell is replaced by the worker: it only puts itself, and so what it becomes, into the cgroup first.
_JOIN = 'echo $$ > "$0" && exec "$@"'


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

    def of(self, worker_id: str) -> WorkerCgroup:
        """Return a worker's cgroup, made if it is not there. Raises StartFailed."""
        path = self.root / f"worker-{worker_id}"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise StartFailed(f"its cgroup {path} cannot be made: {error.strerror}") from error
        return WorkerCgroup(path)


def find_delegated(environ: Mapping[str, str], own: Path = OWN, mounts: Path = MOUNTS) -> Cgroups | None:
    """Return the cgroup that systemd has delegated to this very service, None when it has not. Blocks a little."""
    if "INVOCATION_ID" not in environ:  # systemd.exec(5): not a service
        return None
    try:
        mount = _mount_point(mounts.read_text(encoding="utf-8"))
        inside = _own_path(own.read_text(encoding="utf-8"))
    except OSError:
        return None
    if mount is None or inside is None or inside == "/":
        return None
    root = mount / inside.lstrip("/")
    if not _is_delegated(root) or not os.access(root / "cgroup.procs", os.W_OK):
        return None
    log.info("each worker has a cgroup of its own", root=str(root))
    return Cgroups(root)


def _mount_point(mountinfo: str) -> Path | None:
    """Return where cgroup v2 is mounted: proc(5), the fields after " - " begin with the type."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4].encode().decode("unicode_escape"))
    return None


def _own_path(cgroup: str) -> str | None:
    """Return our path in cgroup v2: cgroups(7), the line that begins with 0::."""
    for line in cgroup.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return None


def _is_delegated(directory: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False

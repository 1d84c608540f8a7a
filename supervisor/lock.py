"""One Chimera per state directory: a lock that the kernel gives back however its holder ends."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from supervisor.errors import StartRefused
from supervisor.state_file import set_aside

log = structlog.get_logger("chimera")

NAME = "chimera.pid"
_REMEDY = "it must be a folder that Chimera's user may write, or set another"
_REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space, or have the quota raised"}


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for the block; the lock file has the holder's pid.

    Raises StartRefused when another Chimera holds it, or when the directory cannot be used. Children do not
    inherit the lock (O_CLOEXEC), so that a leftover worker never keeps a new Chimera out.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = _open(state_dir / NAME)
    except OSError as error:
        raise _unusable(state_dir, error) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartRefused(
                f"another Chimera (process {pid}) runs with STATE_DIR {state_dir}; stop it, or set another"
            ) from None
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _unusable(state_dir, error) from error
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _open(path: Path) -> int:
    """Open the lock file, and make it where it is not. What is there and no file can be nobody's lock: it goes aside.

    A file that may not be opened stays: another user's Chimera may hold it.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            log.error("what was in the lock file's place is set aside", kept_as=str(set_aside(path)))
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _unusable(state_dir: Path, error: OSError) -> StartRefused:
    return StartRefused(
        f"STATE_DIR: {state_dir} cannot be used: {error.strerror}; {_REMEDIES.get(error.errno or 0, _REMEDY)}"
    )


def holder(state_dir: Path) -> int | None:
    """Return the pid of the Chimera that holds the state directory, or None when none does.

    Asked of /proc/locks (proc(5)) and not by trying the lock: the trial itself could keep a Chimera that starts
    just then from getting it. Files of two file systems may share an inode number, and whoever is named here gets
    a signal: so the file must say the same pid.
    """
    path = state_dir / NAME
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        written = path.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        # 1: FLOCK  ADVISORY  WRITE 4711 fd:01:393244 0 EOF
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        if fields[4] == written and fields[5].rpartition(":")[2] == str(found.st_ino):
            return int(fields[4])
    return None

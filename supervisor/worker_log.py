"""A worker's own log: opened for its process, set aside when it has grown, and read."""

import os
from contextlib import suppress
from pathlib import Path

# A log that has grown past this is set aside (one generation) when its worker starts.
ROTATE_BYTES = 16 * 1024**2
# How much is looked at for the line in which Ollama says where it computes.
DISCOVERY_BYTES = 64 * 1024


def open_log(log_path: Path) -> tuple[int, str | None]:
    """Open a log for appending; where that cannot be, /dev/null, and the reason. Raises OSError when neither can be.

    Straight into a file: a dead reader of a pipe kills serve by SIGPIPE, a slow one stalls it. A full disk is
    written to all the same: the log goes on by itself as soon as there is room.
    """
    try:
        _rotate(log_path)
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        problem = f"its log {log_path} cannot be written: {error.strerror}"
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), problem
    return log, f"its log {log_path} cannot be written: the disk is full" if _is_full(log) else None


def _is_full(file: int) -> bool:
    """Say whether the file system of an open file has no room for us: what is kept back is root's (statvfs(3))."""
    try:
        room = os.fstatvfs(file)
    except OSError:
        return False
    left = room.f_bfree if os.geteuid() == 0 else room.f_bavail
    return room.f_blocks > 0 and left == 0


def _rotate(log_path: Path) -> None:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log_path.stat().st_size > ROTATE_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))


def last_lines(path: Path, count: int, *, without: str | None = None, at_most_bytes: int = 256 * 1024) -> list[str]:
    """Return the last lines of a log, looking at no more than its last `at_most_bytes`; none if there is no log.

    Lines that contain `without` are passed over.
    """
    lines = tail(path, at_most_bytes=at_most_bytes)[0].decode("utf-8", "replace").splitlines()
    if without is not None:
        lines = [line for line in lines if without not in line]
    return lines[-count:] if count > 0 else []


def tail(path: Path, *, at_most_bytes: int = 256 * 1024) -> tuple[bytes, int]:
    """Return a log's last bytes, and the position at which they end; nothing and 0 if there is no log."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - at_most_bytes))
            return log.read(), log.tell()
    except (FileNotFoundError, NotADirectoryError):
        return b"", 0


def size_of(path: Path) -> int:
    """Return how long a log is, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def written_since(path: Path, begin: int, *, at_most_bytes: int = DISCOVERY_BYTES) -> str:
    """Return what a log has had added since it was `begin` bytes long (all of it, if it was begun anew).

    No more than its first `at_most_bytes`.
    """
    try:
        with path.open("rb") as log:
            log.seek(begin if begin <= size_of(path) else 0)
            return log.read(at_most_bytes).decode("utf-8", "replace")
    except OSError:
        return ""

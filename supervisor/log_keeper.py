"""Keeps all of Chimera's logs within LOG_MAX_BYTES: the workers', the primary's, its own. `LogKeeper.run` is the task.

A worker's log is set aside when its worker starts (`worker_log`). One that grows on and on meanwhile is set aside here:
copied, then emptied, because its process has it open and appends (O_APPEND) for as long as it lives. What it writes
between the two, a matter of microseconds, is lost. Between two looks a log may grow beyond its bound.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from supervisor.logfiles import write_all
from supervisor.rotation import LogFile, is_ours, orders

log = structlog.get_logger("chimera")

LOOK_EVERY_S = 10.0
# What is kept of a log where there is no room for a copy.
END_BYTES = 1024**2


class LogKeeper:
    """Looks at the sizes of the logs every so often. The only one that shortens a log."""

    def __init__(self, folder: Path, workers: Callable[[], frozenset[str]], most_bytes: Callable[[], int]) -> None:
        """`workers` says which there are, by id, `most_bytes` what LOG_MAX_BYTES is now."""
        self._folder = folder
        self._workers = workers
        self._most_bytes = most_bytes
        self._told: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Keep the bound. Ends only by cancellation, which leaves a thread that a disk holds up alone."""
        while True:
            faults = await trio.to_thread.run_sync(
                keep, self._folder, self._workers(), self._most_bytes(), abandon_on_cancel=True
            )
            for fault in sorted(faults - self._told):
                log.warning("the logs cannot be kept within LOG_MAX_BYTES", cause=fault)
            self._told = faults
            await trio.sleep(LOOK_EVERY_S)


def keep(folder: Path, workers: Iterable[str], most_bytes: int) -> frozenset[str]:
    """Set aside and remove what is too much; return what could not be done, in words. Blocks.

    A file that has gone meanwhile is as good as removed.
    """
    try:
        found = look(folder)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        return frozenset({f"{folder}: {error.strerror}"})
    faults: set[str] = set()
    todo = orders(found, workers, most_bytes)
    for names, do in ((todo.remove, Path.unlink), (todo.set_aside, set_aside)):
        for name in names:
            try:
                do(folder / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                faults.add(f"{folder / name}: {error.strerror}")
    return frozenset(faults)


def look(folder: Path) -> list[LogFile]:
    """Return Chimera's logs in a folder, links and the like left out: they are their maker's. Raises OSError."""
    found: list[LogFile] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_ours(entry.name):
                continue
            with suppress(FileNotFoundError):
                there = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(there.st_mode):
                    found.append(LogFile(entry.name, there.st_size, there.st_mtime))
    return found


def set_aside(path: Path) -> None:
    """Copy a log to `.log.1`, and empty it. Where there is no room for a copy only its end is kept. Raises OSError.

    Copied from the open file into a file of another name: its worker may be started meanwhile, which renames the log.
    """
    fresh, aside = path.with_name(f"{path.name}.1.new"), path.with_name(f"{path.name}.1")
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), "r+b") as source:
        try:
            with fresh.open("wb") as target:
                os.fchmod(target.fileno(), 0o640)
                if not _has_room(target.fileno(), os.fstat(source.fileno()).st_size):
                    raise OSError("no room for a copy")
                shutil.copyfileobj(source, target)
            fresh.replace(aside)
            os.ftruncate(source.fileno(), 0)
        except OSError:
            fresh.unlink(missing_ok=True)
            _keep_end(source.fileno(), aside)


def _has_room(file: int, size_bytes: int) -> bool:
    room = os.fstatvfs(file)
    return room.f_blocks == 0 or room.f_bavail * room.f_frsize > size_bytes  # some file systems do not tell


def _keep_end(source: int, aside: Path) -> None:
    """Empty a log, which makes room, and then write its last lines to `aside`. Raises OSError."""
    size = os.fstat(source).st_size
    end = os.pread(source, END_BYTES, max(0, size - END_BYTES))
    os.ftruncate(source, 0)
    target = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        write_all(target, end)
    finally:
        os.close(target)

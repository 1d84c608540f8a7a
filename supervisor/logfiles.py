"""Writing lines into log files that others write too: the workers', and Chimera's own. Everything here blocks.

A worker's log is set aside when its worker starts (process.py). One that grows on and on meanwhile is set aside here:
copied, then emptied, because its process has it open and appends (O_APPEND) for as long as it lives. What it writes
between the two, a matter of microseconds, is lost.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Well above process.LOG_ROTATE_BYTES: usually it is a start that does it.
ASIDE_BYTES = 64 * 1024**2
# pipe(7): up to so many bytes are written in one piece, also where others write into the same pipe.
PIPE_BYTES = 4096
STDERR = 2


class LogFiles:
    """Appends to the logs of workers. Calls come one at a time."""

    def __init__(self, aside_bytes: int = ASIDE_BYTES) -> None:
        self._aside_bytes = aside_bytes
        self._not_before: dict[Path, int] = {}

    def append(self, path: Path, lines: Sequence[str]) -> None:
        """Add whole lines to a log, whatever its process is in the middle of. Raises OSError.

        By name each time: where the log was set aside, the lines go into the new one.
        """
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(file).st_size
            begin = "\n" if size and os.pread(file, 1, size - 1) != b"\n" else ""  # half a line stands there
            write_all(file, "".join((begin, *(f"{line}\n" for line in lines))).encode())
            if size > max(self._aside_bytes, self._not_before.get(path, 0)):
                self._set_aside(file, path, size)
        finally:
            os.close(file)

    def _set_aside(self, file: int, path: Path, size: int) -> None:
        if set_aside(file, path):
            self._not_before.pop(path, None)
        else:
            self._not_before[path] = size * 2  # a full disk: it is not tried with every batch


class OwnLog:
    """Writes lines to standard error, where the other lines of Chimera's own log go."""

    def __init__(self, path: Path, aside_bytes: int = ASIDE_BYTES, stderr: int = STDERR) -> None:
        """`path` is the log that `chimera start` makes of standard error; any other file is its owner's affair."""
        self._files = LogFiles(aside_bytes)
        self._path = path
        self._stderr = stderr
        self._aside_bytes = aside_bytes

    def write(self, _: None, lines: Sequence[str]) -> None:
        """Write lines, in pieces that do not mix with what else is written there. Raises OSError."""
        piece = b""
        for line in lines:
            data = line.encode() + b"\n"
            if piece and len(piece) + len(data) > PIPE_BYTES:
                write_all(self._stderr, piece)
                piece = b""
            piece += data
        write_all(self._stderr, piece)
        if os.fstat(self._stderr).st_size > self._aside_bytes and self._is_ours():
            self._files.append(self._path, ())

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._stderr), self._path.stat())
        except OSError:
            return False


def set_aside(file: int, path: Path) -> bool:
    """Copy a log to `.log.1` and empty it; False where there is no room for the copy: then nothing is changed."""
    aside = path.with_suffix(".log.1")
    try:
        shutil.copyfile(path, aside)
    except OSError:
        with suppress(OSError):
            aside.unlink()  # half a copy is none, and takes the room
        return False
    os.ftruncate(file, 0)
    return True


def write_all(file: int, data: bytes) -> None:
    """Write all of it. Raises OSError; what was written before stays."""
    while data:
        data = data[os.write(file, data) :]

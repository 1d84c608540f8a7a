"""Writing lines into log files that others write too: the workers', and Chimera's own. Everything here blocks."""

import os
from collections.abc import Sequence
from pathlib import Path

# pipe(7): up to so many bytes are written in one piece, also where others write into the same pipe.
PIPE_BYTES = 4096
STDERR = 2


def append(path: Path, lines: Sequence[str]) -> None:
    """Add whole lines to a log, whatever its process is in the middle of. Raises OSError.

    By name each time: where the log was set aside, the lines go into the new one.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        size = os.fstat(file).st_size
        begin = "\n" if size and os.pread(file, 1, size - 1) != b"\n" else ""  # half a line stands there
        write_all(file, "".join((begin, *(f"{line}\n" for line in lines))).encode())
    finally:
        os.close(file)


def write_own(_: None, lines: Sequence[str], stderr: int = STDERR) -> None:
    """Write lines to standard error, where the other lines of Chimera's own log go. Raises OSError.

    In pieces that do not mix with what else is written there.
    """
    piece = b""
    for line in lines:
        data = line.encode() + b"\n"
        if piece and len(piece) + len(data) > PIPE_BYTES:
            write_all(stderr, piece)
            piece = b""
        piece += data
    write_all(stderr, piece)


def write_all(file: int, data: bytes) -> None:
    """Write all of it. Raises OSError; what was written before stays."""
    while data:
        data = data[os.write(file, data) :]

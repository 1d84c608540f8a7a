"""Standard output that cannot be written: on a full disk, say, where somebody has sent it."""

import errno
import os
from typing import TextIO

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_full(error: OSError) -> bool:
    """Say whether an error is of the place that output goes to, not of a file that was named."""
    return error.errno in _FULL and error.filename is None


def forget(stream: TextIO) -> None:
    """Let go of what a stream still holds, which Python would try again at its exit and end with status 120."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return  # no file is behind it
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
    finally:
        os.close(nowhere)

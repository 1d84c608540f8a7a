"""How long a Chimera that systemd has restarted waits before it begins: the back-off of `restart`, for ourselves.

RestartSteps= does that since systemd 254 only, and while the service manager waits nobody is at the door. So systemd
restarts at once, and the wait is here: the sockets are there already, and who connects waits too. The count is in
RuntimeDirectory=, which systemd keeps over restarts and removes when the service stops.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from supervisor.restart import BackOff
from supervisor.state_file import Unreadable, read_bounded, write_whole

log = structlog.get_logger("chimera")

NAME = "failed-starts"


class Comeback:
    """The count of starts in a row that came to nothing. Without a directory nothing is counted."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / NAME if directory is not None else None

    def begin(self) -> BackOff:
        """Return how often in a row Chimera has failed, and count this start among them until `settled` says else."""
        failures = self._read()
        self._write(failures + 1)
        return BackOff(failures)

    def settled(self) -> None:
        """Forget: this start has come to something, or was ended by order."""
        self._write(0)

    def _read(self) -> int:
        try:
            text = read_bounded(self._path).decode("ascii") if self._path is not None else ""
        except (OSError, ValueError, Unreadable):
            return 0
        return int(text) if text.isdecimal() and len(text) < 10 else 0

    def _write(self, failures: int) -> None:
        if self._path is None:
            return
        try:
            write_whole(self._path, str(failures).encode("ascii"))
        except OSError as error:  # a wait too short is no reason not to start
            log.warning("failed starts cannot be counted", path=str(self._path), cause=error.strerror)


def comeback_of(environ: Mapping[str, str]) -> Comeback:
    """Return the count of this service; RUNTIME_DIRECTORY is a colon-separated list (systemd.exec(5))."""
    directory = environ.get("RUNTIME_DIRECTORY", "").split(os.pathsep)[0]
    return Comeback(Path(directory) if directory else None)

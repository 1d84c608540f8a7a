"""New settings while Chimera runs: read anew, refused whole or applied as a difference (`change`).

`Reload.run` is the task; a SIGHUP asks. What a reload came to is written into a file, for `chimera reload`, which waits
for it. Workers whose processes have settings from their start restart one after the other, which `roll` does.
"""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event

import msgspec
import structlog
import trio

from supervisor.change import Plan, plan
from supervisor.config import Settings
from supervisor.errors import BadConfiguration, StartRefused, SupervisorError
from supervisor.events import EventLog
from supervisor.house import House
from supervisor.news import News
from supervisor.service import Service
from supervisor.state_file import StateFile, Unreadable, read_bounded

log = structlog.get_logger("chimera")

NAME = "reload.json"
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.05


class Outcome(msgspec.Struct):
    """What the last reload came to. `number` counts those of one process; `faults`: it was refused for these."""

    pid: int
    number: int
    lines: list[str]
    faults: list[str]


class Reload:
    """Takes new settings. `apply` lets a plan's settings count; it raises a SupervisorError to refuse."""

    def __init__(
        self, reread: Callable[[], Settings], house: House, apply: Callable[[Plan], None], service: Service,
        events: EventLog, directory: Path,
    ) -> None:  # fmt: skip
        self._reread = reread
        self._house = house
        self._apply = apply
        self._service = service
        self._events = events
        self._file = StateFile(directory / NAME, Outcome, events, instead="the next reload writes it anew")
        self._number = 0

    async def run(self, asked: News) -> None:
        """Take new settings whenever that is asked for. Never returns, and raises nothing that a file could cause."""
        self._file.load()  # what is damaged, or no file, is out of the way before somebody waits for the next one
        while True:
            await asked.wait()
            self._service.reloading()
            try:
                await self._take()
            finally:
                self._service.reloaded()

    async def _take(self) -> None:
        lines: list[str] = []
        faults: list[str] = []
        try:
            new = await trio.to_thread.run_sync(self._reread)
            change = plan(self._house.settings, new)
            self._apply(change)
            lines = change.lines
        except BadConfiguration as error:
            faults = error.faults
        except SupervisorError as error:
            faults = [str(error)]
        if faults:
            self._events.record("settings_refused", level="error", faults=faults)
            self._service.note(f"new settings refused: {faults[0]}{_more(len(faults) - 1)}")
        else:
            self._events.record("settings_taken", changes=lines)
            self._service.note("")
        self._number += 1
        try:
            self._file.save(Outcome(os.getpid(), self._number, lines, faults))
        except OSError as error:
            log.error("what the reload came to cannot be written", path=str(self._file.path), cause=error.strerror)


def _more(count: int) -> str:
    return f" (and {count} more: journalctl -u chimera)" if count else ""


def outcome_directory(environ: Mapping[str, str], state_dir: Path) -> Path:
    """Return where outcomes are written: the service's RUNTIME_DIRECTORY, which no setting changes, else STATE_DIR."""
    first = environ.get("RUNTIME_DIRECTORY", "").split(os.pathsep)[0]
    return Path(first) if first else state_dir


def ask_for_reload(pid: int, directory: Path) -> Outcome:
    """Ask a running Chimera to read its settings anew, and return what came of it. Blocks.

    Raises StartRefused when it is not there, is somebody else's, or does not answer.
    """
    path, pause = directory / NAME, Event()
    before = _read(path)
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError as error:
        raise StartRefused(f"chimera (process {pid}) is not running") from error
    except PermissionError as error:
        raise StartRefused(f"chimera (process {pid}) is another user's; reload it as that user, or as root") from error
    for _ in range(int(ANSWER_TIMEOUT_S / POLL_S)):
        now = _read(path)
        if now is not None and now.pid == pid and now != before:
            return now
        pause.wait(POLL_S)
    raise StartRefused(f"chimera (process {pid}) did not say within {ANSWER_TIMEOUT_S:g} s what came of it")


def _read(path: Path) -> Outcome | None:
    try:
        return msgspec.json.decode(read_bounded(path), type=Outcome)
    except (OSError, Unreadable, ValueError, RecursionError):
        return None

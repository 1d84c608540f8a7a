"""Start, watch and stop a process group; its log file.

One function owns a child from start to reap: `running()`. Why not trio's own processes: trio starts children
from a worker thread that dies after 10 idle seconds, and a parent-death signal fires with that thread
(reference: prctl(2), PR_SET_PDEATHSIG). So the start is a plain Popen on the main thread (0.2 ms), and the end
is seen through a pidfd. Never preexec_fn: it runs Python between fork and exec, and makes the fork slow.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from supervisor.command import Command
from supervisor.errors import StartFailed

# A log that has grown past this is set aside (one generation) when its worker starts.
LOG_ROTATE_BYTES = 16 * 1024**2
# A process in an uninterruptible driver call survives even SIGKILL: nobody may wait for it for ever.
KILL_TIMEOUT_S = 5.0
# How long killed runners may take to be gone.
GROUP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: an exit code, or the signal that ended it."""

    code: int | None
    signal: str | None
    at: datetime

    @property
    def text(self) -> str:
        """Say it for people."""
        if self.signal:
            return f"killed by {self.signal}"
        return "still there after SIGKILL" if self.code is None else f"exit code {self.code}"


class WorkerProcess:
    """A started process and its group. Made by `running()`, which also ends it."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log_path: Path) -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self.pid = popen.pid
        self.log_path = log_path
        self.started_at = datetime.now(UTC)
        self.started_monotonic = trio.current_time()
        self.exit_status: ExitStatus | None = None

    async def wait(self) -> None:
        """Return when the process has ended (it is not yet reaped). Any number of tasks may wait."""
        own = os.dup(self._pidfd)  # trio lets one task wait for one descriptor
        try:
            await trio.lowlevel.wait_readable(own)
        finally:
            trio.lowlevel.notify_closing(own)
            os.close(own)

    def has_exited(self) -> bool:
        """Say whether the process has ended, without reaping it."""
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return status is not None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group. Only before the reap: after it the number may be another's."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _stop(self, stop_timeout_s: float) -> None:
        """End the whole group: TERM, then KILL; reap; wait until no member lives."""
        if not self.has_exited():
            self.signal_group(signal.SIGTERM)
            self.signal_group(signal.SIGCONT)  # a stopped process cannot react to TERM
            with trio.move_on_after(stop_timeout_s):
                await self.wait()
        # The leader is still unreaped here, so its number is still the group's: this reaches left runners only.
        self.signal_group(signal.SIGKILL)
        with trio.move_on_after(KILL_TIMEOUT_S):
            await self.wait()
        self._reap()
        with trio.move_on_after(GROUP_TIMEOUT_S):
            while group_lives(self.pid):
                await trio.sleep(0.01)

    def _reap(self) -> None:
        code = self._popen.poll()
        os.close(self._pidfd)
        name = signal.Signals(-code).name if code is not None and code < 0 else None
        self.exit_status = ExitStatus(None if name else code, name, datetime.now(UTC))


def group_lives(pgid: int) -> bool:
    """Say whether a process group has a living member.

    Zombies are none: they hold no memory, and whoever inherited a killed runner may take seconds to reap it.
    """
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # it is somebody else's by now
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_bytes().rpartition(b") ")[2].split(b" ", 3)[:3]  # proc(5), fields 3 to 5
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == pgid and state not in (b"Z", b"X"):
            return True
    return False


@asynccontextmanager
async def running(command: Command, log_path: Path, *, stop_timeout_s: float) -> AsyncIterator[WorkerProcess]:
    """Run a process as leader of its own session; on leaving the block it and its group are gone, on every path.

    Raises StartFailed when it cannot be started. Cancellation: the block's end is shielded and takes at most
    `stop_timeout_s` and a few seconds more. After the block `exit_status` says how it ended.
    """
    process = _start(command, log_path)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process._stop(stop_timeout_s)  # noqa: SLF001 - the owner's right, and nobody else's


def _start(command: Command, log_path: Path) -> WorkerProcess:
    # Straight into a file: a dead reader of a pipe kills serve by SIGPIPE, a slow one stalls it.
    try:
        _rotate(log_path)
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartFailed(f"its log {log_path} cannot be written: {error.strerror}") from error
    try:
        popen = subprocess.Popen(
            command.argv,
            env=command.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise StartFailed(f"{command.argv[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(log)
    return WorkerProcess(popen, log_path)


def _rotate(log_path: Path) -> None:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log_path.stat().st_size > LOG_ROTATE_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))


def last_lines(path: Path, count: int, *, at_most_bytes: int = 256 * 1024) -> list[str]:
    """Return the last lines of a log, looking at no more than its last `at_most_bytes`; none if there is no log."""
    lines = tail(path, at_most_bytes=at_most_bytes)[0].decode("utf-8", "replace").splitlines()
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

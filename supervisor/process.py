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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from supervisor.cgroup import WorkerCgroup
from supervisor.command import Command
from supervisor.errors import StartFailed
from supervisor.procs import scan

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

    def __init__(
        self, popen: "subprocess.Popen[bytes]", log_path: Path, cgroup: WorkerCgroup | None = None,
        log_problem: str | None = None,
    ) -> None:  # fmt: skip
        """`log_problem` says why the process runs without a log, if it does."""
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self.pid = popen.pid
        self.log_path = log_path
        self.started_at = datetime.now(UTC)
        self.started_monotonic = trio.current_time()
        self.exit_status: ExitStatus | None = None
        self.log_problem = log_problem
        self.killed_by_us = False
        self._cgroup = cgroup

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
            self.killed_by_us = True
            self.signal_group(signal.SIGTERM)
            self.signal_group(signal.SIGCONT)  # a stopped process cannot react to TERM
            with trio.move_on_after(stop_timeout_s):
                await self.wait()
        # The leader is still unreaped here, so its number is still the group's: this reaches left runners only.
        self.signal_group(signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill()
        with trio.move_on_after(KILL_TIMEOUT_S):
            await self.wait()
        self._reap()
        pause_s = 0.002
        with trio.move_on_after(GROUP_TIMEOUT_S):
            while group_lives(self.pid) or (self._cgroup is not None and self._cgroup.pids()):
                await trio.sleep(pause_s)
                pause_s = min(0.1, pause_s * 1.5)
        if self._cgroup is not None:
            self._cgroup.remove()

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
    return pgid in scan()


@asynccontextmanager
async def running(
    command: Command, log_path: Path, *, stop_timeout_s: float, cgroup: WorkerCgroup | None = None
) -> AsyncIterator[WorkerProcess]:
    """Run a process as leader of its own session; on leaving the block it and its group are gone, on every path.

    With a `cgroup` it runs in there, and whatever else is in there at the end is gone too. A log that cannot be
    written is no reason not to run: the process then has none, and `log_problem` says so.

    Raises StartFailed when it cannot be started. Cancellation: the block's end is shielded and takes at most
    `stop_timeout_s` and a few seconds more. After the block `exit_status` says how it ended.
    """
    process = _start(command, log_path, cgroup)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process._stop(stop_timeout_s)  # noqa: SLF001 - the owner's right, and nobody else's


def _start(command: Command, log_path: Path, cgroup: WorkerCgroup | None) -> WorkerProcess:
    if cgroup is not None:
        command = replace(command, argv=cgroup.joined(command.argv))
    log, log_problem = _open_log(log_path)
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
    return WorkerProcess(popen, log_path, cgroup, log_problem)


def _open_log(log_path: Path) -> tuple[int, str | None]:
    """Open a log for appending, or /dev/null with the reason.

    Straight into a file: a dead reader of a pipe kills serve by SIGPIPE, a slow one stalls it.
    """
    try:
        _rotate(log_path)
        return os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640), None
    except OSError as error:
        problem = f"its log {log_path} cannot be written: {error.strerror}"
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), problem


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

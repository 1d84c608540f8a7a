"""Start, watch and stop a process group.

One function owns a child from start to reap: `running()`. Why not trio's own processes: trio starts children
from a worker thread that dies after 10 idle seconds, and a parent-death signal fires with that thread
(reference: prctl(2), PR_SET_PDEATHSIG). So the start is a plain Popen on the main thread (0.2 ms), and the end
is seen through a pidfd. Never preexec_fn: it runs Python between fork and exec, and makes the fork slow.
"""

import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from supervisor.cgroup import WorkerCgroup
from supervisor.command import Command
from supervisor.errors import StartFailed
from supervisor.procs import DEAD, Proc, scan, stat_of
from supervisor.worker_log import open_log

# A process in an uninterruptible driver call survives even SIGKILL: nobody may wait for it for ever.
KILL_TIMEOUT_S = 5.0
# Of 1000: a worker goes first when memory runs out, its supervisor late.
OOM_SCORE_ADJ = 500
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
        """`log_problem` says why nothing can be written into its log, if so.

        `killed_by_us` becomes true when the end is asked for while the process still runs: a SIGKILL that ends it
        without that came from elsewhere.
        """
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
                await trio.lowlevel.wait_readable(self._pidfd)  # not wait(): the end must need no new descriptor
        # The leader is still unreaped here, so its number is still the group's: this reaches left runners only.
        self.signal_group(signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill()
        with trio.move_on_after(KILL_TIMEOUT_S):
            await trio.lowlevel.wait_readable(self._pidfd)
        self._reap()
        with trio.move_on_after(GROUP_TIMEOUT_S):
            await self._until_gone()
        if self._cgroup is not None:
            self._cgroup.remove()

    async def _until_gone(self) -> None:
        """Return when no process of the group or of the cgroup lives.

        All of /proc is read only to learn who is left, and in a thread; then those few are looked at.
        """
        pause_s = 0.002
        left: tuple[Proc, ...] = ()
        while True:
            left = tuple(member for member in left if _lives(member))
            if not left:
                try:
                    left = await trio.to_thread.run_sync(members, self.pid)
                    if not left and not (self._cgroup is not None and self._cgroup.pids()):
                        return
                except OSError:  # /proc cannot be read now, such as for want of a descriptor: nothing is known
                    pass
            await trio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 1.5)

    def _reap(self) -> None:
        code = self._popen.poll()
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        name = signal.Signals(-code).name if code is not None and code < 0 else None
        self.exit_status = ExitStatus(None if name else code, name, datetime.now(UTC))


def members(pgid: int) -> tuple[Proc, ...]:
    """Return the living processes of a group. Blocks, some milliseconds if there are any; raises OSError.

    Zombies are none: they hold no memory, and whoever inherited a killed runner may take seconds to reap it.
    """
    try:
        os.killpg(pgid, 0)
    except (ProcessLookupError, PermissionError):
        return ()  # the usual case: serve has ended and reaped its runners; or the number is somebody else's by now
    return scan().get(pgid, ())


def _lives(member: Proc) -> bool:
    try:
        now = stat_of(member.pid)
    except OSError:
        return True  # that is not known
    return now is not None and now.start_ticks == member.start_ticks and now.state not in DEAD


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
    try:
        process = _start(command, log_path, cgroup)
    except StartFailed:
        if cgroup is not None:
            cgroup.remove()
        raise
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process._stop(stop_timeout_s)  # noqa: SLF001 - the owner's right, and nobody else's


def _start(command: Command, log_path: Path, cgroup: WorkerCgroup | None) -> WorkerProcess:
    argv = command.argv if cgroup is None else cgroup.joined(command.argv)
    try:
        log, log_problem = open_log(log_path)
        try:
            popen = subprocess.Popen(
                argv,
                env=command.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(log)
        _make_expendable(popen.pid)
        try:
            return WorkerProcess(popen, log_path, cgroup, log_problem)
        except OSError:  # no descriptor is left to watch it by
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            raise
    except OSError as error:
        raise StartFailed(f"{command.argv[0]} cannot be started: {error.strerror}") from error


def _make_expendable(pid: int) -> None:
    """Have the kernel choose this process, and what it starts, before Chimera itself when memory runs out.

    And have it write no core file: one of Ollama's is as large as a model. proc(5), oom_score_adj: raising it takes
    no privilege; prlimit(2).
    """
    with suppress(OSError, ValueError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))

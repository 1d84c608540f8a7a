"""What a former run left behind: found by the mark in its environment, and ended.

Ended and not adopted: an adopted worker has no exit status, an unknown log position and unknown work in flight.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import structlog
import trio

from supervisor.command import MARK, instance_of

log = structlog.get_logger("sweep")


def leftovers(state_dir: Path) -> list[psutil.Process]:
    """Return the processes that carry the mark of the Chimera that owns `state_dir`.

    psutil.Process knows a process by pid and start time, so that a reused number is never mistaken for it.
    Takes a few milliseconds per hundred processes: call it in a thread.
    """
    return list(_marked(f"{instance_of(state_dir)}/"))


def _marked(prefix: str) -> Iterator[psutil.Process]:
    own = os.getpid()
    for process in psutil.process_iter():
        try:
            if process.pid != own and process.environ().get(MARK, "").startswith(prefix):
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # somebody else's, a kernel thread, or gone
            continue


async def sweep(state_dir: Path, *, stop_timeout_s: float) -> int:
    """End what a former run left behind; return how many processes that were.

    TERM first (serve then ends its runner itself), KILL after `stop_timeout_s`. Call it only while holding the
    state directory's lock: otherwise it would end the workers of a Chimera that lives.
    """
    found = await trio.to_thread.run_sync(leftovers, state_dir)
    if not found:
        return 0
    log.warning("ending what a former run left behind", pids=[process.pid for process in found])
    _signal(found, signal.SIGTERM)
    _signal(found, signal.SIGCONT)
    with trio.move_on_after(stop_timeout_s):
        while any(_alive(process) for process in found):
            await trio.sleep(0.05)
    _signal(found, signal.SIGKILL)
    with trio.move_on_after(5):
        while any(_alive(process) for process in found):
            await trio.sleep(0.05)
    return len(found)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # checks the start time first
        except psutil.NoSuchProcess:
            continue

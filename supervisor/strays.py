"""Processes of ours that hold a GPU's memory though no worker has them any more: found through NVML, and ended.

A worker's end takes its whole process group (and its cgroup, where there is one), and a start sweeps what a former
run left: so there should be none. One that is there all the same would hold memory for good (ollama#5642).
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import trio

from supervisor.command import MARK, instance_of
from supervisor.events import EventLog
from supervisor.gpu import GpuReading

LOOK_INTERVAL_S = 10.0


async def end_strays(
    reading: Callable[[], GpuReading], known: Callable[[], frozenset[int]], state_dir: Path, events: EventLog
) -> None:
    """Look every ten seconds; end what is found twice in a row. A task; cancellation ends it.

    `known` are the processes of the workers there are, as they were last measured: one that has just begun may not
    be among them yet, which is why a second look decides.
    """
    mark = f"{instance_of(state_dir)}/"
    before: frozenset[int] = frozenset()
    while True:
        await trio.sleep(LOOK_INTERVAL_S)
        suspects = on_gpus(reading()) - known()
        again, before = suspects & before, suspects
        for pid, worker_id in await trio.to_thread.run_sync(end_marked, again, known(), mark) if again else ():
            events.record("stray_ended", level="warning", pid=pid, worker=worker_id, cause="no worker has it any more")


def on_gpus(reading: GpuReading) -> frozenset[int]:
    """Return every process that computes on a GPU, where the reading can be relied on."""
    if reading.fault is not None:
        return frozenset()
    return frozenset(process.pid for gpu in reading.gpus for process in gpu.processes or ())


def end_marked(pids: frozenset[int], known: frozenset[int], mark: str) -> list[tuple[int, str]]:
    """End those of `pids` that carry our mark and descend from no known process; return them with their worker's id.

    psutil.Process knows a process by pid and start time: a number that is used again is not mistaken. Blocks.
    """
    ended: list[tuple[int, str]] = []
    for pid in sorted(pids):
        try:
            process = psutil.Process(pid)
            marked = process.environ().get(MARK, "")
            if marked.startswith(mark) and not {parent.pid for parent in process.parents()} & known:
                process.kill()
                ended.append((pid, marked.removeprefix(mark)))
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # somebody else's, or gone
            continue
    return ended

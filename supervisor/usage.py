"""What each worker's processes use of the machine: memory and CPU, by psutil."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import trio

INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Usage:
    """One worker's processes taken together; `cpu_percent` is of one core, so 250 means two and a half cores."""

    rss_bytes: int = 0
    cpu_percent: float = 0.0
    pids: frozenset[int] = frozenset()


class UsageMeter:
    """Measures process groups. `latest` has the newest figures by worker id; written by `watch` alone."""

    def __init__(self) -> None:
        self.latest: dict[str, Usage] = {}
        # psutil measures CPU between two calls on the same object
        self._known: dict[int, psutil.Process] = {}

    async def watch(self, leaders: Callable[[], Mapping[str, int]]) -> None:
        """Measure every two seconds, in a thread. The meter's task; cancellation ends it."""
        while True:
            pids = leaders()
            self.latest = await trio.to_thread.run_sync(self.measure, dict(pids))
            await trio.sleep(INTERVAL_S)

    def measure(self, leaders: Mapping[str, int]) -> dict[str, Usage]:
        """Return the use of each worker's leader process and all that it started. Blocks some milliseconds."""
        usages = {worker_id: self._of(pid) for worker_id, pid in leaders.items()}
        alive = frozenset().union(*(usage.pids for usage in usages.values()))
        self._known = {pid: process for pid, process in self._known.items() if pid in alive}
        return usages

    def _of(self, leader: int) -> Usage:
        rss, cpu, pids = 0, 0.0, set()
        try:
            members = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
        except psutil.NoSuchProcess:
            return Usage()
        for member in members:
            known = self._known.get(member.pid)
            if known != member:  # compares start times too: a reused pid is a new process
                known = self._known[member.pid] = member
            try:
                rss += known.memory_info().rss
                cpu += known.cpu_percent(None)
                pids.add(known.pid)
            except psutil.NoSuchProcess:
                continue
        return Usage(rss, round(cpu, 1), frozenset(pids))

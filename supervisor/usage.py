"""What each worker's processes use of the machine, and what state they are in: one pass over /proc a second."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from supervisor.beat import beat
from supervisor.procs import Census, Proc, private_bytes

log = structlog.get_logger("usage")

INTERVAL_S = 1.0
# Private memory is a second file per process, and changes slowly.
PRIVATE_EVERY = 10
# A process that waits for a disk is in state D for a moment; one in a stuck driver call stays there.
STUCK_LOOKS = 5

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """One worker's processes taken together, those of its process group; `leader` is `ollama serve` itself.

    `cpu_percent` is of one core, so 250 means two and a half cores. `stopped` are those in state T or t, `stuck`
    those in D for several looks in a row (proc(5)). `private_bytes` is None until it has been looked at.
    `measured_at` is a moment of trio's clock: figures that are old say that /proc could not be read since.
    """

    rss_bytes: int = 0
    cpu_percent: float = 0.0
    pids: frozenset[int] = frozenset()
    leader: int = 0
    private_bytes: int | None = None
    stopped: frozenset[int] = frozenset()
    stuck: frozenset[int] = frozenset()
    measured_at: float = -math.inf

    @property
    def runner_pids(self) -> frozenset[int]:
        """The processes that serve has started."""
        return self.pids - {self.leader}


class UsageMeter:
    """Measures process groups. `latest` has the newest figures by worker id; written by `watch` alone."""

    def __init__(self) -> None:
        self.latest: dict[str, Usage] = {}
        self._census = Census()
        self._looks = 0
        self._ticks: dict[tuple[int, int], int] = {}  # pid and start: a reused pid is a new process
        self._in_d: dict[int, int] = {}
        self._private: dict[int, int | None] = {}
        self._looked_at: float | None = None

    def latest_of(self, worker_id: str) -> Usage | None:
        """Return the newest figures of a worker, None while there are none."""
        return self.latest.get(worker_id)

    async def watch(self, leaders: Callable[[], Mapping[str, int]]) -> None:
        """Measure every second, in a thread. The meter's task; cancellation ends it.

        What cannot be measured for once (no file descriptor is left) keeps its last figures.
        """
        failing = False
        while True:
            pids = dict(leaders())
            try:
                self.latest = await trio.to_thread.run_sync(self.measure, pids, trio.current_time())
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("workers' processes cannot be looked at", error=str(error))
                failing = True
                self.latest = {worker_id: usage for worker_id, usage in self.latest.items() if worker_id in pids}
            await beat(INTERVAL_S, after_s=INTERVAL_S / 2)  # between two looks of the watches, which are on the beat

    def measure(self, leaders: Mapping[str, int], now: float) -> dict[str, Usage]:
        """Return the use of each worker's process group, also of one whose leader is gone. Blocks a little.

        CPU is what was spent since the last look, at `now` seconds of any clock: none at the first. Raises OSError
        when /proc cannot be read.
        """
        groups = self._census.take(leaders.values())
        spent_s = now - self._looked_at if self._looked_at is not None else 0.0
        before, self._ticks = self._ticks, {}
        asks_private = self._looks % PRIVATE_EVERY == 0
        usages = {
            worker_id: self._of(leader, groups.get(leader, ()), before, spent_s, now, asks_private)
            for worker_id, leader in leaders.items()
        }
        alive = frozenset().union(*(usage.pids for usage in usages.values()))
        self._private = {pid: known for pid, known in self._private.items() if pid in alive}
        self._in_d = {pid: looks for pid, looks in self._in_d.items() if pid in alive}
        self._looks, self._looked_at = self._looks + 1, now
        return usages

    def _of(
        self, leader: int, members: tuple[Proc, ...], before: Mapping[tuple[int, int], int], spent_s: float,
        now: float, asks_private: bool,
    ) -> Usage:  # fmt: skip
        ticks = 0
        for member in members:
            key = (member.pid, member.start_ticks)
            self._ticks[key] = member.cpu_ticks
            ticks += member.cpu_ticks - before.get(key, member.cpu_ticks)
            self._in_d[member.pid] = self._in_d.get(member.pid, 0) + 1 if member.state == "D" else 0
            if asks_private or member.pid not in self._private:
                self._private[member.pid] = private_bytes(member.pid)
        known = [self._private[member.pid] for member in members]
        return Usage(
            rss_bytes=sum(member.rss_bytes for member in members),
            cpu_percent=round(100 * ticks / _TICKS_PER_S / spent_s, 1) if spent_s > 0 else 0.0,
            pids=frozenset(member.pid for member in members),
            leader=leader,
            private_bytes=sum(size or 0 for size in known) if known else None,
            stopped=frozenset(member.pid for member in members if member.state in "Tt"),
            stuck=frozenset(pid for pid in (m.pid for m in members) if self._in_d[pid] >= STUCK_LOOKS),
            measured_at=now,
        )

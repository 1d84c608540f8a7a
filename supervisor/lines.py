"""Lines for logs, collected in memory and written in batches from a worker thread.

For what is noted of each request: a disk or a terminal that takes nothing must not hold up the loop, nor a shutdown.
What cannot be kept is dropped and counted, and the count is told.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog
import trio

log = structlog.get_logger("chimera")

WRITE_EVERY_S = 0.25
# Some seconds of a very busy gateway; 200 bytes a line.
MOST_LINES = 20_000
# How long the last lines may take at a shutdown.
FLUSH_TIMEOUT_S = 1.0
# How often it is told that lines were dropped: a full disk stays full for a while.
TELL_EVERY_S = 60.0

Place = TypeVar("Place")


class LineWriter(Generic[Place]):
    """Takes lines at once, and writes them soon. `run` is its task; without it lines wait, at most `most_lines`."""

    def __init__(
        self, name: str, write: Callable[[Place, Sequence[str]], None], *, most_lines: int = MOST_LINES
    ) -> None:
        """`write` writes lines, without their ends, to a place; it may block, and raise OSError. `name`: for people."""
        self._name = name
        self._write_lines = write
        self._most_lines = most_lines
        self._waiting: defaultdict[Place, list[str]] = defaultdict(list)
        self._count = 0
        self._some = trio.Event()
        self._one_at_a_time = threading.Lock()
        self.dropped = 0

    def put(self, place: Place, line: str) -> None:
        """Take a line for a place. Never blocks; beyond `most_lines` it is dropped and counted."""
        if self._count >= self._most_lines:
            self.dropped += 1
            return
        self._count += 1
        self._waiting[place].append(line)
        if self._count == 1:
            self._some.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes. Cancellation writes what is there, for at most FLUSH_TIMEOUT_S, and leaves the rest."""
        task_status.started()
        told, tell_at = 0, -math.inf
        try:
            while True:
                await self._some.wait()
                await trio.sleep(WRITE_EVERY_S)
                await self._flush()
                if self.dropped > told and trio.current_time() >= tell_at:
                    log.warning(
                        "lines could not be written, and were dropped", to=self._name, lines=self.dropped - told
                    )
                    told, tell_at = self.dropped, trio.current_time() + TELL_EVERY_S
        finally:
            with trio.move_on_after(FLUSH_TIMEOUT_S, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        batch, self._waiting, self._count = self._waiting, defaultdict(list), 0
        self._some = trio.Event()
        if batch:
            # left alone when it is stuck: nobody waits for a disk
            self.dropped += await trio.to_thread.run_sync(self._write, batch, abandon_on_cancel=True)

    def _write(self, batch: dict[Place, list[str]]) -> int:
        """Write a batch, in a thread; returns how many lines could not be written."""
        lost = 0
        with self._one_at_a_time:
            for place, lines in batch.items():
                try:
                    self._write_lines(place, lines)
                except OSError:
                    lost += len(lines)
        return lost

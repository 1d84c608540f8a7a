"""A supervisor as the admin API sees it: three workers of rows, and a record of what was ordered."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import trio

from gateway.admin import Refusal, Row


class FleetError(Exception):
    """A refusal of the fleet's own."""

    def __init__(self, kind: Refusal, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass
class FakeFleet:
    """Implements `gateway.admin.FleetAdmin`."""

    ids: list[str] = field(default_factory=lambda: ["cpu-1", "cpu-2"])
    ordered: list[tuple[object, ...]] = field(default_factory=list)
    refuses: Exception | None = None
    settled: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    waiting: trio.Event = field(default_factory=trio.Event)
    following: trio.Event = field(default_factory=trio.Event)
    follow_ended: trio.Event = field(default_factory=trio.Event)

    def refusal_of(self, error: Exception) -> Refusal | None:
        """Only its own errors are refusals."""
        return error.kind if isinstance(error, FleetError) else None

    def _heed(self, *order: object) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.ordered.append(order)

    def instances(self) -> list[Row]:
        """Rows with what metrics need."""
        return [self._row(name) for name in self.ids]

    def _row(self, name: str) -> Row:
        return {"id": name, "state": "IDLE", "placement": "cpu", "inflight": 0, "restarts": 0}

    def instance(self, worker_id: str) -> Row:
        """One worker."""
        if worker_id not in self.ids:
            raise FleetError("not_found", f"there is no worker {worker_id!r}")
        return self._row(worker_id)

    def primary(self) -> Row:
        """The primary."""
        return {"id": "primary", "state": "READY"}

    def spawn(self, gpu: str | int | None, count: int, slots: int | None) -> list[str]:
        """Add workers."""
        self._heed("spawn", gpu, count, slots)
        new = [f"new-{number}" for number in range(count)]
        self.ids += new
        return new

    def prune(self, ids: Sequence[str] | None, gpu: str | int | None, *, idle: bool, force: bool) -> list[str]:
        """Remove workers."""
        self._heed("prune", ids, gpu, idle, force)
        return self.ids if ids is None else list(ids)

    def order(self, worker_id: str, verb: str) -> None:
        """Record an order."""
        self.instance(worker_id)
        self._heed(verb, worker_id)

    async def wait_settled(self, ids: Sequence[str]) -> None:
        """Wait for the test's word."""
        self.waiting.set()
        await self.settled.wait()

    async def wait_gone(self, ids: Sequence[str]) -> None:
        """Wait for the test's word."""
        self.waiting.set()
        await self.gone.wait()

    def gpus(self) -> Row:
        """No GPU."""
        return {"gpus": [], "driver_version": None, "fault": "no driver", "unplaced": []}

    def quarantine(self, gpu: str) -> Row:
        """Record an order."""
        self._heed("quarantine", gpu)
        return {"uuid": gpu, "verdict": "quarantined"}

    def release(self, gpu: str) -> Row:
        """Record an order."""
        self._heed("release", gpu)
        return {"uuid": gpu, "verdict": "well"}

    def log_lines(self, worker_id: str, count: int) -> list[str]:
        """The last lines."""
        self.instance(worker_id)
        return ["one", "two", "thrée"][-count:] if count else []

    async def follow_log(self, worker_id: str, count: int) -> AsyncIterator[str]:
        """The last lines, and then nothing, for ever."""
        try:
            for line in self.log_lines(worker_id, count):
                yield line
            self.following.set()
            await trio.sleep_forever()
        finally:
            self.follow_ended.set()

    def events(self) -> list[Row]:
        """One event."""
        return [{"event": "worker_ready", "worker": "cpu-1"}]

    async def follow_events(self) -> AsyncIterator[Row]:
        """One event, and then nothing, for ever."""
        try:
            for row in self.events():
                yield row
            self.following.set()
            await trio.sleep_forever()
        finally:
            self.follow_ended.set()

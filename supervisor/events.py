"""What happened, kept for operators: the newest events in memory, each logged once."""

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

KEPT = 1000

_log = structlog.get_logger("chimera")


class EventLog:
    """The newest events. Written by plain calls from the owners of what happened, read by anybody."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT)
        self._written = 0
        self._news = trio.Event()

    def record(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Keep and log one event; `fields` are JSON values that say what, where and why."""
        getattr(_log, level)(event.replace("_", " "), **fields)
        self._written += 1
        self._events.append(
            (self._written, {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
        )
        self._news.set()
        self._news = trio.Event()

    def newest(self) -> list[dict[str, Any]]:
        """Return the events kept, oldest first."""
        return [event for _, event in self._events]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events kept and then each as it happens. Ends only by cancellation.

        A reader slower than the events misses those that have left memory, never the order.
        """
        seen = 0
        while True:
            news = self._news
            for number, event in list(self._events):
                if number > seen:
                    seen = number
                    yield event
            await news.wait()

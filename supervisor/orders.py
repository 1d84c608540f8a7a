"""What signals ask of the whole Chimera: to stop, to stop at once, to take new settings."""

import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from supervisor.news import News

log = structlog.get_logger("chimera")

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINAL = Path("/dev/tty")


@dataclass(slots=True)
class Orders:
    """What has been asked for so far. `heed` alone writes it."""

    stop: trio.Event = field(default_factory=trio.Event)
    at_once: trio.Event = field(default_factory=trio.Event)
    reload: News = field(default_factory=News)

    async def heed(self, signals: AsyncIterator[int], on_terminal: bool) -> None:
        """Take signals, for as long as they come.

        On a terminal SIGHUP says that the terminal is gone, and what runs there goes with it.
        """
        async for number in signals:
            if number == signal.SIGHUP and not on_terminal:
                self.reload.tell()
                continue
            log.info("stopping at once" if self.stop.is_set() else "stopping", signal=signal.Signals(number).name)
            if self.stop.is_set():
                self.at_once.set()
            self.stop.set()


def has_terminal() -> bool:
    """Say whether this process belongs to a terminal (tty(4)), whose end sends SIGHUP."""
    try:
        with TERMINAL.open("rb"):
            return True
    except OSError:
        return False

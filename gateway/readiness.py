"""Many connections heard of by one task, at the cost of one.

trio registers a descriptor anew each time that a task waits for it, and wakes that task. Here descriptors stay in an
epoll set of their own (epoll(7)), and what is to be done is called at once.
"""

import select
from collections.abc import Callable

import trio


class Readiness:
    """An epoll set, and whom it tells."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}

    def join(self, descriptor: int, events: int, tell: Callable[[], None]) -> None:
        """Have `tell` called when one of `events` (epoll_ctl(2)) is there. It must not block, nor raise.

        Raises OSError when the descriptor is closed already.
        """
        self._epoll.register(descriptor, events)
        self._told[descriptor] = tell

    def leave(self, descriptor: int, tell: Callable[[], None]) -> None:
        """Tell of it no more. It may be closed by now, or not have joined."""
        # a descriptor that was closed may be another connection's by now: that one is not to be taken out
        if self._told.get(descriptor) == tell:
            del self._told[descriptor]
            try:
                self._epoll.unregister(descriptor)
            except (OSError, ValueError):
                pass  # closing took it out, or the set has gone with `run`

    async def run(self) -> None:
        """Tell whom it concerns. Cancellation: nobody hears of anything any more."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0):
                    tell = self._told.get(descriptor)
                    if tell is not None:
                        tell()
        finally:
            self._epoll.close()

"""Many connections heard of by one task, at the cost of one.

trio registers a descriptor anew each time that a task waits for it, and wakes that task. Here descriptors stay in an
epoll set of their own (epoll(7)), and what is to be done is called at once.
"""

import select
from collections.abc import Callable

import trio

from gateway.stay import Stay

Tell = Callable[[float], None]


class Readiness:
    """An epoll set, and whom it tells."""

    def __init__(self, *, stays: bool = False) -> None:
        """`stays`: what comes, comes often, and whoever tells waits for the next of it where it is (gateway.stay)."""
        self._stays = stays
        self._epoll = select.epoll()
        self._told: dict[int, Tell] = {}

    def join(self, descriptor: int, events: int, tell: Tell) -> None:
        """Have `tell` called, with trio's time, when one of `events` (epoll_ctl(2)) is there.

        It must not block, nor raise. The time is that at which it was seen that something is there, once for all.

        Raises OSError when the descriptor is closed already.
        """
        self._epoll.register(descriptor, events)
        self._told[descriptor] = tell

    def leave(self, descriptor: int, tell: Tell) -> None:
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
        stay = Stay(self._epoll) if self._stays else None
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._tell_all()
                while stay is not None and stay.wait():
                    self._tell_all()
        finally:
            if stay is not None:
                stay.close()
            self._epoll.close()

    def _tell_all(self) -> None:
        now = trio.current_time()
        for descriptor, _ in self._epoll.poll(0):
            tell = self._told.get(descriptor)
            if tell is not None:
                tell(now)

"""How long somebody waits: one task wakes all those whose time is over.

A cancel scope for each chunk of each answer would cost more than all else that is done for the chunk. Here whoever
waits writes down until when.
"""

import math
from typing import Protocol

import trio


class Waiter(Protocol):
    """Somebody who may have to wait; `due`: until when he does (trio's clock), infinity while he does not."""

    due: float

    def give_up(self) -> None:
        """Stop waiting: it is `due`. Must not block."""


class Patience:
    """Those who wait, and until when (trio's clock)."""

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()
        self._wakes_at = math.inf
        self._sleep = trio.CancelScope()

    def join(self, waiter: Waiter) -> None:
        """Watch over somebody who may have to wait."""
        self._waiters.add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Watch over him no more. May be told twice."""
        self._waiters.discard(waiter)

    def until(self, due: float) -> None:
        """Somebody begins to wait until `due`."""
        if due < self._wakes_at:
            self._wakes_at = self._sleep.deadline = due

    async def run(self) -> None:
        """Wake those whose time is over, then, never before. Cancellation: nobody is woken any more."""
        while True:
            with trio.CancelScope(deadline=self._wakes_at) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            for waiter in [one for one in self._waiters if one.due <= now]:
                waiter.give_up()
            # those that wait only since it last looked come later: each deadline is looked up once
            self._wakes_at = min((one.due for one in self._waiters if one.due > now), default=math.inf)

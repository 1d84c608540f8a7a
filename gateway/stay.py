"""Waiting without giving one's turn away, while nobody else in this trio run has anything to do.

A turn of trio's loop costs some 60 µs in a process that has just slept: for the task that passes every chunk on, more
than all that is done for the chunk (docs/performance.md). So this task stays where it is and waits there, in an epoll
set that has both its own set and trio's in it (epoll(7)), and goes as soon as there is anything for trio: an event, a
task that can run, a deadline, a signal or a thread's word (they come through a socket in trio's set).

For that one has to look at what trio keeps to itself. It is looked at, never changed; and where it is not as expected,
as in another version of trio, or the clock is not the real one, as in tests, each wait is a turn, as everywhere else.
"""

import math
import select
from typing import Any

import trio
from trio._core import _run as trio_run

# trio's loop comes by at least so often, whatever happens.
MOST_S = 1.0


class Stay(trio.abc.Instrument):
    """Of the task that makes it, which is the only one to use it. `close` it in the end."""

    def __init__(self, own: select.epoll) -> None:
        """`own`: what the task waits for."""
        self._own = own.fileno()
        self._runner = _runner()
        self._alone = False
        self._deadline = math.inf
        if self._runner is not None:
            self._both = select.epoll()
            self._both.register(own, select.EPOLLIN)
            self._both.register(self._runner.io_manager._epoll, select.EPOLLIN)  # noqa: SLF001 - see above
            trio.lowlevel.add_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        """Note, as trio's instrument, whether a turn of the loop begins with one task, and which deadline is the next.

        Between here and the tasks' steps it may only be a deadline that wakes more of them, and then it is gone.
        """
        self._alone = False
        self._deadline = self._runner.deadlines.next_deadline()
        self._alone = len(self._runner.runq) == 1

    def wait(self) -> bool:
        """Wait, the whole process with it, until there is something in `own`; False: the turn is to be given away.

        That is at once if anybody else can run, else as soon as there is anything for anybody else.
        """
        runner = self._runner
        if not self._alone or runner.runq or runner.waiting_for_idle:
            return False
        # one that woke somebody in this turn is not among trio's any more, one that was set in it is not noted here
        left_s = min(self._deadline, runner.deadlines.next_deadline()) - trio.current_time()
        if left_s <= 0:
            return False
        there = self._both.poll(min(left_s, MOST_S))
        return len(there) == 1 and there[0][0] == self._own

    def close(self) -> None:
        """Let go of what it waited in."""
        if self._runner is not None:
            trio.lowlevel.remove_instrument(self)
            self._both.close()


def _runner() -> Any:
    """Return what runs this task, None where it is not as `Stay` needs it."""
    within: Any = trio_run
    try:
        runner = within.GLOBAL_RUN_CONTEXT.runner
        as_expected = (
            not runner.is_guest  # then the host has a loop of its own
            and isinstance(runner.clock, within.SystemClock)
            and isinstance(runner.io_manager._epoll, select.epoll)  # noqa: SLF001 - see above
            and isinstance(runner.deadlines.next_deadline(), float)
            and len(runner.runq) >= 0
            and len(runner.waiting_for_idle) >= 0
        )
    except (AttributeError, TypeError):
        return None
    return runner if as_expected else None

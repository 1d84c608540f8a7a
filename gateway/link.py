"""A connection to a worker, and how long it may keep somebody waiting."""

import math
import select
import socket
from collections.abc import Awaitable, Callable

import trio

from gateway.errors import ConnectFailed
from gateway.patience import Patience
from gateway.readiness import Readiness

CONNECT_TIMEOUT_S = 5.0
IDLE_CONNECTION_S = 30.0
READ_BYTES = 64 * 1024


class Late(Exception):
    """Nothing came, or nothing could be sent, in time."""


class Link:
    """One connection to a worker."""

    __slots__ = ("_patience", "_poll", "_readiness", "_wake", "due", "idle_since", "late", "port", "sock")

    def __init__(self, sock: socket.socket, port: int, patience: Patience, readiness: Readiness) -> None:
        """`sock` is connected, and does not block."""
        self.sock = sock
        self.port = port
        self.idle_since = 0.0
        self.due = math.inf  # until when somebody waits for it, if anybody does
        self.late = False
        self._patience = patience
        self._readiness = readiness
        self._wake: Callable[[], None] | None = None  # whoever takes each part as it comes
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    async def receive(self, due: float) -> bytes:
        """Return what comes next, b"" for the end. Raises Late at `due`, and OSError. Cancellation loses nothing."""
        while True:
            await self._wait(trio.lowlevel.wait_readable, due)
            try:
                return self.sock.recv(READ_BYTES)
            except BlockingIOError:
                continue

    async def each(self, take: Callable[[bytes, float], bool], stall_timeout_s: float) -> None:
        """Give all that comes to `take`, as it comes and without a task's turn for each, until that says True.

        `take` gets b"" for the end, and trio's time; it must not block, and what it raises is raised here. Raises Late
        when nothing has come for `stall_timeout_s`, and OSError. Cancellation loses nothing.
        """
        # a task that waits in a deep call for every chunk costs twice what is done with the chunk
        task, fault = trio.lowlevel.current_task(), None
        over = False

        def wake() -> None:
            nonlocal over
            if not over:
                over = True
                trio.lowlevel.reschedule(task)

        def ready(now: float) -> None:
            nonlocal fault
            if over:
                return
            try:
                if take(self.sock.recv(READ_BYTES), now):
                    wake()
                else:
                    self.due = now + stall_timeout_s  # later than before: patience looks when it was to end
            except BlockingIOError:
                pass
            except BaseException as error:
                fault = error
                wake()

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal over
            over = True
            return trio.lowlevel.Abort.SUCCEEDED

        self._wake = wake
        self._readiness.join(self.sock.fileno(), select.EPOLLIN, ready)
        self._wait_until(trio.current_time() + stall_timeout_s)
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self.due, self._wake = math.inf, None
            self._readiness.leave(self.sock.fileno(), ready)
        if fault is not None:
            raise fault
        if self.late:
            raise Late

    async def send(self, data: bytes, due: float) -> None:
        """Send all of it. Raises Late at `due`, and OSError. After a cancellation a part of it has been sent."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable, due)

    def _wait_until(self, due: float) -> None:
        self.due = due
        self._patience.until(due)

    async def _wait(self, what: Callable[[socket.socket], Awaitable[None]], due: float) -> None:
        self._wait_until(due)
        try:
            await what(self.sock)
        except trio.ClosedResourceError:
            raise Late from None
        finally:
            self.due = math.inf
        if self.late:
            raise Late

    def give_up(self) -> None:
        """Wake whoever waits, with Late."""
        self.late = True
        if self._wake is not None:
            self._wake()
        else:
            trio.lowlevel.notify_closing(self.sock)

    def reusable(self, now: float) -> bool:
        """Say whether an idle connection is still good: young, open, and silent as an idle one must be."""
        # readable means closed by the worker, or bytes that belong to no request
        return now - self.idle_since <= IDLE_CONNECTION_S and not self._poll.poll(0)

    def close(self) -> None:
        """Close it. May be called twice."""
        self._patience.leave(self)
        self.sock.close()


async def connect(port: int, patience: Patience, readiness: Readiness) -> Link:
    """Connect to a worker on 127.0.0.1. Raises ConnectFailed. Cancellation leaves nothing open."""
    try:
        sock = socket.socket()
    except OSError as error:  # no file descriptor left
        raise ConnectFailed(str(error)) from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with trio.CancelScope(deadline=trio.current_time() + CONNECT_TIMEOUT_S) as connecting:
            await trio.socket.from_stdlib_socket(sock).connect(("127.0.0.1", port))
        if connecting.cancelled_caught:
            raise ConnectFailed(f"not within {CONNECT_TIMEOUT_S:g} s")
        return Link(sock, port, patience, readiness)
    except OSError as error:
        sock.close()
        raise ConnectFailed(str(error)) from error
    except BaseException:
        sock.close()
        raise

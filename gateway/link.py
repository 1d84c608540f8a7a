"""A connection to a worker, and how long it may keep somebody waiting.

A cancel scope for each chunk of each answer would cost more than all else that is done for the chunk. Here whoever
waits writes down until when, and one task, `Patience.run`, wakes those whose time is over.
"""

import math
import select
import socket
from collections.abc import Awaitable, Callable

import trio

from gateway.errors import ConnectFailed

CONNECT_TIMEOUT_S = 5.0
IDLE_CONNECTION_S = 30.0
READ_BYTES = 64 * 1024


class Late(Exception):
    """Nothing came, or nothing could be sent, in time."""


class Patience:
    """Who waits for workers, and until when (trio's clock)."""

    def __init__(self) -> None:
        self._links: set[Link] = set()
        self._wakes_at = math.inf
        self._sleep = trio.CancelScope()

    def join(self, link: "Link") -> None:
        """Watch over a connection, which is in use."""
        self._links.add(link)

    def leave(self, link: "Link") -> None:
        """Watch over it no more."""
        self._links.discard(link)

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
            for link in [one for one in self._links if one.due <= now]:
                link.give_up()
            # those that wait only since it last looked come later: each deadline is looked up once
            self._wakes_at = min((one.due for one in self._links if one.due > now), default=math.inf)


class Link:
    """One connection to a worker."""

    __slots__ = ("_patience", "_poll", "due", "idle_since", "late", "port", "sock")

    def __init__(self, sock: socket.socket, port: int, patience: Patience) -> None:
        """`sock` is connected, and does not block."""
        self.sock = sock
        self.port = port
        self.idle_since = 0.0
        self.due = math.inf  # until when somebody waits for it, if anybody does
        self.late = False
        self._patience = patience
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

    async def send(self, data: bytes, due: float) -> None:
        """Send all of it. Raises Late at `due`, and OSError. After a cancellation a part of it has been sent."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable, due)

    async def _wait(self, what: Callable[[socket.socket], Awaitable[None]], due: float) -> None:
        self.due = due
        self._patience.until(due)
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
        trio.lowlevel.notify_closing(self.sock)

    def reusable(self, now: float) -> bool:
        """Say whether an idle connection is still good: young, open, and silent as an idle one must be."""
        # readable means closed by the worker, or bytes that belong to no request
        return now - self.idle_since <= IDLE_CONNECTION_S and not self._poll.poll(0)

    def close(self) -> None:
        """Close it. May be called twice."""
        self._patience.leave(self)
        self.sock.close()


async def connect(port: int, patience: Patience) -> Link:
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
        return Link(sock, port, patience)
    except OSError as error:
        sock.close()
        raise ConnectFailed(str(error)) from error
    except BaseException:
        sock.close()
        raise

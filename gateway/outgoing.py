"""What goes to one client: sent at once as far as the kernel takes it, the rest kept and sent as the client reads.

A writer does not wait for its client while what is unread stays within bounds: a worker's slot is free when the
worker is done, not when the client has read. No wait for a client lasts for ever.
"""

import socket
from collections.abc import Callable

import structlog
import trio

from gateway.connections import UNREAD_BYTES, Connections

log = structlog.get_logger("gateway")

# What a client may leave unread in our memory before its writer waits: nearly every answer of a model as a whole (a
# token's line has 100 to 300 bytes).
BUFFER_BYTES = 1024 * 1024
# A writer that had to wait goes on when there is room for all that is usually written at once, and for its end.
ROOM_BYTES = BUFFER_BYTES // 2
_FLUSH_BYTES = 256 * 1024


class Outgoing:
    """The sending half of a connection."""

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        nursery: trio.Nursery,
        stall_timeout_s: float,
        changed: Callable[[], None],
    ) -> None:
        """`connections` counts what all clients have not read; the sending goes on in `nursery`.

        `changed` is called when something is unread, and when nothing is any more.
        """
        self.broken: str | None = None
        self._sock = sock
        self._connections = connections
        self._nursery = nursery
        self._stall_timeout_s = stall_timeout_s
        self._changed = changed
        self._unread = bytearray()
        self._went = trio.Event()  # set, and made anew, whenever some of it went

    @property
    def unread(self) -> int:
        """How many bytes are kept that the client has not taken."""
        return len(self._unread)

    def put(self, data: bytes | bytearray | memoryview) -> bool:
        """Send what the kernel takes, keep the rest; say whether the writer should wait (`wait_room`).

        Raises BrokenResourceError when the connection broke, now or while what was kept was sent.
        """
        if self.broken:
            raise trio.BrokenResourceError(self.broken)
        sent = 0
        if not self._unread:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self.end(str(error))
                raise trio.BrokenResourceError(str(error)) from error
            if sent == len(data):
                return False
            self._nursery.start_soon(self._flush)
        with memoryview(data) as whole, whole[sent:] as rest:
            self._unread += rest
        self._connections.unread += len(data) - sent
        self._changed()
        return len(self._unread) > BUFFER_BYTES or self._connections.unread > UNREAD_BYTES

    async def wait_room(self) -> None:
        """Wait until the client has read some. Where all clients together leave too much unread: until it has read all.

        Raises BrokenResourceError, among others when the client takes nothing for STALL_TIMEOUT_S. Cancellation
        loses nothing.
        """
        while len(self._unread) > (0 if self._connections.unread > UNREAD_BYTES else ROOM_BYTES):
            await self._went.wait()
        if self.broken:
            raise trio.BrokenResourceError(self.broken)

    async def wait_read(self) -> None:
        """Return when nothing is unread, or the connection broke."""
        while self._unread:
            await self._went.wait()

    def end(self, why: str) -> None:
        """Nothing more can be sent: whoever waits, or writes next, is told why."""
        self.broken = self.broken or why
        self._connections.unread -= len(self._unread)
        self._unread.clear()
        self._wake()

    def _wake(self) -> None:
        self._went.set()
        self._went = trio.Event()
        if not self._unread:
            self._changed()

    async def _flush(self) -> None:
        try:
            while self._unread:
                with trio.CancelScope(deadline=trio.current_time() + self._stall_timeout_s) as patience:
                    await trio.lowlevel.wait_writable(self._sock)
                if patience.cancelled_caught:
                    log.warning("client does not read; its connection is cut", after_s=self._stall_timeout_s)
                    self.end("the client does not read")
                    return
                self._send()
        except (OSError, trio.ClosedResourceError) as error:
            self.end(str(error) or "the connection is closed")
        finally:
            if self._unread:  # cancelled
                self.end("the gateway is going down")

    def _send(self) -> None:
        with memoryview(self._unread) as whole, whole[:_FLUSH_BYTES] as part:
            try:
                sent = self._sock.send(part)
            except BlockingIOError:
                return
        del self._unread[:sent]
        self._connections.unread -= sent
        self._wake()

"""Small questions to a worker, asked every few seconds: GET on loopback, one kept connection per port (h11, trio).

httpx is the client for everything else. Here its comfort would be most of what the supervisor costs when nothing
happens: a question takes twenty times the CPU with it (docs/performance.md).
"""

from dataclasses import dataclass

import h11
import trio

# A connection unused for longer is closed: its worker may be long gone, and its port another's.
IDLE_CONNECTION_S = 60.0
_READ_BYTES = 64 * 1024
_MOST_BYTES = 4 * 1024**2
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


@dataclass(slots=True)
class _Connection:
    stream: trio.SocketStream
    http: h11.Connection
    idle_since: float = 0.0


class Asker:
    """Asks by port. Questions to one port at the same time do not wait for each other; one connection is kept."""

    def __init__(self) -> None:
        self._idle: dict[int, _Connection] = {}
        self._looked_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        for connection in self._idle.values():
            connection.stream.socket.close()
        self._idle.clear()

    async def get(self, port: int, path: str) -> bytes | None:
        """Return the body of a 200, None for any other answer or none. The caller has the deadline.

        A kept connection that turns out to be broken costs a second try on a new one. Cancellation closes the
        connection that the question was on.
        """
        self._close_unused()
        kept = self._idle.pop(port, None)
        if kept is not None:
            try:
                return await self._on(kept, port, path)
            except _BROKEN:
                pass  # closed by the worker meanwhile, or it is a new one: said by the second try
        try:
            stream = await _connected(port)
        except OSError:
            return None
        try:
            return await self._on(_Connection(stream, h11.Connection(h11.CLIENT)), port, path)
        except _BROKEN:
            return None

    async def _on(self, connection: _Connection, port: int, path: str) -> bytes | None:
        """Ask on a connection, which is kept or closed afterwards, whatever happens. Raises one of _BROKEN."""
        http, stream = connection.http, connection.stream
        kept = False
        try:
            request = h11.Request(method="GET", target=path, headers=[("Host", f"127.0.0.1:{port}")])
            await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            status, body = await _answer(connection)
            # bytes beyond the answer belong to no question: the next one would take them for its own answer
            done = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
            if done and port not in self._idle:
                http.start_next_cycle()
                connection.idle_since = trio.current_time()
                self._idle[port] = connection
                kept = True
            return body if status == 200 else None
        finally:
            if not kept:
                stream.socket.close()

    def _close_unused(self) -> None:
        now = trio.current_time()
        if now - self._looked_at < IDLE_CONNECTION_S:
            return
        self._looked_at = now
        for port, connection in list(self._idle.items()):
            if now - connection.idle_since >= IDLE_CONNECTION_S:
                del self._idle[port]
                connection.stream.socket.close()


async def _answer(connection: _Connection) -> tuple[int, bytes]:
    """Return the status and the body. Raises one of _BROKEN."""
    status, body = 0, bytearray()
    while True:
        event = connection.http.next_event()
        if event is h11.NEED_DATA:
            connection.http.receive_data(await connection.stream.receive_some(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MOST_BYTES:
                raise h11.RemoteProtocolError("an answer that long is none of Ollama's")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise h11.RemoteProtocolError("the connection was closed")


async def _connected(port: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    try:
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)

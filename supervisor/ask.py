"""Small questions to a worker, asked every few seconds: GET on loopback, one kept connection per port (h11, trio).

httpx is the client for everything else. Here its comfort would be most of what the supervisor costs when nothing
happens: with 64 workers half a core-percent per hundred questions counts (docs/performance.md).
"""

from dataclasses import dataclass

import h11
import trio

_READ_BYTES = 64 * 1024
_MOST_BYTES = 4 * 1024**2
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


@dataclass(slots=True)
class _Connection:
    stream: trio.SocketStream
    http: h11.Connection


class Asker:
    """Asks by port. One question at a time per port is kept waiting for none: a second one gets its own connection."""

    def __init__(self) -> None:
        self._idle: dict[int, _Connection] = {}

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
        kept = self._idle.pop(port, None)
        if kept is not None:
            try:
                return await self._on(kept, port, path)
            except _BROKEN:
                kept.stream.socket.close()
        try:
            stream = await _connected(port)
        except OSError:
            return None
        try:
            return await self._on(_Connection(stream, h11.Connection(h11.CLIENT)), port, path)
        except _BROKEN:
            return None

    async def _on(self, connection: _Connection, port: int, path: str) -> bytes | None:
        http, stream = connection.http, connection.stream
        kept = False
        try:
            request = h11.Request(method="GET", target=path, headers=[("Host", f"127.0.0.1:{port}")])
            await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            status, body = 0, b""
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some(_READ_BYTES))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > _MOST_BYTES:
                        raise h11.RemoteProtocolError("an answer that long is none of Ollama's")
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                    raise h11.RemoteProtocolError("the connection was closed")
            if http.our_state is h11.DONE and http.their_state is h11.DONE and port not in self._idle:
                http.start_next_cycle()
                self._idle[port] = connection
                kept = True
            return body if status == 200 else None
        finally:
            if not kept:
                stream.socket.close()


async def _connected(port: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    try:
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)

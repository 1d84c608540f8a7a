"""One HTTP/1.1 exchange with a worker, over pooled connections (h11 on trio sockets).

A connection goes back to the pool only when its answer has been read to the end; any other way out of the block
closes it, which is how Ollama learns that nobody waits for the answer. One that died idle is found when it is
taken from the pool, or costs the request a retry.
"""

import select
import socket
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

import h11
import trio

from gateway.errors import ConnectFailed, FirstByteTimeout, Stalled, WorkerLost
from gateway.headers import Headers

CONNECT_TIMEOUT_S = 5.0
IDLE_CONNECTION_S = 30.0
IDLE_PER_WORKER = 64
READ_BYTES = 64 * 1024
HEAD_BYTES = 128 * 1024

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError, OSError)


class _Connection:
    """One connection to a worker and its HTTP state."""

    def __init__(self, stream: trio.SocketStream, port: int) -> None:
        self.stream = stream
        self.port = port
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self.idle_since = 0.0

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event, reading as much as it takes. Raises one of _BROKEN."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.stream.receive_some(READ_BYTES))
        return event  # type: ignore[return-value]  # h11 types NEED_DATA as one of the things returned here

    def reusable(self, now: float) -> bool:
        """Say whether an idle connection is still good: young, open, and silent as an idle one must be."""
        if now - self.idle_since > IDLE_CONNECTION_S:
            return False
        # readable means closed by the worker, or bytes that belong to no request
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLIN)
        return not poll.poll(0)


class Answer:
    """A worker's answer: its head, and its body as it comes."""

    def __init__(self, connection: _Connection, response: h11.Response, stall_timeout_s: float, sent_at: float) -> None:
        """`sent_at`: when the worker had all of the request (trio's clock)."""
        self.sent_at = sent_at
        self.status = response.status_code
        self.headers: Headers = list(response.headers)
        self.ended = False
        self._connection = connection
        self._stall_timeout_s = stall_timeout_s

    async def read(self) -> bytes:
        """Return what has come of the body, at least one byte; none when it has ended.

        Chunks that came together are returned together: that is one write to the client instead of many.
        Raises WorkerLost and Stalled. Cancellation loses nothing but the connection.
        """
        if self.ended:
            return b""
        with trio.CancelScope(deadline=trio.current_time() + self._stall_timeout_s):
            return await self._read()
        raise Stalled(self._stall_timeout_s)

    async def _read(self) -> bytes:
        parts: list[bytes] = []
        http = self._connection.http
        try:
            while True:
                event = http.next_event() if parts else await self._connection.event()
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.ended = True
                    break
                elif event is h11.NEED_DATA:
                    break
                else:
                    raise WorkerLost("while it answered: the connection was closed")
        except _BROKEN as error:
            if parts:
                # what came before the break still belongs to the client; the break is met at the next read
                return b"".join(parts)
            raise WorkerLost(f"while it answered: {_why(error)}") from error
        return b"".join(parts)


class Upstream:
    """Connections to every worker and to the primary, by port."""

    def __init__(self, *, first_byte_timeout_s: float, stall_timeout_s: float) -> None:
        self._first_byte_timeout_s = first_byte_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._idle: dict[int, list[_Connection]] = {}

    async def aclose(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                await trio.aclose_forcefully(connection.stream)
        self._idle.clear()

    @asynccontextmanager
    async def exchange(
        self, port: int, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterable[bytes] | None
    ) -> AsyncIterator[Answer]:
        """Send a request to 127.0.0.1:port; the block has the answer once its head is there.

        Raises ConnectFailed, WorkerLost, FirstByteTimeout; `Answer.read` raises WorkerLost and Stalled.
        Cancellation, and leaving the block before the end of the body, close the connection.
        """
        connection, answer = await self._ask(port, method, target, headers, body)
        try:
            yield answer
        finally:
            if answer.ended:
                self._give_back(connection)
            else:
                connection.stream.socket.close()

    async def _ask(
        self, port: int, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterable[bytes] | None
    ) -> tuple[_Connection, Answer]:
        """Send the request and return the connection with the answer's head.

        A pooled connection that breaks before the answer may have been closed by the worker just then, which
        says nothing about the worker: the request is sent once more on a new one. A body that comes in parts
        cannot be sent twice, so it gets a new connection at once.
        """
        pooled = self._take(port) if body is None or isinstance(body, bytes) else None
        if pooled:
            try:
                return pooled, await self._ask_on(pooled, method, target, headers, body)
            except WorkerLost:
                pass  # tried once more, below
        fresh = await _connect(port)
        return fresh, await self._ask_on(fresh, method, target, headers, body)

    async def _ask_on(
        self, connection: _Connection, method: str, target: bytes, headers: Headers,
        body: bytes | AsyncIterable[bytes] | None,
    ) -> Answer:  # fmt: skip
        try:
            with trio.CancelScope(deadline=trio.current_time() + self._first_byte_timeout_s) as first_byte:
                await self._send(connection, method, target, headers, body, first_byte)
                sent_at = trio.current_time()
                return Answer(connection, await _head(connection), self._stall_timeout_s, sent_at)
            raise FirstByteTimeout(self._first_byte_timeout_s)
        except _BROKEN as error:
            connection.stream.socket.close()
            raise WorkerLost(f"before it answered: {_why(error)}") from error
        except BaseException:
            connection.stream.socket.close()
            raise

    async def _send(
        self, connection: _Connection, method: str, target: bytes, headers: Headers,
        body: bytes | AsyncIterable[bytes] | None, first_byte: trio.CancelScope,
    ) -> None:  # fmt: skip
        http, stream = connection.http, connection.stream
        head = http.send(h11.Request(method=method, target=target, headers=headers))
        try:
            if body is None or isinstance(body, bytes):
                data = http.send(h11.Data(data=body)) if body else b""
                await stream.send_all(b"".join(part or b"" for part in (head, data, http.send(h11.EndOfMessage()))))
                return
            await stream.send_all(head or b"")
            async for chunk in body:
                # while a body of many gigabytes goes up, its own progress is what counts
                first_byte.deadline = trio.current_time() + self._first_byte_timeout_s
                await stream.send_all(http.send(h11.Data(data=chunk)) or b"")
            await stream.send_all(http.send(h11.EndOfMessage()) or b"")
        except trio.BrokenResourceError:
            # a server may refuse a body before its end, and say why: the answer is what counts
            return

    def _take(self, port: int) -> _Connection | None:
        idle = self._idle.get(port, [])
        now = trio.current_time()
        while idle:
            connection = idle.pop()  # the one used last is the one most likely alive
            if connection.reusable(now):
                return connection
            connection.stream.socket.close()
        return None

    def _give_back(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.port, [])
        http = connection.http
        # bytes beyond the answer belong to no request: the next one would take them for its own answer
        good = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
        if good and len(idle) < IDLE_PER_WORKER:
            http.start_next_cycle()
            connection.idle_since = trio.current_time()
            idle.append(connection)
        else:
            connection.stream.socket.close()

    def forget(self, port: int) -> None:
        """Close the idle connections to a worker that is gone."""
        for connection in self._idle.pop(port, []):
            connection.stream.socket.close()


def _why(error: Exception) -> str:
    """Return what broke, for logs: without the bytes that h11 repeats, which may be an answer's, and many."""
    said = str(error)
    if isinstance(error, h11.RemoteProtocolError):
        said = said.partition(":")[0]
    return said or type(error).__name__


async def _connect(port: int) -> _Connection:
    """Connect to a worker. Raises ConnectFailed."""
    try:
        sock = trio.socket.socket()
    except OSError as error:  # no file descriptor left
        raise ConnectFailed(str(error)) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with trio.CancelScope(deadline=trio.current_time() + CONNECT_TIMEOUT_S) as connecting:
            await sock.connect(("127.0.0.1", port))
        if connecting.cancelled_caught:
            raise ConnectFailed(f"not within {CONNECT_TIMEOUT_S:g} s")
        return _Connection(trio.SocketStream(sock), port)
    except OSError as error:
        sock.close()
        raise ConnectFailed(str(error)) from error
    except BaseException:
        sock.close()
        raise


async def _head(connection: _Connection) -> h11.Response:
    """Return the answer's head, past any 1xx."""
    while True:
        event = await connection.event()
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection was closed")

"""A worker that does as it is told: an HTTP/1.1 server on trio sockets, scripted request by request.

A script is a list of behaviours; each request takes the next one, the last one serves all further requests. A
behaviour is an async function of the `Conversation`; when it returns, the connection waits for its next request.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio
from trio.testing import wait_all_tasks_blocked

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


@dataclass
class Received:
    """One request as the worker got it, and on which of its connections."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    connection: int
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)


class Left(Exception):
    """The client has closed the connection."""


@dataclass
class Conversation:
    """One request on one connection, to be answered with raw bytes."""

    request: Received
    stream: trio.SocketStream
    server: "WorkerServer"

    async def send(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(b"".join(parts))

    async def head(self, *headers: str, status: int = 200) -> None:
        """Send a status line and headers."""
        await self.send("\r\n".join([f"HTTP/1.1 {status} Fine", *headers, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; an empty one ends it."""
        await self.send(f"{len(data):x}\r\n".encode(), data, b"\r\n")

    async def die(self) -> None:
        """Close the connection."""
        await self.stream.aclose()
        raise Left

    async def until_left(self) -> None:
        """Return never: wait until the client has closed the connection."""
        try:
            while await self.stream.receive_some(65536):
                continue
        except trio.BrokenResourceError:
            pass  # closed with bytes unread: a reset
        self.server.client_left.set()
        raise Left


Behaviour = Callable[[Conversation], Awaitable[None]]


@dataclass
class WorkerServer:
    """The server, what it received, and how its clients left."""

    script: list[Behaviour]
    port: int = 0
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    open: int = 0  # of them, those that neither side has closed
    # Set when a request's behaviour begins, and when a client closes a connection in the middle of an answer.
    asked: trio.Event = field(default_factory=trio.Event)
    client_left: trio.Event = field(default_factory=trio.Event)
    # Set whenever a connection ends that waited for its next request.
    idle_closed: trio.Event = field(default_factory=trio.Event)
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    # Set when nothing more is to be sent but what is asked for anew: see `sends`.
    halted: bool = False
    # Whether a behaviour begins as soon as the head of a request is there, its body unread.
    refuses_early: bool = False

    def die(self) -> None:
        """Close the listener and every connection at once, as a killed process does."""
        self.life.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on a port of its own, until it dies."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with listener:
            with self.life:
                task_status.started()
                await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        number = self.connections = self.connections + 1
        self.open += 1
        rest = b""
        try:
            while True:
                http = h11.Connection(h11.SERVER)
                if rest:  # none would mean the end of the connection
                    http.receive_data(rest)
                request = await self._read(http, stream, number)
                rest = http.trailing_data[0]
                behaviour = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                self.asked.set()
                await behaviour(Conversation(request, stream, self))
        except (Left, trio.BrokenResourceError):
            pass  # one of the two has closed the connection
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def _read(self, http: h11.Connection, stream: trio.SocketStream, number: int) -> Received:
        request: Received | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(65536)
                if not data:
                    self.idle_closed.set()
                    raise Left
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                request = Received(event.method.decode(), event.target.decode(), headers, number)
                self.received.append(request)
                if self.refuses_early:
                    request.body = http.trailing_data[0]  # so much of it as came with the head
                    return request
            elif isinstance(event, h11.Data):
                assert request is not None
                request.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return request
            else:
                raise Left


@asynccontextmanager
async def worker_server(*script: Behaviour, refuses_early: bool = False) -> AsyncIterator[WorkerServer]:
    """A server for the block, on a port of its own."""
    server = WorkerServer(list(script), refuses_early=refuses_early)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.die()


# -- behaviours ------------------------------------------------------------------------------------------------------


def says(body: bytes, *headers: str, status: int = 200, kind: str = "application/json") -> Behaviour:
    """Answer with a whole body and its length."""

    async def behaviour(talk: Conversation) -> None:
        length = f"content-length: {len(body)}"
        await talk.head(f"content-type: {kind}", length, *headers, status=status)
        await talk.send(b"" if talk.request.method == "HEAD" else body)

    return behaviour


def streams(*parts: bytes, kind: str = NDJSON) -> Behaviour:
    """Answer with a chunked body, complete."""
    return starts(*parts, kind=kind, then=lambda talk: talk.chunk(b""))


def starts(*parts: bytes, kind: str = NDJSON, then: Behaviour) -> Behaviour:
    """Begin a chunked answer; `then` is what follows."""

    async def behaviour(talk: Conversation) -> None:
        await talk.head(f"content-type: {kind}", "transfer-encoding: chunked")
        for part in parts:
            await talk.chunk(part)
        await then(talk)

    return behaviour


def sends(*parts: bytes) -> Behaviour:
    """Send bytes as they are, each part only when all tasks wait for it; once the server is halted, none."""

    async def behaviour(talk: Conversation) -> None:
        for part in parts:
            await wait_all_tasks_blocked()
            if talk.server.halted:
                await talk.until_left()
            await talk.send(part)

    return behaviour


async def dies(talk: Conversation) -> None:
    """Close the connection."""
    await talk.die()


async def dies_mid_chunk(talk: Conversation) -> None:
    """Close the connection with a chunk half sent."""
    await talk.send(b"100\r\nhalf a chunk")
    await talk.die()


async def hangs(talk: Conversation) -> None:
    """Say nothing more until the client leaves."""
    await talk.until_left()

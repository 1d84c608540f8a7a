"""A gateway that listens on a loopback port of its own, and clients of it that speak in raw bytes."""

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import trio

from gateway.app import make_app
from gateway.asgi import App, AsgiLane, Message, Receive, Send
from gateway.door import Door, listen, run_gateway
from gateway.front import Front
from gateway.page import ByHost, no_page
from gateway.pulls import Pulls
from tests.fakes.certificates import certified
from tests.fakes.fleet_admin import FakeFleet
from tests.fakes.hall import Hall

# A test that hangs says so; no result depends on it.
TOO_LONG_S = 10.0
CHAT = b'{"model":"m","messages":[{}]}'
MAX_BODY_BYTES = 100_000
# Which lanes the gateway has: with the express lane (and Hypercorn for what is not for it), or Hypercorn alone.
EXPRESS, HYPERCORN = "express", "hypercorn"
OVER_TLS = " over TLS"
LANES = (EXPRESS, HYPERCORN, EXPRESS + OVER_TLS, HYPERCORN + OVER_TLS)


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Client:
    """One connection to the gateway, in raw bytes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.got = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def post(self, path: str, body: bytes, *headers: str) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
        await self.send("\r\n".join(lines).encode() + body)

    async def send_eof(self) -> None:
        """Send nothing more, and read on. TLS has no such half: it is TCP's."""
        under = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        await under.send_eof()

    async def until(self, end: bytes) -> bytes:
        """What has come up to and with `end`."""
        with trio.fail_after(TOO_LONG_S):
            while end not in self.got:
                data = await self.stream.receive_some(65536)
                assert data, f"closed after {self.got!r}"
                self.got += data
        whole, end, self.got = self.got.partition(end)
        return whole + end

    async def until_closed(self) -> bytes:
        """What has come until the gateway closed the connection."""
        with trio.fail_after(TOO_LONG_S):
            try:
                while data := await self.stream.receive_some(65536):
                    self.got += data
            except trio.BrokenResourceError:
                pass  # closed with bytes unread: a reset
        return self.got


Connect = Callable[..., Awaitable[Client]]
Dial = Callable[..., Awaitable[trio.SocketStream]]


class House:
    """A gateway that listens."""

    def __init__(self, hall: Hall, served: "Served", connect: Connect, front: Front) -> None:
        self.hall = hall
        self.front = front
        self.door = served.door
        self.served = served
        self._connect = connect

    async def client(self) -> Client:
        return await self._connect(self.served)


@dataclass
class Served:
    """An application behind a door of its own."""

    door: Door
    port: int
    life: trio.CancelScope
    ended: trio.Event
    tls: bool = False


async def serve(
    nursery: trio.Nursery, app: App, stall_timeout_s: float = TOO_LONG_S, host: str = "127.0.0.1", bound: int = 100,
    lane: str = HYPERCORN, tls: Callable[[], ssl.SSLContext | None] | None = None,
    refused: Callable[[int], None] = lambda _: None,
) -> Served:  # fmt: skip
    express = app.front if isinstance(app, Routed) and lane.startswith(EXPRESS) else None
    tls = tls or (certified if lane.endswith(OVER_TLS) else lambda: None)
    sockets = listen(host, 0)
    life, ended = trio.CancelScope(), trio.Event()

    async def serving(task_status: trio.TaskStatus[Door]) -> None:
        with life:
            await run_gateway(
                app, sockets, express=express, tls=tls, stall_timeout_s=stall_timeout_s, max_connections=bound,
                refused=refused,                 task_status=task_status,
            )  # fmt: skip
        ended.set()

    port = sockets[0].getsockname()[1]
    return Served(await nursery.start(serving), port, life, ended, tls() is not None)


class Routed(ByHost):
    """The whole application, and the front that it has in common with the express lane."""

    def __init__(self, lane: AsgiLane) -> None:
        super().__init__(lane.front, lane, no_page)
        self.front = lane.front


def front_of(hall: Hall) -> Routed:
    front = Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=MAX_BODY_BYTES)
    return Routed(AsgiLane(front, pages_of(hall)))


def pages_of(hall: Hall) -> App:
    """Return the pages, which are made when one is asked for: it takes longer than most tests."""

    @cache
    def pages() -> App:
        return cast("App", make_app(FakeFleet(), hall.admission, hall.metrics, None))

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        await pages()(scope, receive, send)

    return answer

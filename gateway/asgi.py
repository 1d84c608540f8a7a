"""The lane through Hypercorn: requests as ASGI tells them to the front, everything else to Quart."""

from collections.abc import Awaitable, Callable
from random import getrandbits
from typing import Any

import structlog
import trio

from gateway.body import Body, LaneReply
from gateway.errors import ClientGone, GatewayError, dialect_of
from gateway.forwarded import TrustedProxies
from gateway.front import Front, notice_of
from gateway.headers import Headers, first_values, request_id_of
from gateway.ollama import Answerer, answerer
from gateway.request import Request

log = structlog.get_logger("gateway")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
# The name in a scope's "extensions" of what sends an informational answer (gateway.answering); HTTP/1.1 only.
INFORMATIONAL = "chimera.informational"


class AsgiBody(Body):
    """A request's body through ASGI."""

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive
        self._completed = trio.Event()

    def _take(self, part: bytes, *, more: bool) -> None:
        super()._take(part, more=more)
        if self.complete:
            self._completed.set()

    async def receive(self) -> tuple[bytes, bool]:
        """Return what comes next, and whether there is more to come. Raises ClientGone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return bytes(message.get("body", b"")), message.get("more_body", False)

    async def drain(self) -> None:
        """Throw away what comes until the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def wait_gone(self) -> None:
        """Return when the client has left. Before the body is complete, its reader is who meets that."""
        await self._completed.wait()
        await self.drain()

    async def while_there(self, reply: LaneReply, doing: Awaitable[None]) -> None:
        """Do something, or leave off when the client leaves. Raises what it raises, and ClientGone."""
        gone = False
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await self.wait_gone()
                if not reply.ended:  # the end of an answer is told as a disconnect too
                    gone = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            fault = await _caught(doing)
            nursery.cancel_scope.cancel()
        if gone:
            raise ClientGone
        if fault is not None:
            raise fault


async def _caught(doing: Awaitable[None]) -> GatewayError | None:
    """Carry a fault out of a nursery by hand: an exception group would hide it."""
    try:
        await doing
    except GatewayError as fault:
        return fault
    return None


class AsgiReply:
    """An answer through ASGI."""

    direct = None  # Hypercorn is to be waited for

    def __init__(self, send: Send, body: AsgiBody) -> None:
        self._send = send
        self._body = body
        self.started = False
        self.ended = False
        self.status = 0
        self.sent_bytes = 0
        self.begun_at: float | None = None

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self.started, self.status, self.begun_at = True, status, trio.current_time()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Complete the body. What is left of the request's is thrown away first. Raises ClientGone."""
        last = {"type": "http.response.body", "body": b"", "more_body": False}
        if not self._body.complete:
            await self._body.discard()
        self.ended = True
        if self._body.complete:
            await self._send(last)
            return
        async with trio.open_nursery() as nursery:
            # Hypercorn would wait for ever to hand over the rest of the request, and never end the connection
            nursery.start_soon(self._body.drain)
            await self._send(last)
            nursery.cancel_scope.cancel()

    async def abort(self) -> None:
        """Leave the body incomplete: Hypercorn then cuts the connection when the application returns."""


class AsgiLane:
    """The ASGI application: Ollama's and OpenAI's paths to the front, the rest to `pages` (Quart)."""

    def __init__(self, front: Front, pages: App) -> None:
        self.front = front
        self._pages = pages

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request. Cancellation, and the client's leaving, end the exchange and give its slot back."""
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        who = answerer(scope["method"], scope["path"])
        if who is Answerer.GATEWAY:
            await self._pages(scope, receive, send)
            return
        request = _request(scope, self.front.proxies)
        request.notice = notice_of((scope.get("extensions") or {}).get(INFORMATIONAL), request)
        body = AsgiBody(receive)
        try:
            await self.front.answer(who, request, body, AsgiReply(send, body), checked=scope["http_version"] != "2")
        except ClientGone:
            log.debug("client left", request=request.id, path=request.path)


def _request(scope: Message, proxies: TrustedProxies) -> Request:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
    named = first_values(headers)
    return Request(
        method=scope["method"],
        path=scope["path"],
        target=raw_path + (b"?" + query if query else b""),
        headers=headers,
        dialect=dialect_of(scope["path"]),
        id=request_id_of(named, getrandbits),
        caller=proxies.origin(str((scope.get("client") or ("",))[0]), headers).address,
        named=named,
    )

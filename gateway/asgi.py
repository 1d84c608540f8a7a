"""The ASGI side of the gateway: requests from Hypercorn to the exchange, everything else to Quart."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import structlog
import trio

from gateway.admission import Notice
from gateway.book import Book
from gateway.errors import BodyTooLarge, BodyTooSlow, ClientGone, GatewayError, QueueFull, Unsendable, dialect_of
from gateway.exchange import Exchange
from gateway.fleetwide import Fleetwide
from gateway.headers import Headers, framing_of, request_id_of, sendable, value_of
from gateway.keyring import Keyring
from gateway.labels import route_label
from gateway.load_options import names_of, without_load_options
from gateway.metrics import Metrics
from gateway.ollama import Answerer, Kind, answerer, read_ask
from gateway.pulls import BODY_BYTES, Pulls
from gateway.request import Request, answer_error

log = structlog.get_logger("gateway")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
# The name in a scope's "extensions" of what sends an informational answer (gateway.answering); HTTP/1.1 only.
INFORMATIONAL = "chimera.informational"

# A body must bring so much in each so many seconds in which it is waited for: a slow line does, a sender of one byte a
# second does not. It holds no slot meanwhile, but a connection and memory.
PROGRESS_BYTES = 1024
PROGRESS_S = 30.0
# What is still read of a body that is refused, so that the client hears the refusal before its connection is cut.
DISCARD_BYTES = 1024**3
DISCARD_TIMEOUT_S = 10.0


class AsgiBody:
    """A request's body as it comes, and the news that the client has left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._completed = trio.Event()
        self.received_bytes = 0
        self.completed_at: float | None = None
        self._waited_s = 0.0  # for the client, since it last brought PROGRESS_BYTES
        self._brought = 0
        self.too_slow = False

    @property
    def complete(self) -> bool:
        """Whether all of the body has been read."""
        return self._completed.is_set()

    async def _next(self) -> bytes:
        """Return the next part. Raises ClientGone, and BodyTooSlow when too little comes."""
        since = trio.current_time()
        with trio.move_on_at(since + PROGRESS_S - self._waited_s) as patience:
            message = await self._receive()
        if patience.cancelled_caught:
            self.too_slow = True
            raise BodyTooSlow
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = bytes(message.get("body", b""))
        self.received_bytes += len(part)
        if not message.get("more_body", False):
            self.completed_at = trio.current_time()
            self._completed.set()
        self._waited_s += trio.current_time() - since
        self._brought += len(part)
        if self._brought >= PROGRESS_BYTES:
            self._waited_s, self._brought = 0.0, 0
        return part

    async def read(self, declared: bytes | None, max_body_bytes: int, room: "Room") -> bytes:
        """Return the whole body; while it is being read it takes of `room`.

        Raises BodyTooLarge, at once where the length was declared, QueueFull where there is no more room, BodyTooSlow
        and ClientGone.
        """
        if declared is not None and int(declared) > max_body_bytes:
            raise BodyTooLarge(max_body_bytes)
        parts: list[bytes] = []
        length = 0
        try:
            while not self.complete:
                parts.append(await self._next())
                length += len(parts[-1])
                room.bytes += len(parts[-1])
                if length > max_body_bytes:
                    raise BodyTooLarge(max_body_bytes)
                if room.bytes > room.most_bytes:
                    raise QueueFull
            return b"".join(parts)
        finally:
            room.bytes -= length

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body part by part; nothing is held. Raises BodyTooSlow and ClientGone."""
        while not self.complete:
            if part := await self._next():
                yield part

    async def discard(self) -> None:
        """Read what is left of a refused body, within bounds; nothing of one that is too slow. Raises ClientGone."""
        left = 0 if self.too_slow else DISCARD_BYTES
        with trio.move_on_after(DISCARD_TIMEOUT_S):
            try:
                while not self.complete and left > 0:
                    left -= len(await self._next())
            except BodyTooSlow:
                return

    async def drain(self) -> None:
        """Throw away what comes until the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def wait_gone(self) -> None:
        """Return when the client has left. Before the body is complete, its reader is who meets that."""
        await self._completed.wait()
        await self.drain()


@dataclass(slots=True)
class Room:
    """What the bodies that are being read take together, and may take: before a ticket there is no other bound."""

    most_bytes: int
    bytes: int = 0


class AsgiReply:
    """An answer through ASGI."""

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


class Front:
    """The ASGI application: Ollama's and OpenAI's paths here, the rest to `pages` (Quart)."""

    def __init__(
        self, exchange: Exchange, pulls: Pulls, metrics: Metrics, pages: App, *, max_body_bytes: int,
        pin_load_options: bool = False, keyring: Keyring | None = None, book: Book | None = None,
    ) -> None:  # fmt: skip
        """`pin_load_options`: options that would load a model anew are taken out of requests (LOAD_OPTIONS).

        `keyring` has the API keys; without one none is asked for. `book` follows each request to its end; without one
        only the metrics hear of it.
        """
        self._exchange = exchange
        self.pulls = pulls
        self._fleetwide = Fleetwide(exchange)
        self._book = book or Book(metrics)
        self._pages = pages
        self._max_body_bytes = max_body_bytes
        self._reading = Room(max(exchange.admission.dispatcher.queue_bytes, max_body_bytes))
        self._pin_load_options = pin_load_options
        self._keyring = keyring or Keyring()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request. Cancellation, and the client's leaving, end the exchange and give its slot back."""
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        who = answerer(scope["method"], scope["path"])
        if who is Answerer.GATEWAY:
            await self._pages(scope, receive, send)
            return
        request = _request(scope)
        request.notice = _notice(scope, request)
        body = AsgiBody(receive)
        reply = AsgiReply(send, body)
        try:
            with self._book.following(request, route_label(who, request.path), body, reply):
                await self._carry_out(who, request, body, reply, checked=scope["http_version"] != "2")
        except ClientGone:
            log.debug("client left", request=request.id, path=request.path)
            return

    async def _carry_out(
        self, who: Answerer, request: Request, body: AsgiBody, reply: AsgiReply, *, checked: bool
    ) -> None:
        """`checked`: it is known that HTTP/1.1 can say what is in the request."""
        try:
            if not checked and not sendable(request.method, request.target, request.headers):
                raise Unsendable
            with self._keyring.admitted(request, who):
                await self._answer(who, request, body, reply)
        except GatewayError as fault:
            request.phases.fault = fault
            if isinstance(fault, ClientGone) or reply.started:
                raise ClientGone from fault
            await answer_error(request, fault, reply)  # type: ignore[arg-type]  # every GatewayError but ClientGone is a Fault

    async def _answer(self, who: Answerer, request: Request, body: AsgiBody, reply: AsgiReply) -> None:
        declared = value_of(request.headers, b"content-length")
        if who is Answerer.PRIMARY and framing_of(request.headers) and not _is_pull(request, declared):
            async with aclosing(body.stream()) as parts:
                await self._while_there(body, reply, self._exchange.to_primary(request, parts, reply))
            return
        whole = await body.read(declared, self._max_body_bytes, self._reading)
        await self._while_there(body, reply, self._inference(who, request, whole, reply))

    async def _while_there(self, body: AsgiBody, reply: AsgiReply, doing: Awaitable[None]) -> None:
        """Do something, or leave off when the client leaves. Raises what it raises, and ClientGone."""
        gone = False
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await body.wait_gone()
                if not reply.ended:  # the end of an answer is told as a disconnect too
                    gone = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            fault = await self._caught(doing)
            nursery.cancel_scope.cancel()
        if gone:
            raise ClientGone
        if fault is not None:
            raise fault

    async def _caught(self, doing: Awaitable[None]) -> GatewayError | None:
        """Carry a fault out of a nursery by hand: an exception group would hide it."""
        try:
            await doing
        except GatewayError as fault:
            return fault
        return None

    async def _inference(self, who: Answerer, request: Request, body: bytes, reply: AsgiReply) -> None:
        if who is Answerer.FLEET:
            await self._fleetwide.ps(request, reply)
            return
        if _is_pull(request, str(len(body)).encode()):
            await self.pulls.answer(request, body, reply)
            return
        if who is Answerer.PRIMARY:
            await self._exchange.to_primary(request, body or None, reply)  # HTTP/2 has bodies without framing
            return
        kind = (value_of(request.headers, b"content-type") or b"").decode("latin1").lower()
        ask = read_ask(request.path, kind, body)
        if ask.load_options and self._pin_load_options:
            request.dropped_options = names_of(ask.load_options)
            ask, body = replace(ask, load_options=""), without_load_options(body)
        request.phases.model = ask.model
        match ask.kind:
            case Kind.HOPELESS:
                await self._exchange.to_primary(request, body, reply)
            case Kind.LOAD | Kind.UNLOAD:
                await self._fleetwide.load(request, ask, body, reply)
            case Kind.INFERENCE:
                await self._exchange.infer(request, ask, body, reply)


def _is_pull(request: Request, length: bytes | None) -> bool:
    """Say whether a request is a pull whose body is worth reading."""
    small = length is not None and length.isdigit() and int(length) <= BODY_BYTES
    return small and request.method == "POST" and request.path == "/api/pull"


def _request(scope: Message) -> Request:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
    return Request(
        method=scope["method"],
        path=scope["path"],
        target=raw_path + (b"?" + query if query else b""),
        headers=headers,
        dialect=dialect_of(scope["path"]),
        id=request_id_of(headers, uuid4().hex),
        caller=str((scope.get("client") or ("",))[0]),
    )


def _notice(scope: Message, request: Request) -> Notice | None:
    """Return who tells a client that asks for it (X-Chimera-Queue) of its place in the queue, before the answer.

    It is told by 102 (Processing) answers (RFC 2518, 10.1), which a client that does not know them passes over
    (RFC 9110, 15.2), and as not all of them do, only if it asks.
    """
    inform = (scope.get("extensions") or {}).get(INFORMATIONAL)
    if inform is None or value_of(request.headers, b"x-chimera-queue") is None:
        return None

    async def notice(position: int, estimate_s: float | None) -> None:
        headers = [(b"x-request-id", request.id.encode()), (b"x-chimera-queue-position", str(position).encode())]
        if estimate_s is not None:
            headers.append((b"x-chimera-queue-estimate-s", str(estimate_s).encode()))
        await inform(102, headers)

    return notice

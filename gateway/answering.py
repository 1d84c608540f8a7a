"""What every application's answer has, whichever it is: one of two ends, and a connection that knows of it.

While it ends an answer Hypercorn tells the application that the client is gone, and only then closes the connection
or waits for its next request. An application that cancels itself at that word, as Quart does, would leave the
connection open for ever: so the end, once begun, is carried through. And an answer that its application left
incomplete is cut here: over HTTP/2 Hypercorn would leave its stream open.
"""

from collections.abc import Awaitable, Callable

import structlog
import trio

from gateway.asgi import INFORMATIONAL, App, Message, Receive, Send
from gateway.connections import Place
from gateway.errors import NO_PLACE, dialect_of, error_body, error_headers
from gateway.headers import Headers
from gateway.ollama import Answerer, answerer
from gateway.stream import GuardedStream
from gateway.wire import informational

log = structlog.get_logger("gateway")

# How long it may take to end an answer and make the connection ready for its next request; then it is closed.
END_TIMEOUT_S = 5.0
# What may wait for a client's HTTP/2 windows on one connection. Hypercorn alone keeps any amount: its buffer lets a
# writer go on whenever it was asked for data and had no window to send any.
H2_KEPT_BYTES = 64 * 1024
Informational = Callable[[int, Headers], Awaitable[None]]


class Call:
    """One request and its answer on a connection."""

    def __init__(
        self, stream: GuardedStream, kept: Callable[[], int], receive: Receive, send: Send, *, multiplexed: bool
    ) -> None:
        """`multiplexed`: other requests share the connection (HTTP/2).

        `kept` says how many bytes Hypercorn keeps that HTTP/2's windows do not let it send.
        """
        self._stream = stream
        self._kept = kept
        self._multiplexed = multiplexed
        self._resting = trio.CancelScope()
        self._receive = receive
        self._send = send
        self._complete = False  # the request
        self._given_up = False  # by its client
        self.begun = False
        self.whole = False

    @property
    def pending(self) -> bool:
        """Whether the client may expect more of an answer: its request is complete, or the answer has begun."""
        return self._complete or self.begun

    async def receive(self) -> Message:
        """As ASGI has it."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._complete = True
            self._resting.cancel()
            self._stream.changed()
        elif message["type"] == "http.disconnect":
            self._given_up = True
        return message

    @property
    def cut_off(self) -> bool:
        """Whether somebody waits for the rest of an answer that its application has left incomplete.

        Of its own accord only: over HTTP/2 a client gives up one answer (RST_STREAM), and reads the others on.
        """
        return self.begun and not self.whole and not (self._multiplexed and self._given_up)

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._stream.head_of = message["status"]
            self._stream.changed()
            if self._stream.place is Place.RESERVE:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._end(message)
            return
        await self._send(message)
        if self._kept() > H2_KEPT_BYTES:
            await self._wait_window()

    async def _wait_window(self) -> None:
        """Wait until an HTTP/2 client takes more; one that takes nothing for STALL_TIMEOUT_S is cut."""
        least, deadline = self._kept(), trio.current_time() + self._stream.stall_timeout_s
        while (kept := self._kept()) > H2_KEPT_BYTES and not self._stream.ended.is_set():
            if kept < least:
                least, deadline = kept, trio.current_time() + self._stream.stall_timeout_s
            with trio.move_on_at(deadline) as patience:
                await self._stream.wait_sent()
            if patience.cancelled_caught:
                log.warning("client does not read; its connection is cut", after_s=self._stream.stall_timeout_s)
                self._stream.cut()

    async def _end(self, message: Message) -> None:
        self.whole = True
        with trio.move_on_after(END_TIMEOUT_S, shield=True) as ending:
            if self._multiplexed:
                await self._read_rest()
            await self._send(message)
        if ending.cancelled_caught:
            self._stream.cut()
        else:
            self._stream.answered()

    async def _read_rest(self) -> None:
        """Read what is left of the request: of an answered one Hypercorn takes nothing more over HTTP/2.

        It would end the connection, and with it all that its other requests wait for.
        """
        with self._resting:
            while not self._complete and (await self.receive())["type"] != "http.disconnect":
                continue

    async def inform(self, status: int, headers: Headers) -> None:
        """Send an informational answer (RFC 9110, 15.2), unless the answer itself has begun.

        Waits like any send for a client that does not read. Raises ValueError when `status` is none of 100 to 199, or
        101, or a header cannot be sent; BrokenResourceError and ClosedResourceError when the client is gone.
        """
        data = informational(status, headers)
        if not self.begun:
            await self._stream.send_all(data)


def answering(app: App, stream: GuardedStream, kept: Callable[[], int]) -> App:
    """Wrap the application of one connection. For `kept` see Call."""

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if stream.secure:
            scope["scheme"] = "https"
        call = Call(stream, kept, receive, send, multiplexed=scope["http_version"] == "2")
        if scope["http_version"] == "1.1":  # older clients know no informational answers; HTTP/2 has its own frames
            scope.setdefault("extensions", {})[INFORMATIONAL] = call.inform
        stream.calls.add(call)
        stream.changed()
        try:
            if stream.place is Place.RESERVE and answerer(scope["method"], scope["path"]) is not Answerer.GATEWAY:
                stream.refused(NO_PLACE.status)
                await _no_place(scope, call.send)
            else:
                await app(scope, call.receive, call.send)
            if call.cut_off:
                stream.cut()
        finally:
            stream.calls.discard(call)
            stream.changed()

    return wrapped


async def _no_place(scope: Message, send: Send) -> None:
    body = error_body(dialect_of(scope["path"]), NO_PLACE.status, NO_PLACE.sentence)
    headers = [*error_headers(NO_PLACE), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": NO_PLACE.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})

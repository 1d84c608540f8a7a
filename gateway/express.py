"""The express lane: ordinary HTTP/1.1 requests for forwarded paths, answered on the client's connection itself.

It takes only what it understands completely: a request that `gateway.head` found plain, for a path that is not
Chimera's own, with a body of a declared length or none, and without a word that asks for more (Expect, Upgrade). With
the first other request the connection goes, that request unread, to Hypercorn, and stays there.

Who leaves is heard from `leaving`; what was checked, timed, kept and bounded before a request came here, and is on
the way to a client that reads slowly, is the stream's as it is for Hypercorn.
"""

import email.utils
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from random import getrandbits

import structlog
import trio

from gateway.body import Body, LaneReply
from gateway.connections import Place
from gateway.errors import ClientGone, Told, dialect_of
from gateway.forwarded import Caller
from gateway.front import Front, notice_of
from gateway.head import Head
from gateway.headers import Headers, request_id_of, value_of
from gateway.hosts import Site, site_of
from gateway.leaving import Client, Leaving
from gateway.ollama import Answerer, answerer
from gateway.request import Request
from gateway.stream import GuardedStream
from gateway.wire import head_of, informational, raw_answer

log = structlog.get_logger("gateway")

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
# Each asks for something that Hypercorn knows how to do. An unknown expectation is refused there (RFC 9110, 10.1.1).
_MORE = frozenset({b"expect", b"upgrade", b"http2-settings"})
_BUG = Told(500, "internal error; this is a bug in Chimera (see its log)")
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
# Answers without a body, whatever their headers say (RFC 9112, 6.3).
_BODILESS = (204, 304)


def taken(head: Head, page_names: frozenset[bytes] = frozenset()) -> Answerer | None:
    """Return who answers a request, None when it is not one for this lane. Pure.

    `page_names` are the hosts of the web page, whose requests are not.
    """
    if page_names and site_of(head.named.get(b"host"), page_names) is Site.PAGE:
        return None
    if not head.plain or head.chunked or head.method not in _METHODS or b"%" in head.target or b"#" in head.target:
        return None
    if not _MORE.isdisjoint(head.named):
        return None
    who = answerer(head.method.decode(), _path_of(head.target))
    return None if who is Answerer.GATEWAY else who


async def run_express(stream: GuardedStream, front: Front, leaving: Leaving) -> bool:
    """Answer a connection's requests until one comes that is not for this lane; say whether one did.

    Its bytes are then what the stream gives next. False: the connection is to be closed, or has been. Cancellation
    leaves the answer under way incomplete; whoever cancels closes the connection.
    """
    stream.express = True
    # One for all its requests: a client that leaves has none after this one.
    with trio.CancelScope() as life, leaving.watched(stream.descriptor) as client:
        hall = _Hall(stream, front, client, Caller(str(stream.socket.getpeername()[0]), front.proxies), life)
        while not stream.retiring:
            try:
                data = await stream.receive_some()
            except _GONE:
                break
            if not data:
                break
            head = stream.head
            who = taken(head, front.page_names) if head is not None and stream.place is Place.OPEN else None
            if head is None or who is None:  # no head: HTTP/2
                stream.express = False
                stream.put_back(data)
                return True
            body = ExpressBody(hall, data[len(head.handed_on) :])
            del data  # it may wait long: what came is kept once, in its body
            if not await _answer(hall, head, who, body):
                break
    return False


@dataclass(frozen=True, slots=True)
class _Hall:
    """What all requests of a connection have in common. `life` ends with it."""

    stream: GuardedStream
    front: Front
    client: Client
    caller: Caller
    life: trio.CancelScope


async def _answer(hall: _Hall, head: Head, who: Answerer, body: "ExpressBody") -> bool:
    """Answer one request; say whether the connection goes on to the next."""
    stream = hall.stream
    reply = ExpressReply(stream, head, body)
    request = _request(head, hall.caller.of(head.headers))
    request.notice = notice_of(reply.inform, request)
    stream.calls.add(reply)
    goes_on = False
    try:
        await hall.front.answer(who, request, body, reply)
        goes_on = reply.whole and stream.answered() and not reply.closes
    except ClientGone:
        log.debug("client left", request=request.id, path=request.path)
    except Exception:
        if not reply.started:
            _say_bug(stream, head)
        raise
    finally:
        stream.calls.discard(reply)
        if not reply.whole:
            stream.cut()
        stream.changed()
    return goes_on


def _request(head: Head, caller: str) -> Request:
    path = _path_of(head.target)
    return Request(
        method=head.method.decode(), path=path, target=head.target, headers=head.headers, dialect=dialect_of(path),
        id=request_id_of(head.named, getrandbits), caller=caller, named=head.named,
    )  # fmt: skip


def _path_of(target: bytes) -> str:
    return target.partition(b"?")[0].decode()


def _say_bug(stream: GuardedStream, head: Head) -> None:
    try:
        stream.put(raw_answer(_BUG, email.utils.formatdate(usegmt=True), head.target, head.method))
    except _GONE:
        pass  # it has left, and is told nothing


class ExpressBody(Body):
    """A request's body from its connection."""

    def __init__(self, hall: _Hall, ahead: bytes) -> None:
        """`ahead`: what came of it with the head."""
        super().__init__((ahead, hall.stream.in_body))
        self._hall = hall
        self._stream = hall.stream

    async def receive(self) -> tuple[bytes, bool]:
        """Return what comes next, and whether there is more to come. Raises ClientGone."""
        try:
            data = await self._stream.receive_some()
        except _GONE as error:
            raise ClientGone from error
        if not data:
            raise ClientGone
        return data, self._stream.in_body

    async def while_there(self, reply: LaneReply, doing: Awaitable[None]) -> None:
        """Do something, or leave off when the client leaves. Raises what it raises, and ClientGone."""
        gone = False

        def left() -> None:
            nonlocal gone
            if not reply.ended:  # whoever has all of the answer may leave
                gone = True
                self._hall.life.cancel()

        self._stream.on_cut = left
        self._hall.client.tell(left)
        try:
            await doing
        except trio.Cancelled:
            if gone:
                raise ClientGone from None
            raise
        finally:
            self._hall.client.tell(None)
            self._stream.on_cut = None


class ExpressReply:
    """An answer, written as HTTP/1.1 on its connection."""

    def __init__(self, stream: GuardedStream, head: Head, body: ExpressBody) -> None:
        """`head` and `body` are the request's."""
        self._stream = stream
        self._body = body
        self._method = head.method
        self.closes = b"connection" in head.named and _wants_close(head.headers)
        self._ahead = b""  # the answer's head, until it goes with what follows it
        self._chunked = False
        self._bodiless = False
        self._length: int | None = None
        self.started = False
        self.ended = False
        self.whole = False
        self.status = 0
        self.sent_bytes = 0
        self.begun_at: float | None = None

    @property
    def direct(self) -> "ExpressReply":
        """It can be written to without waiting (request.Reply)."""
        return self

    @property
    def begun(self) -> bool:
        """Whether the answer has (stream.Call)."""
        return self.started

    @property
    def pending(self) -> bool:
        """Whether the client may expect more of an answer (stream.Call)."""
        return self.started or self._body.complete

    async def start(self, status: int, headers: Headers) -> None:
        """Have the head sent with what follows it, which follows at once. Raises ClientGone."""
        self.started, self.status, self.begun_at = True, status, trio.current_time()
        self.closes = self.closes or self._stream.retiring or (b"connection", b"close") in headers
        declared = value_of(headers, b"content-length")
        self._bodiless = self._method == b"HEAD" or status in _BODILESS
        self._length = int(declared) if declared is not None else None
        self._chunked = declared is None and status not in _BODILESS
        now_s = time.time_ns() // 1_000_000_000
        self._ahead = head_of(status, headers, now_s, chunked=self._chunked, closes=self.closes)

    async def write(self, data: bytes) -> None:
        """Send a part of the body; returns when the client has room for more. Raises ClientGone."""
        if self.put(data):
            await self.room()

    def put(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a part of the body; say whether to wait for `room` before the next. Raises ClientGone.

        `chunk`: the same as a chunk, which goes as it came where the answer is in chunks too.
        """
        if not data or self._bodiless:
            return False
        self.sent_bytes += len(data)
        if self._chunked:
            data = chunk or b"%x\r\n%b\r\n" % (len(data), data)
        ahead, self._ahead = self._ahead, b""
        try:
            return self._stream.put(ahead + data)
        except _GONE as error:
            raise ClientGone from error

    async def room(self) -> None:
        """Return when the client has room for more. Raises ClientGone."""
        try:
            await self._stream.wait_room()
        except _GONE as error:
            raise ClientGone from error

    async def end(self) -> None:
        """Complete the body. What is left of the request's is thrown away first. Raises ClientGone.

        A body that is shorter than its declared length cannot be completed: its connection is cut.
        """
        if not self._body.complete:
            await self._body.discard()
        self.ended = True
        if not self._bodiless and self._length not in (None, self.sent_bytes):
            return
        last = self._ahead + (b"0\r\n\r\n" if self._chunked and not self._bodiless else b"")
        try:
            if last:
                self._stream.put(last)
        except _GONE as error:
            raise ClientGone from error
        self.whole = True

    async def abort(self) -> None:
        """Leave the body incomplete: the connection is cut when the request is over."""

    async def inform(self, status: int, headers: Headers) -> None:
        """Send an informational answer (RFC 9110, 15.2). Waits for nobody: it is a line or two. Raises ClientGone."""
        try:
            if not self.started:
                self._stream.put(informational(status, headers))
        except _GONE as error:
            raise ClientGone from error


def _wants_close(headers: Headers) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)

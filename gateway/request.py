"""A client's request, and the answer to it: what both lanes have in common.

An answer is told through the small `Reply` protocol, so that there is one place for leases, retries and watchdogs
(`gateway.exchange`) however the client is connected.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from gateway.admission import Notice
from gateway.errors import Dialect, Fault, Stalled, Told, error_body, error_event, error_headers, told
from gateway.headers import Headers, Named, first_values, value_of
from gateway.phases import Phases
from gateway.traceparent import TraceParent


class Direct(Protocol):
    """A client that can be written to without waiting."""

    def put(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a part of the body, at once as far as it goes; say whether to wait for `room` before the next.

        `chunk`: the same as a chunk of HTTP/1.1 (RFC 9112, 7.1), if it is there. Raises ClientGone.
        """

    async def room(self) -> None:
        """Return when the client has room for more. Raises ClientGone."""


class Reply(Protocol):
    """Where an answer goes. `direct`: the same without waiting, where that can be done."""

    started: bool

    @property
    def direct(self) -> Direct | None:
        """None where every part has to be waited for."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body; returns when the client has room for more."""

    async def end(self) -> None:
        """Complete the body."""

    async def abort(self) -> None:
        """Cut the connection: the client must see that the body is not complete."""


class Request(msgspec.Struct):
    """A client's request, its body not yet read. `target` is path and query as they came."""

    method: str
    path: str
    target: bytes
    headers: Headers
    dialect: Dialect
    id: str
    caller: str = ""  # whom the queue is to be fair to
    priority: int = 0  # what lets it pass others there
    spent: Callable[[int], None] = lambda _: None  # who hears, once, how many tokens a worker's answer took
    notice: Notice | None = None  # who hears of its place there
    attempts: int = 0
    waited_s: float = 0.0
    worker_id: str | None = None
    arrived: float = msgspec.field(default_factory=trio.current_time)
    unloads: bool = False  # its model is unloaded when it has been answered
    dropped_options: str = ""  # names of those that LOAD_OPTIONS=pin took out
    phases: Phases = msgspec.field(default_factory=Phases)
    trace: tuple[TraceParent, TraceParent | None] | None = None  # its own span and its parent's; None: not traced
    # The first value of each header, as it came; made of them if not given.
    named: Named = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.named:
            self.named = first_values(self.headers)


def own_headers(request: Request) -> Headers:
    """Return what an answer says of its way: who gave it, after how long in the queue, at which attempt."""
    own = [
        (b"x-request-id", request.id.encode()),
        (b"x-chimera-worker", (request.worker_id or "").encode()),
        (b"x-chimera-queue-ms", str(round(request.waited_s * 1000)).encode()),
        (b"x-chimera-attempts", str(request.attempts).encode()),
    ]
    if request.dropped_options:
        own.append((b"x-chimera-options-dropped", request.dropped_options.encode()))
    return own


async def end_broken(request: Request, headers: Headers, reply: Reply, fault: Fault, last: bytes) -> None:
    """End a broken body so that it never looks complete: an error line where there are lines, else a cut.

    `headers` are the answer's, `last` is the end of what was sent. Nothing can be added to a body whose length was
    declared.
    """
    kind = value_of(headers, b"content-type") or b""
    sse = kind.startswith(b"text/event-stream")
    lines = sse or kind.startswith(b"application/x-ndjson")
    if not lines or value_of(headers, b"content-length") is not None:
        await reply.abort()
        return
    mid_line = bool(last) and not last.endswith(b"\n\n" if sse else b"\n")  # an event ends with an empty line
    sentence = (
        "the worker fell silent within its answer"
        if isinstance(fault, Stalled)
        else "the worker was lost before its answer was complete"
    )
    await reply.write(error_event(request.dialect, sentence, sse=sse, mid_line=mid_line))
    await reply.end()


async def answer_error(request: Request, fault: Fault, reply: Reply) -> None:
    """Tell the client of a fault; nothing has been sent yet."""
    said = told(fault)
    await answer_told(request, said, reply)


async def answer_told(request: Request, said: Told, reply: Reply) -> None:
    """Send an error answer."""
    body = error_body(request.dialect, said.status, said.sentence)
    headers = [
        *error_headers(said),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request.id.encode()),
    ]
    await reply.start(said.status, headers)
    if request.method != "HEAD":
        await reply.write(body)
    await reply.end()

"""One request from arrival to its last byte: lease, upstream, relay, retry. Both lanes call this.

The reply is told through the small `Reply` protocol, so that there is one place for leases, retries and
watchdogs however the client is connected. The client's leaving arrives here as cancellation.
"""

from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from gateway.admission import Admission
from gateway.dispatch import Lease, Life
from gateway.errors import (
    ConnectFailed,
    Dialect,
    Fault,
    PrimaryAway,
    Stalled,
    Told,
    WorkerLost,
    WorkerRefused,
    error_body,
    error_event,
    error_headers,
    told,
)
from gateway.headers import Headers, framing_of, request_headers, response_headers, value_of
from gateway.metrics import Metrics
from gateway.ollama import TAIL_BYTES, Ask, full_name, tokens_of
from gateway.upstream import Answer, Upstream

log = structlog.get_logger("gateway")

PRIMARY = "primary"

# Each worker is tried once per life; this bounds a request that meets nothing but dying workers.
MOST_ATTEMPTS = 5
# How long the supervisor may take to notice that a worker is gone; it takes a few milliseconds.
LOSS_NOTICED_S = 0.25


class Reply(Protocol):
    """Where an answer goes."""

    started: bool

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body; returns when the client has room for more."""

    async def end(self) -> None:
        """Complete the body."""

    async def abort(self) -> None:
        """Cut the connection: the client must see that the body is not complete."""


@dataclass(slots=True)
class Request:
    """A client's request, its body not yet read. `target` is path and query as they came."""

    method: str
    path: str
    target: bytes
    headers: Headers
    dialect: Dialect
    id: str
    attempts: int = 0
    waited_s: float = 0.0
    worker_id: str | None = None
    arrived: float = field(default_factory=trio.current_time)


class Exchange:
    """Carries out requests, for a worker or for the primary."""

    def __init__(self, admission: Admission, upstream: Upstream, metrics: Metrics, primary_port: int) -> None:
        self.admission = admission
        self.upstream = upstream
        self.metrics = metrics
        self._primary_port = primary_port

    async def infer(self, request: Request, ask: Ask, body: bytes, reply: Reply) -> None:
        """Have a worker answer: wait for a slot, relay, and try another worker while nothing has been sent.

        Raises a Fault of gateway.errors while nothing has been sent; after that the stream is ended with an
        error line here. Cancellation ends the wait or closes the worker's connection, and gives the slot back.
        """
        ticket = self.admission.ticket(full_name(ask.model) if ask.model else None)
        while True:
            request.attempts += 1
            async with self.admission.lease(ticket) as lease:
                request.waited_s = ticket.waited_s
                request.worker_id = lease.worker_id
                self.metrics.leased(request.waited_s)
                try:
                    await self._relay_lease(request, lease, ticket.excluded | {lease.life}, body, reply)
                    return
                except (ConnectFailed, WorkerLost, WorkerRefused) as fault:
                    if reply.started or request.attempts >= MOST_ATTEMPTS:
                        raise
                    lost = fault
                    ticket.excluded |= {lease.life}
            self.metrics.retried()
            log.warning("request tried again", request=request.id, worker=request.worker_id, cause=str(lost))
            if not await self._another_chance(ticket.excluded):
                raise lost

    async def _another_chance(self, tried: frozenset[Life]) -> bool:
        """Say whether it makes sense to try again: there is another worker, or the tried ones are being replaced."""
        if self.admission.dispatcher.untried(tried):
            return True
        await trio.sleep(LOSS_NOTICED_S)
        return all(worker.life not in tried for worker in self.admission.dispatcher.ready())

    async def _relay_lease(
        self, request: Request, lease: Lease, tried: frozenset[Life], body: bytes, reply: Reply
    ) -> None:
        framing: Headers = [(b"content-length", str(len(body)).encode())]
        headers = request_headers(request.headers, port=lease.port, request_id=request.id, framing=framing)
        async with self.upstream.exchange(lease.port, request.method, request.target, headers, body) as answer:
            others = request.attempts < MOST_ATTEMPTS and self.admission.dispatcher.untried(tried)
            if answer.status in (502, 503, 504) and others:
                raise WorkerRefused(f"{lease.worker_id} answered {answer.status}")
            await self._relay(request, answer, reply, own=self._own_headers(request, lease.worker_id))

    async def to_primary(self, request: Request, body: bytes | AsyncIterable[bytes] | None, reply: Reply) -> None:
        """Have the primary answer, at once and once. Raises PrimaryAway while nothing has been sent."""
        port = self._primary_port
        if isinstance(body, bytes):
            framing: Headers = [(b"content-length", str(len(body)).encode())]
        else:
            framing = framing_of(request.headers)
        headers = request_headers(request.headers, port=port, request_id=request.id, framing=framing)
        request.attempts += 1
        request.worker_id = PRIMARY
        try:
            async with self.upstream.exchange(port, request.method, request.target, headers, body) as answer:
                await self._relay(request, answer, reply, own=self._own_headers(request, PRIMARY))
        except (ConnectFailed, WorkerLost) as fault:
            if reply.started:
                raise
            raise PrimaryAway(str(fault)) from fault

    async def _relay(self, request: Request, answer: Answer, reply: Reply, own: Headers) -> None:
        """Pass an answer on as it comes. The head waits for the first bytes: until then another worker may answer."""
        chunk = await answer.read()
        if request.worker_id != PRIMARY:
            self.metrics.first_byte(trio.current_time() - request.arrived)
        await reply.start(answer.status, [*response_headers(answer.headers), *own])
        last = before = b""
        try:
            while chunk:
                before, last = last, chunk
                await reply.write(chunk)
                chunk = await answer.read()
        except (WorkerLost, Stalled) as fault:
            log.warning("answer broken", request=request.id, worker=request.worker_id, cause=str(fault))
            self.metrics.broken()
            await _end_broken(request, answer, reply, fault, last)
            return
        if request.worker_id != PRIMARY:
            self.metrics.tokens(*tokens_of(before + last if len(last) < TAIL_BYTES else last))
        await reply.end()

    def _own_headers(self, request: Request, worker_id: str) -> Headers:
        return [
            (b"x-request-id", request.id.encode()),
            (b"x-chimera-worker", worker_id.encode()),
            (b"x-chimera-queue-ms", str(round(request.waited_s * 1000)).encode()),
            (b"x-chimera-attempts", str(request.attempts).encode()),
        ]


async def _end_broken(request: Request, answer: Answer, reply: Reply, fault: Fault, last: bytes) -> None:
    """End a broken body so that it never looks complete: an error line where there are lines, else a cut.

    `last` is the last part that was sent. Nothing can be added to a body whose length was declared.
    """
    headers = [(name.lower(), value) for name, value in answer.headers]
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

"""The book of requests: what is told of each when it has ended, on every path.

One place makes the metrics, the access line and the spans of a request, from the phases that were noted while it ran:
after its answer has ended, and after its slot was given back.
"""

from typing import Any, Protocol

import trio

from gateway.access import AccessLog, fields_of
from gateway.errors import ClientGone
from gateway.metrics import Metrics
from gateway.phases import REFUSALS, outcome_of
from gateway.request import Request


class Got(Protocol):
    """What was read of a request, as a lane counts it; `completed_at`: its body was all there (trio's clock)."""

    received_bytes: int
    completed_at: float | None


class Sent(Protocol):
    """What was sent as its answer; `status` 0: nothing. `begun_at`: the head went out (trio's clock)."""

    status: int
    sent_bytes: int
    begun_at: float | None


class Tracer(Protocol):
    """Who makes spans of requests."""

    def begin(self, request: Request) -> None:
        """A request has arrived; its headers may be changed, so that a worker learns whose child it is."""

    def end(self, request: Request, route: str) -> None:
        """It has ended."""


class Book:
    """Follows requests from their arrival to their end."""

    def __init__(self, metrics: Metrics, access: AccessLog | None = None, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self.access = access
        self._tracer = tracer

    def following(self, request: Request, route: str, got: Got, sent: Sent) -> "_Following":
        """Follow a request for the block, however it is left."""
        return _Following(self, request, route, got, sent)

    def begin(self, request: Request) -> None:
        """A request has arrived; `end` is to be told of its end."""
        if self._tracer is not None:
            self._tracer.begin(request)

    def end(self, request: Request, route: str, got: Got, sent: Sent) -> None:
        """It has ended."""
        phases = request.phases
        phases.ended_at = trio.current_time()
        phases.read_at, phases.answered_at = got.completed_at, sent.begun_at
        phases.status, phases.bytes_in, phases.bytes_out = sent.status, got.received_bytes, sent.sent_bytes
        phases.outcome = outcome_of(phases)
        self._count(request, route)
        if self.access is not None and self.access.wants(phases.outcome):
            self.access.tell(
                fields_of(
                    request_id=request.id, client=request.caller, method=request.method, path=request.path,
                    worker_id=request.worker_id, attempts=request.attempts, arrived_at=request.arrived,
                    waited_s=request.waited_s, phases=phases,
                )
            )  # fmt: skip
        if self._tracer is not None:
            self._tracer.end(request, route)

    def _count(self, request: Request, route: str) -> None:
        phases, metrics = request.phases, self._metrics
        took_s = (phases.ended_at or request.arrived) - request.arrived
        metrics.ended(route, phases.status, phases.outcome, phases.model, took_s)
        if phases.outcome == "refused":
            metrics.refused(REFUSALS[type(phases.fault)])  # type: ignore[index]  # outcome_of has looked at its type
        elif phases.outcome == "client_left" and isinstance(phases.fault, ClientGone):
            metrics.left(phases.left_in)
        speed = phases.tokens_per_s if phases.stream and phases.outcome == "ok" else None
        if speed is not None:
            metrics.speed(speed)


class _Following:
    """One request, as a block. Not written with contextlib: it is on every request's way (docs/performance.md)."""

    __slots__ = ("_book", "_followed")

    def __init__(self, book: Book, *followed: Any) -> None:
        self._book = book
        self._followed = followed

    def __enter__(self) -> None:
        self._book.begin(self._followed[0])

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        phases = self._followed[0].phases
        # what it became in the end may hide what it was first: a fault after the first byte leaves as ClientGone
        phases.fault = phases.fault or error
        self._book.end(*self._followed)

"""OpenTelemetry traces: the spans of each request, made of its phases when it has ended. Imported only when asked for.

Nothing is traced while a request runs but two random numbers at its arrival, so that a worker can be told whose child
its own span would be. Spans are sent in batches by a thread of OpenTelemetry's SDK, over OTLP/HTTP; its queue is
bounded (OTEL_BSP_MAX_QUEUE_SIZE), and an endpoint that is away or hangs costs spans, never requests.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from gateway.labels import known_method, known_route
from gateway.phases import Try, clean
from gateway.request import Request
from gateway.traceparent import TraceParent, parent_of, with_parent

log = structlog.get_logger("gateway")

# How long the last spans may take at a shutdown.
CLOSE_TIMEOUT_S = 2.0
_SCOPE = InstrumentationScope("chimera")
_FAILED = frozenset({"error", "timeout", "broken", "refused", "cut", "lost"})


class TellingExporter(SpanExporter):
    """Says once that spans cannot be sent, and once that they can be again. Called in the SDK's thread."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. Never raises: what goes wrong here is told, and nobody's request is the worse for it."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            log.debug("spans not sent", cause=type(error).__name__)  # its text may have the URL's password
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._away:
            log.warning("traces cannot be sent; their spans are lost until they can be", to=self._url)
        elif self._away and not failed:
            log.info("traces are sent again", to=self._url)
        self._away = failed
        return result

    def shutdown(self) -> None:
        """End what is being sent."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True


class Tracing:
    """Makes the spans. Gateway.book's `Tracer`."""

    def __init__(
        self, url: str, *, exporter: SpanExporter | None = None, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`url` is shown to people only without what may be secret in it; `now_ns` is the clock on the wall.

        The SDK reads the rest of OpenTelemetry's variables from the environment, the sampler among them.
        """
        for name in ("opentelemetry", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # TellingExporter says it once
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "chimera"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        shown = url.split("?")[0].rpartition("@")[2]
        self._processor = BatchSpanProcessor(TellingExporter(exporter or OTLPSpanExporter(endpoint=url), shown))
        self._now_ns = now_ns

    async def aclose(self) -> None:
        """Send what is left, for at most CLOSE_TIMEOUT_S; then it is given up. Also under cancellation."""
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await trio.to_thread.run_sync(self._processor.shutdown, abandon_on_cancel=True)

    def begin(self, request: Request) -> None:
        """Take a request's place in its trace, or begin one; its headers then name this place to the worker."""
        parent = parent_of(request.headers)
        trace_id = parent.trace_id if parent else random.getrandbits(128) or 1
        own = TraceParent(trace_id, random.getrandbits(64) or 1, self._sampled(parent, trace_id))
        request.trace = (own, parent)
        request.headers = with_parent(request.headers, own, continued=parent is not None)

    def _sampled(self, parent: TraceParent | None, trace_id: int) -> bool:
        around = Context()
        if parent is not None:
            around = set_span_in_context(NonRecordingSpan(_context(parent, remote=True)), around)
        return (
            self._provider.sampler.should_sample(around, trace_id, "request", SpanKind.SERVER).decision
            is Decision.RECORD_AND_SAMPLE
        )

    def end(self, request: Request, route: str) -> None:
        """Hand over the spans of a request that has ended: itself, its waits, its tries."""
        if request.trace is None or not request.trace[0].sampled:
            return
        own, parent = request.trace
        phases = request.phases
        ended_at = phases.ended_at if phases.ended_at is not None else request.arrived
        # from trio's clock to the wall's, as it is now: a step of the clock meanwhile bends no span
        offset_ns = self._now_ns() - round(ended_at * 1e9)

        def at(when: float) -> int:
            return offset_ns + round(when * 1e9)

        def emit(name: str, begin: float, end: float, **more: Any) -> None:
            context = more.pop("context", None) or _context(
                TraceParent(own.trace_id, random.getrandbits(64) or 1, sampled=True)
            )
            span = ReadableSpan(
                name, context=context, resource=self._provider.resource, start_time=at(begin),
                end_time=at(max(begin, end)), instrumentation_scope=_SCOPE, **more,
            )  # fmt: skip
            self._processor.on_end(span)

        inside = _context(own)
        for begin, end in waits_of(request):
            emit("queue", begin, end, parent=inside)
        for tried in phases.tries:
            events = [
                Event(name, timestamp=at(when))
                for name, when in (("sent", tried.sent_at), ("first byte", tried.first_byte_at))
                if when is not None
            ]
            emit(
                "try", tried.began_at, tried.ended_at or ended_at, parent=inside, kind=SpanKind.CLIENT, events=events,
                attributes=_try_attributes(tried), status=_status(tried.outcome),
            )  # fmt: skip
        method, known = known_method(request.method), known_route(request.path)
        emit(
            f"{method} {known}" if known else method, request.arrived, ended_at, context=inside,
            parent=_context(parent, remote=True) if parent else None, kind=SpanKind.SERVER,
            attributes=_attributes(request, method, known), status=_status(phases.outcome),
        )  # fmt: skip


def waits_of(request: Request) -> list[tuple[float, float]]:
    """Return when a request waited for a slot, from and to: before each of its tries, or until its end."""
    phases = request.phases
    if phases.queued_at is None:
        return []
    waits: list[tuple[float, float]] = []
    begin: float | None = phases.queued_at
    for tried in phases.tries:
        if begin is not None:
            waits.append((begin, tried.began_at))
        begin = tried.ended_at
    if begin is not None and (not phases.tries or phases.outcome == "refused"):
        waits.append((begin, phases.ended_at if phases.ended_at is not None else begin))
    return waits


def _context(of: TraceParent, *, remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if of.sampled else TraceFlags.DEFAULT)
    return SpanContext(of.trace_id, of.span_id, is_remote=remote, trace_flags=flags)


def _status(outcome: str) -> Status:
    """Return a span's status. What the client got wrong, and its leaving, are no errors of a server's span."""
    return Status(StatusCode.ERROR, outcome) if outcome in _FAILED else Status(StatusCode.UNSET)


def _attributes(request: Request, method: str, route: str | None) -> dict[str, str | int]:
    """Return the attributes of a request's span, by OpenTelemetry's names where it has one (HTTP, GenAI)."""
    phases = request.phases
    told: dict[str, str | int | None] = {
        "http.request.method": method,
        "url.scheme": "http",
        "url.path": clean(request.path, 200),
        "http.route": route,
        "http.response.status_code": phases.status or None,
        "error.type": phases.outcome if phases.outcome in _FAILED else None,
        "gen_ai.request.model": None if phases.model is None else clean(phases.model, 120),
        "gen_ai.usage.input_tokens": phases.prompt_tokens,
        "gen_ai.usage.output_tokens": phases.answer_tokens,
        "chimera.request": request.id,
        "chimera.outcome": phases.outcome,
        "chimera.worker": request.worker_id,
        "chimera.attempts": request.attempts,
    }
    return {name: value for name, value in told.items() if value is not None}


def _try_attributes(tried: Try) -> dict[str, str | int]:
    told: dict[str, str | int] = {"chimera.worker": tried.worker_id, "chimera.outcome": tried.outcome}
    if tried.status:
        told["http.response.status_code"] = tried.status
    return told

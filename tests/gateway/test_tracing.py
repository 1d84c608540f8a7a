"""Spans of requests, as a collector gets them: decoded from what really went over HTTP."""

from typing import Any

import pytest
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from gateway import tracing as module
from gateway.asgi import AsgiLane
from gateway.book import Book
from gateway.front import Front
from gateway.pulls import Pulls
from gateway.tracing import TellingExporter, Tracing
from tests.fakes.asgi import AsgiClient
from tests.fakes.collector import collecting
from tests.fakes.hall import Hall
from tests.fakes.worker_server import dies, says, streams

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT = b'{"model":"llama3","messages":[{"role":"user","content":"canary-in-the-prompt"}]}'
OK = streams(b'{"message":{"content":"canary-in-the-answer"},"done":true,"prompt_eval_count":7,"eval_count":3}\n')


@pytest.fixture(autouse=True)
def no_others_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def client(hall: Hall, tracing: Tracing, path: str = "/api/chat", method: str = "POST", **headers: str) -> AsgiClient:
    async def no_pages(*_: Any) -> None:
        raise AssertionError

    book = Book(hall.metrics, None, tracing)
    front = AsgiLane(Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=1000, book=book), no_pages)
    return AsgiClient(front, method, path, headers.items())


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


async def test_a_request_is_a_span_with_its_wait_and_its_tries_as_children(hall: Hall) -> None:
    first = await hall.worker("a", dies)
    await hall.worker("b", OK)
    with collecting() as collector:
        tracing = Tracing(collector.url)
        await client(hall, tracing, traceparent=f"00-{TRACE}-{SPAN}-01", **{"x-request-id": "r1"}).ask(CHAT)
        await tracing.aclose()
        spans = {span.name: [s for s in collector.spans() if s.name == span.name] for span in collector.spans()}
        assert collector.paths == ["/v1/traces"]
        assert collector.service() == "chimera"
        assert b"canary" not in b"".join(collector.bodies)
    (request,) = spans["POST /api/chat"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/api/chat", "url.path": "/api/chat", "url.scheme": "http",
        "http.response.status_code": 200, "gen_ai.request.model": "llama3", "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3, "chimera.request": "r1", "chimera.outcome": "ok", "chimera.worker": "b",
        "chimera.attempts": 2,
    }  # fmt: skip
    assert request.status.code == Status.STATUS_CODE_UNSET
    lost, good = spans["try"]
    assert [(attributes(t)["chimera.worker"], attributes(t)["chimera.outcome"]) for t in (lost, good)] == [
        ("a", "lost"), ("b", "ok"),
    ]  # fmt: skip
    assert lost.status.code == Status.STATUS_CODE_ERROR
    assert [event.name for event in good.events] == ["sent", "first byte"]
    children = [*spans["queue"], lost, good]
    assert {(child.trace_id.hex(), child.parent_span_id) for child in children} == {(TRACE, request.span_id)}
    assert len({span.span_id for span in (request, *children)}) == len(children) + 1
    for child in children:
        assert request.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= request.end_time_unix_nano
    # the worker is told whose child its own span would be
    assert first.received[0].header("traceparent") == f"00-{TRACE}-{request.span_id.hex()}-01"


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (says(b"{}", status=404), 404, Status.STATUS_CODE_UNSET),
        (says(b"{}", status=500), 500, Status.STATUS_CODE_ERROR),
        (streams(b'{"done":false}\n'), 200, Status.STATUS_CODE_ERROR),
    ],
)
async def test_a_servers_fault_is_an_error_a_clients_is_none(
    hall: Hall, behaviour: Any, status: int, code: Any
) -> None:
    await hall.worker("a", behaviour)
    with collecting() as collector:
        tracing = Tracing(collector.url)
        await client(hall, tracing).ask(CHAT)
        await tracing.aclose()
        (request,) = [span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER]
    assert request.status.code == code
    assert attributes(request)["http.response.status_code"] == status
    assert ("error.type" in attributes(request)) == (code == Status.STATUS_CODE_ERROR)
    assert request.parent_span_id == b""


async def test_names_of_spans_are_few_whatever_clients_ask_for(hall: Hall) -> None:
    await hall.primary(says(b"{}"))
    with collecting() as collector:
        tracing = Tracing(collector.url)
        for method, path in (("GET", "/api/tags"), ("GET", "/api/x1"), ("BREW", "/api/x2"), ("HEAD", "/api/blobs/a")):
            await client(hall, tracing, path, method).ask()
        await tracing.aclose()
        names = {span.name for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER}
    assert names == {"GET /api/tags", "GET", "_OTHER", "HEAD /api/blobs/{digest}"}


async def test_a_trace_that_its_client_does_not_record_is_passed_on_but_not_sent(hall: Hall) -> None:
    server = await hall.worker("a", OK)
    with collecting() as collector:
        tracing = Tracing(collector.url)
        await client(hall, tracing, traceparent=f"00-{TRACE}-{SPAN}-00").ask(CHAT)
        await tracing.aclose()
        assert collector.spans() == []
    told = server.received[0].header("traceparent")
    assert told is not None
    assert told.startswith(f"00-{TRACE}-")
    assert told.endswith("-00")


async def test_without_tracing_a_clients_trace_reaches_the_worker_as_it_came(hall: Hall) -> None:
    server = await hall.worker("a", OK)
    book = Book(hall.metrics)

    async def no_pages(*_: Any) -> None:
        raise AssertionError

    front = AsgiLane(Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=1000, book=book), no_pages)
    await AsgiClient(front, "POST", "/api/chat", [("traceparent", f"00-{TRACE}-{SPAN}-01")]).ask(CHAT)
    assert server.received[0].header("traceparent") == f"00-{TRACE}-{SPAN}-01"


async def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.05)
    await hall.worker("a", OK)
    with collecting() as collector, trio.fail_after(25):  # less than the collector is held for
        collector.go_on.clear()
        tracing = Tracing(collector.url)
        await client(hall, tracing).ask(CHAT)
        await trio.to_thread.run_sync(collector.asked.wait)
        for _ in range(3):
            answered = await client(hall, tracing).ask(CHAT)
            assert (answered.status, answered.complete) == (200, True)
        await tracing.aclose()
        assert collector.bodies == []
        collector.go_on.set()
        tracing._processor._batch_processor._worker_thread.join(20)


class Exporter(SpanExporter):
    """Answers as it is told."""

    def __init__(self, *results: SpanExportResult | Exception) -> None:
        self.results = list(results)
        self.ended = False

    def export(self, spans: object) -> SpanExportResult:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def shutdown(self) -> None:
        self.ended = True


def test_it_is_said_once_that_a_collector_is_away_and_once_that_it_is_back() -> None:
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    inner = Exporter(good, bad, OSError("away"), bad, good, good)
    exporter = TellingExporter(inner, "collector:4318/v1/traces")
    with capture_logs() as logged:
        told = [exporter.export([]) for _ in range(6)]
    assert told == [good, bad, bad, bad, good, good]
    assert [(entry["log_level"], entry["to"]) for entry in logged if entry["log_level"] != "debug"] == [
        ("warning", "collector:4318/v1/traces"), ("info", "collector:4318/v1/traces"),
    ]  # fmt: skip
    assert exporter.force_flush()
    exporter.shutdown()
    assert inner.ended


async def test_an_endpoint_that_is_away_is_said_in_one_line_without_its_password(
    hall: Hall, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    await hall.worker("a", OK)
    with capture_logs() as logged:
        tracing = Tracing("http://user:secret@127.0.0.1:1/v1/traces?key=secret")
        await client(hall, tracing).ask(CHAT)
        await tracing.aclose()
        tracing._processor._batch_processor._worker_thread.join(20)
    warnings = [entry for entry in logged if entry["log_level"] == "warning"]
    assert [entry["to"] for entry in warnings] == ["127.0.0.1:1/v1/traces"]
    assert "secret" not in caplog.text

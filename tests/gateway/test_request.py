"""What both lanes tell of a request: who answered it, an error, the end of a broken answer."""

import json

import pytest

from gateway.errors import QueueFull, Stalled, WorkerLost, dialect_of
from gateway.headers import Headers
from gateway.request import Request, answer_error, end_broken, own_headers
from tests.fakes.reply import RecordingReply


def request(path: str = "/api/chat", method: str = "POST") -> Request:
    return Request(method, path, path.encode(), [], dialect_of(path), "req-1")


async def test_an_answer_says_of_its_way_what_there_is_to_say() -> None:
    asked = request()
    asked.worker_id, asked.attempts, asked.waited_s = "w2", 3, 1.2345
    said = [(b"x-request-id", b"req-1"), (b"x-chimera-worker", b"w2"), (b"x-chimera-queue-ms", b"1234"),
            (b"x-chimera-attempts", b"3")]  # fmt: skip
    assert own_headers(asked) == said
    asked.dropped_options = "num_ctx"
    assert own_headers(asked) == [*said, (b"x-chimera-options-dropped", b"num_ctx")]


@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_an_error_has_its_length_its_id_and_a_body_unless_only_the_head_was_asked_for(method: str) -> None:
    reply = RecordingReply()
    await answer_error(request(method=method), QueueFull(), reply)
    assert (reply.status, reply.header("x-request-id"), reply.header("retry-after")) == (503, "req-1", "1")
    assert (reply.body == b"") is (method == "HEAD")
    assert int(str(reply.header("content-length"))) > 10
    assert reply.ended


async def begun() -> RecordingReply:
    reply = RecordingReply()
    await reply.start(200, [])
    return reply


NDJSON, SSE = b"application/x-ndjson", b"text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "kind", "last", "added"),
    [
        ("/api/chat", NDJSON, b"{}\n", b'{"error": "%s"}\n'),
        ("/api/chat", NDJSON, b'{"mess', b'\n{"error": "%s"}\n'),
        ("/v1/messages", SSE, b"data: {}\n\n", b"event: error\ndata: %s\n\n"),
    ],
)
async def test_a_broken_stream_ends_with_an_error(path: str, kind: bytes, last: bytes, added: bytes) -> None:
    reply = await begun()
    headers: Headers = [(b"content-type", kind)]
    await end_broken(request(path), headers, reply, WorkerLost("gone"), last)
    assert reply.body.startswith(added.partition(b"%s")[0])
    assert b"the worker was lost before its answer was complete" in reply.body
    assert (reply.ended, reply.aborted) == (True, False)


@pytest.mark.parametrize(
    "headers", [[(b"content-type", b"application/json")], [(b"content-type", NDJSON), (b"content-length", b"99")]]
)
async def test_where_nothing_can_be_added_the_connection_is_cut(headers: Headers) -> None:
    reply = await begun()
    await end_broken(request(), headers, reply, Stalled(9.0), b"")
    assert (reply.body, reply.ended, reply.aborted) == (b"", False, True)


async def test_the_words_of_a_stall_are_its_own() -> None:
    reply = await begun()
    await end_broken(request(), [(b"content-type", NDJSON)], reply, Stalled(9.0), b"")
    assert json.loads(reply.body) == {"error": "the worker fell silent within its answer"}

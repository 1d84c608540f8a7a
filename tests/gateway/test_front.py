"""Both lanes give the same answers: every kind of request and of answer, byte for byte but for times and ids."""

import re

import pytest
import trio

from tests.fakes.door import CHAT, EXPRESS, HYPERCORN, Connect, front_of, serve
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import NDJSON, SSE, Behaviour, dies, says, starts, streams

LINE = b'{"response":"a"}\n'
DONE = b'{"done":true}\n'
EVENT, LAST = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"
COMPLETION = b'{"model":"m","messages":[{"role":"user"}],"stream":true}'


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


ASKED: dict[str, tuple[bytes, Behaviour]] = {
    "a stream": (post("/api/chat", CHAT), streams(LINE, LINE, DONE)),
    "one answer": (post("/api/chat", CHAT), says(b'{"done":true}', "x-own: 1")),
    "an empty answer": (post("/api/chat", CHAT), says(b"")),
    "an empty stream": (post("/api/generate", CHAT), streams(kind="text/plain")),
    "no content": (post("/api/chat", CHAT), lambda talk: talk.head(status=204)),
    "not modified": (get("/api/tags"), lambda talk: talk.head("etag: x", status=304)),
    "events": (post("/v1/chat/completions", COMPLETION), streams(EVENT, LAST, kind=SSE)),
    "a refusal": (post("/api/chat", CHAT), says(b'{"error":"no such model"}', status=404)),
    "the primary": (get("/api/tags"), says(b'{"models":[]}')),
    "a head of the primary's": (get("/", method="HEAD"), says(b"Ollama is running", kind="text/plain")),
    "a length of nothing": (post("/api/show", b""), says(b"{}")),
    "all workers": (get("/api/ps"), says(b'{"models":[]}')),
    "a path with a query": (get("/api/tags?a=b&c"), says(b"{}")),
    "a delete": (get("/api/delete", "Content-Length: 0", method="DELETE"), says(b"{}")),
    "what no ollama knows": (get("/api/nothing"), says(b"404 page not found", status=404, kind="text/plain")),
    "no body where there must be one": (post("/api/chat", b""), says(b'{"error":"missing request body"}', status=400)),
    "a stream that breaks": (post("/api/chat", CHAT), starts(LINE, kind=NDJSON, then=dies)),
    "an answer that breaks": (post("/api/chat", CHAT), starts(b'{"half":', kind="application/json", then=dies)),
    "a body that is too large": (post("/api/chat", b"x" * 100_001), says(b"{}")),
    "a client's own id": (post("/api/chat", CHAT, "X-Request-Id: mine"), says(b"{}")),
    "a priority that is none": (post("/api/chat", CHAT, "X-Chimera-Priority: x"), says(b"{}")),
    "a connection that is to be closed": (post("/api/chat", CHAT, "Connection: close"), streams(LINE, DONE)),
}


async def answer(nursery: trio.Nursery, connect: Connect, lane: str, sent: bytes, behaviour: Behaviour) -> bytes:
    hall = Hall(nursery)
    await hall.worker("a", behaviour)
    await hall.primary(behaviour)
    served = await serve(nursery, front_of(hall), lane=lane)
    client = await connect(served)
    await client.send(sent)
    await client.stream.send_all(get("/api/version", "Connection: close", "X-Request-Id: last"))
    got = await client.until_closed()
    served.life.cancel()
    await served.ended.wait()
    assert repr(hall.admission) == NOTHING_LEFT
    hall.upstream.close()
    return got


def plain(got: bytes) -> list[bytes]:
    """Answers with their headers in order, names in small letters, chunks joined, without times and ids."""
    got = re.sub(rb"(?i)(date|x-chimera-queue-ms|x-request-id): (?!mine|last)[^\r]*", rb"\1: *", got)
    heads = re.split(rb"(?=HTTP/1\.1 [0-9]{3} )", got)
    parts = [head.partition(b"\r\n\r\n") for head in heads if head]
    return [b"\r\n".join(_lines(head)) + b"\r\n\r\n" + _joined(head, body) for head, _, body in parts]


def _lines(head: bytes) -> list[bytes]:
    first, *lines = head.split(b"\r\n")
    return [first, *sorted(re.sub(rb"^[^:]+", lambda name: name[0].lower(), line) for line in lines)]


def _joined(head: bytes, body: bytes) -> bytes:
    """A chunked body with all of its data in one chunk: what comes together is the network's choice."""
    data = b""
    while b"ransfer-encoding" in head.replace(b"E", b"e") and body and not body.startswith(b"0\r\n"):
        size, _, rest = body.partition(b"\r\n")
        data, body = data + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return data + body


@pytest.mark.parametrize("lane", [EXPRESS, HYPERCORN])
async def test_the_queue_is_fair_to_whom_a_trusted_proxy_speaks_for(
    nursery: trio.Nursery, connect: Connect, lane: str
) -> None:
    hall = Hall(nursery)
    app = front_of(hall)
    served = await serve(nursery, app, lane=lane)
    for trusted, caller in ((), "127.0.0.1"), (("127.0.0.1",), "203.0.113.9"):
        app.front.proxies.settle(trusted)
        client = await connect(served)
        await client.send(post("/api/chat", CHAT, "X-Forwarded-For: 198.51.100.66, 203.0.113.9"))
        while not (tickets := hall.admission.tickets()):
            await trio.sleep(0.01)
        assert [row["caller"] for row in tickets] == [caller]
        await client.stream.aclose()
        while hall.admission.tickets():
            await trio.sleep(0.01)
    served.life.cancel()
    await served.ended.wait()
    hall.upstream.close()


@pytest.mark.parametrize("name", ASKED)
async def test_the_two_lanes_answer_alike(nursery: trio.Nursery, connect: Connect, name: str) -> None:
    sent, behaviour = ASKED[name]
    express = await answer(nursery, connect, EXPRESS, sent, behaviour)
    assert express
    assert plain(express) == plain(await answer(nursery, connect, HYPERCORN, sent, behaviour))

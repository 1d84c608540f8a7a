"""Requests in the shapes in which one is smuggled past a server inside another, raw over a socket.

Of each either exactly one well-understood request reaches the worker, or it is refused and its connection closed.
Whatever follows it on the connection in the guise of a request is asked as one only when it is one.
"""

import json
import re

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.chunks import LINE_BYTES, TRAILER_BYTES
from gateway.head import HEADERS, TARGET_BYTES
from tests.fakes.door import CHAT, TOO_LONG_S, House
from tests.fakes.hall import NOTHING_LEFT
from tests.fakes.worker_server import says

SIZE = len(CHAT)
LENGTH = b"Content-Length: %d" % SIZE
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, CHAT)
# What an attacker would have asked in another's name. The worker must never see it after a refusal.
HIDDEN = b"POST /api/generate HTTP/1.1\r\nHost: hidden\r\nContent-Length: %d\r\n\r\n" % SIZE + CHAT


def post(
    *headers: bytes, body: bytes = CHAT, first: bytes = b"POST /api/chat HTTP/1.1", host: bytes = b"Host: a"
) -> bytes:
    return b"\r\n".join((first, host, *headers, b"", b"")) + body


REFUSED = {
    "two lengths and codings": (400, post(LENGTH, CHUNKED, body=CHUNKS)),
    "codings, then a length": (400, post(CHUNKED, b"Content-Length: 4", body=CHUNKS)),
    "the same length twice": (400, post(LENGTH, LENGTH)),
    "two different lengths": (400, post(LENGTH, b"Content-Length: 4")),
    "a list of lengths": (400, post(b"Content-Length: %d, %d" % (SIZE, SIZE))),
    "a length with a sign": (400, post(b"Content-Length: +%d" % SIZE)),
    "a negative length": (400, post(b"Content-Length: -1")),
    "a length in hexadecimal": (400, post(b"Content-Length: 0x1d")),
    "a length with a blank within": (400, post(b"Content-Length: 2 9")),
    "no length": (400, post(b"Content-Length:")),
    "a length beyond all numbers": (400, post(b"Content-Length: " + b"9" * 40)),
    "an unknown coding": (400, post(b"Transfer-Encoding: xchunked", body=CHUNKS)),
    "chunked twice": (400, post(b"Transfer-Encoding: chunked, chunked", body=CHUNKS)),
    "chunked in two headers": (400, post(CHUNKED, CHUNKED, body=CHUNKS)),
    "identity, then chunked": (501, post(b"Transfer-Encoding: identity, chunked", body=CHUNKS)),
    "chunked, then identity": (400, post(b"Transfer-Encoding: chunked, identity", body=CHUNKS)),
    "identity with a length": (400, post(b"Transfer-Encoding: identity", LENGTH)),
    "a coding after a vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked", LENGTH)),
    "a coding in quotes": (400, post(b'Transfer-Encoding: "chunked"', LENGTH)),
    "an old client's chunks": (400, post(CHUNKED, body=CHUNKS, first=b"POST /api/chat HTTP/1.0")),
    "a folded coding": (400, post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS)),
    "a folded header": (400, post(LENGTH, b"X: a\r\n\tb")),
    "a blank before the colon": (400, post(b"Content-Length : %d" % SIZE)),
    "a blank before the name": (400, post(b" " + LENGTH)),
    "a header without a colon": (400, post(LENGTH, b"X")),
    "a header without a name": (400, post(LENGTH, b": x")),
    "a NUL in a header": (400, post(LENGTH, b"X: a\0b")),
    "a NUL in a name": (400, post(LENGTH, b"X\0: a")),
    "a bare CR in a header": (400, post(b"X: a\rContent-Length: 29")),
    "a bare LF in a header": (400, post(b"X: a\nContent-Length: 29")),
    "lines that end in LF": (400, post(LENGTH).replace(b"\r\n", b"\n")),
    "an empty line that is LF": (400, post(LENGTH).replace(b"\r\n\r\n", b"\r\n\n")),
    "HTTP/0.9": (400, b"GET /api/chat\r\n\r\n"),
    "HTTP/1.2": (505, post(LENGTH, first=b"POST /api/chat HTTP/1.2")),
    "HTTP/2.0 in words": (505, post(LENGTH, first=b"POST /api/chat HTTP/2.0")),
    "blanks in the first line": (400, post(LENGTH, first=b"POST /api/chat  HTTP/1.1")),
    "a target that is no path": (400, post(LENGTH, first=b"POST api/chat HTTP/1.1")),
    "a tunnel": (400, post(first=b"CONNECT a:80 HTTP/1.1", body=b"")),
    "no Host": (400, post(LENGTH, host=b"X: y")),
    "two Hosts": (400, post(LENGTH, b"Host: a")),
    "a Host that is none": (400, post(LENGTH, host=b"Host: a/b")),
    "a chunk's size with a sign": (400, post(CHUNKED, body=b"+" + CHUNKS)),
    "a chunk's size after a blank": (400, post(CHUNKED, body=b" " + CHUNKS)),
    "a chunk's size before a blank": (400, post(CHUNKED, body=CHUNKS.replace(b"\r\n", b" \r\n", 1))),
    "a chunk's size with 0x": (400, post(CHUNKED, body=b"0x" + CHUNKS)),
    "a chunk's size in a long number": (400, post(CHUNKED, body=b"0" * 16 + CHUNKS)),
    "a chunk's size beyond all numbers": (400, post(CHUNKED, body=b"f" * 16 + b"\r\n")),
    "a chunk's size that ends in LF": (400, post(CHUNKED, body=CHUNKS.replace(b"\r\n", b"\n", 1))),
    "an extension that ends in LF": (400, post(CHUNKED, body=CHUNKS.replace(b"\r\n", b";a\n", 1))),
    "an extension with a bare CR": (400, post(CHUNKED, body=CHUNKS.replace(b"\r\n", b";a\rb\r\n", 1))),
    "an extension without end": (400, post(CHUNKED, body=b"1;" + b"a" * LINE_BYTES)),
    "a chunk longer than it says": (400, post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n")),
    "a trailer without end": (400, post(CHUNKED, body=CHUNKS[:-2] + b"a: " + b"b" * TRAILER_BYTES)),
    "a trailer that is no header": (400, post(CHUNKED, body=CHUNKS[:-2] + b"GET / HTTP/1.1\r\n\r\n")),
    "too many headers": (431, post(LENGTH, *[b"X: y"] * HEADERS)),
    "a long target": (414, post(LENGTH, first=b"POST /api/chat?" + b"x" * TARGET_BYTES + b" HTTP/1.1")),
}  # fmt: skip


@pytest.mark.parametrize(("status", "sent"), REFUSED.values(), ids=REFUSED)
async def test_it_is_refused_and_nothing_after_it_is_asked(house: House, status: int, sent: bytes) -> None:
    worker = await house.hall.worker("a", says(b"{}"))
    primary = await house.hall.primary(says(b"{}"))
    client = await house.client()
    await client.send(sent + HIDDEN)
    head, _, body = (await client.until_closed()).partition(b"\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", head) == [b"%d" % status]
    assert b"connection: close" in head
    assert json.loads(body)["error"]
    # of a body that is refused while it comes, the head had been understood; but it never became a request
    assert [received.body for received in worker.received + primary.received] == []
    assert repr(house.hall.admission) == NOTHING_LEFT


TAKEN = {
    "a length among blanks": post(b"Content-Length: \t %d \t" % SIZE),
    "a length with zeros before it": post(b"Content-Length: 00%d" % SIZE),
    "a name in capitals": post(b"CONTENT-LENGTH:%d" % SIZE),
    "chunks": post(CHUNKED, body=CHUNKS),
    "chunks in capitals": post(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS.upper().replace(CHAT.upper(), CHAT)),
    "many small chunks": post(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in CHAT) + b"0\r\n\r\n"),
    "extensions": post(CHUNKED, body=CHUNKS.replace(b"\r\n", b";a=b; c\r\n", 1)),
    "a trailer": post(CHUNKED, body=CHUNKS[:-2] + b"Content-Length: 999\r\nHost: hidden\r\n\r\n"),
    "an empty line before it": b"\r\n" + post(LENGTH),
    "a whole URL for a target": post(LENGTH, first=b"POST http://b/api/chat HTTP/1.1"),
    "an upgrade to h2c": post(LENGTH, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAAA"),
    "an upgrade to a websocket": post(LENGTH, b"Upgrade: websocket", b"Connection: upgrade"),
    "the question whether to send": post(LENGTH, b"Expect: 100-continue"),
    "a length that Connection names": post(LENGTH, b"Connection: content-length, keep-alive"),
}  # fmt: skip


@pytest.mark.parametrize("sent", TAKEN.values(), ids=TAKEN)
async def test_it_reaches_the_worker_as_one_request_and_the_next_as_the_next(house: House, sent: bytes) -> None:
    worker = await house.hall.worker("a", says(b'{"first":1}'), says(b'{"second":2}'))
    client = await house.client()
    await client.send(sent + HIDDEN)
    first, second = await client.until(b'{"first":1}'), await client.until(b'{"second":2}')
    assert [re.findall(rb"HTTP/1.1 (\d+)", answer)[-1] for answer in (first, second)] == [b"200", b"200"]
    assert [(request.target, request.body) for request in worker.received] == [
        ("/api/chat", CHAT),
        ("/api/generate", CHAT),
    ]
    framing = {b"content-length", b"transfer-encoding", b"upgrade", b"connection", b"expect", b"host", b"trailer"}
    for request in worker.received:
        assert [pair for pair in request.headers if pair[0] in framing] == [
            (b"host", b"127.0.0.1:%d" % worker.port), (b"content-length", b"%d" % SIZE)
        ]  # fmt: skip


async def test_a_chunk_that_is_refused_later_leaves_its_request_unasked(house: House) -> None:
    worker = await house.hall.worker("a", says(b"{}"))
    client = await house.client()
    await client.send(post(CHUNKED, body=CHUNKS[:-5]))
    await wait_all_tasks_blocked()
    await client.send(b"+0\r\n\r\n" + HIDDEN)
    assert re.findall(rb"HTTP/1.1 (\d+)", await client.until_closed()) == [b"400"]
    assert worker.received == []


async def test_an_upload_whose_chunk_is_refused_never_looks_complete_to_the_primary(house: House) -> None:
    primary = await house.hall.primary(says(b"never"))
    client = await house.client()
    await client.send(post(CHUNKED, body=CHUNKS[:-5], first=b"POST /api/blobs/sha256:1 HTTP/1.1"))
    with trio.fail_after(TOO_LONG_S):
        while not primary.received or primary.received[0].body != CHAT:
            await trio.sleep(0.005)
        await client.send(b"+0\r\n\r\n" + HIDDEN)
        assert re.findall(rb"HTTP/1.1 (\d+)", await client.until_closed()) == [b"400"]
        await primary.idle_closed.wait()  # the connection ended, and its request had not
    assert not primary.asked.is_set()
    assert len(primary.received) == 1


async def test_a_whole_url_for_a_target_is_the_host_that_counts(house: House) -> None:
    client = await house.client()
    await client.send(b"GET http://evil.example/admin/instances HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await client.until(b"}\n")).startswith(b"HTTP/1.1 403")
    await client.send(b"GET http://localhost/admin/instances HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert (await client.until(b"}\n")).startswith(b"HTTP/1.1 200")


async def test_what_concerns_the_whole_server_is_no_request_for_a_worker(house: House) -> None:
    client = await house.client()
    await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.until(b"}\n")).startswith(b"HTTP/1.1 404")


async def test_who_speaks_tls_here_is_told_so(house: House) -> None:
    client = await house.client()
    await client.send(bytes.fromhex("16030100c8010000c40303"))
    assert b"not HTTPS" in await client.until_closed()

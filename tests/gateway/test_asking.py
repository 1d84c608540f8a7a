"""Requests to workers, as bytes."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import h11
import pytest

from gateway.asking import framed, head_of_request
from gateway.errors import Unsendable
from gateway.headers import Headers

HOST = (b"host", b"127.0.0.1:11435")
CHUNKED: Headers = [HOST, (b"transfer-encoding", b"chunked")]


def test_a_head_is_what_a_server_reads() -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(head_of_request("POST", b"/api/chat?a=b", [HOST, (b"content-length", b"0")]))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target, list(request.headers)) == (
        b"POST", b"/api/chat?a=b", [HOST, (b"content-length", b"0")],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "header"),
    [
        (b"/", (b"a", b"b\r\ntransfer-encoding: chunked")),
        (b"/", (b"a", b"b\nc: d")),
        (b"/", (b"a\r\nb", b"c")),
        (b"/ HTTP/1.1\r\nx: y\r\n\r\n", (b"a", b"b")),
    ],
)
def test_no_header_becomes_two(target: bytes, header: tuple[bytes, bytes]) -> None:
    with pytest.raises(Unsendable):
        head_of_request("GET", target, [HOST, header])


async def parts(*given: bytes) -> AsyncGenerator[bytes, None]:
    for part in given:
        yield part


@pytest.mark.parametrize(
    ("headers", "sent"), [(CHUNKED, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), ([HOST, (b"content-length", b"5")], b"abcde")]
)
async def test_a_body_is_framed_as_its_headers_say(headers: Headers, sent: bytes) -> None:
    assert b"".join([part async for part in framed(parts(b"abc", b"", b"de"), headers)]) == sent


@pytest.mark.parametrize("length", [b"4", b"6"])
async def test_a_body_of_another_length_is_never_completed(length: bytes) -> None:
    sent = bytearray()

    async def send() -> None:
        async with aclosing(parts(b"abc", b"de")) as body:
            async for part in framed(body, [HOST, (b"content-length", length)]):
                sent.extend(part)

    with pytest.raises(Unsendable):
        await send()
    assert len(sent) <= int(length)

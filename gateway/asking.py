"""A request to a worker as bytes. Pure."""

from collections.abc import AsyncGenerator, AsyncIterable

from gateway.errors import Unsendable
from gateway.headers import Headers, value_of

# A body up to this goes with its head; copying a longer one would cost more than sending it by itself.
TOGETHER_BYTES = 64 * 1024


def head_of_request(method: str, target: bytes, headers: Headers) -> bytes:
    """Return a request's head. Raises Unsendable where a header would be two of them.

    That cannot be: what came over HTTP/1.1 was checked when it came, what came over HTTP/2 by `sendable`. But this
    is where a mistake there would put words into a client's mouth.
    """
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target), *[b"%b: %b" % header for header in headers], b"", b""]
    head = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks:
        raise Unsendable
    return head


async def framed(body: AsyncIterable[bytes], headers: Headers) -> AsyncGenerator[bytes, None]:
    """Yield a body that comes in parts as it is sent, with the framing that its headers declare.

    Raises Unsendable when it is longer or shorter than they say: the worker would take the rest for another request.
    """
    declared = value_of(headers, b"content-length")
    left = int(declared) if declared is not None else 0
    chunked = value_of(headers, b"transfer-encoding") is not None
    async for part in body:
        if chunked:
            if part:  # one of no bytes would be the last
                yield b"%x\r\n%b\r\n" % (len(part), part)
            continue
        left -= len(part)
        if left < 0:
            raise Unsendable
        yield part
    if chunked:
        yield b"0\r\n\r\n"
    elif left:
        raise Unsendable

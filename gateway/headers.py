"""Which headers pass, which do not, and the request id. Pure; names are lower-case bytes, as in ASGI."""

import re
from collections.abc import Callable, Iterable, Mapping

Headers = list[tuple[bytes, bytes]]
# The first value of each name.
Named = Mapping[bytes, bytes]

# RFC 9110, 7.6.1: for one connection only; what Connection names comes on top.
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
# Host is rewritten: Ollama refuses a foreign one with 403. Authorization, X-Api-Key and Cookie are between the
# client and Chimera, and no secret of them may reach a worker's log. Expect is answered here. The length is set anew
# with the body. Who the client is and what it asked is found out here (gateway.forwarded): Ollama believes anybody
# who says it, and logs it.
_NOT_FORWARDED = HOP_BY_HOP | {
    b"host", b"authorization", b"x-api-key", b"cookie", b"content-length", b"expect", b"x-request-id", b"forwarded",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-server",
    b"x-real-ip",
}  # fmt: skip

# The date is set where the answer is sent.
_NOT_ANSWERED = HOP_BY_HOP | {b"date"}

# What can stand in an HTTP/1.1 head (RFC 9110, 5.6.2 and 5.5; RFC 9112, 3.2).
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_TARGET = re.compile(rb"[!-~]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def value_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the first value of a header, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def first_values(headers: Headers) -> Named:
    """Return the first value of each header, for who asks for many of them."""
    return dict(reversed(headers))


def _not_passed(headers: Headers, common: frozenset[bytes]) -> frozenset[bytes]:
    """Return the names of headers that stay here: the `common` ones, and those that Connection names."""
    named = [value for name, value in headers if name == b"connection"]
    if not named:
        return common
    return common | {token.strip().lower() for value in named for token in value.split(b",")}


def framing_of(headers: Headers) -> Headers:
    """Return the header that frames a request body as it came, for a body that is passed on in parts.

    Empty when there is none to come (RFC 9112, 6.3). Content-Length beside Transfer-Encoding was refused before.
    """
    if value_of(headers, b"transfer-encoding") is not None:
        return [(b"transfer-encoding", b"chunked")]
    length = value_of(headers, b"content-length")
    return [] if length is None else [(b"content-length", length)]


def sendable(method: str, target: bytes, headers: Headers) -> bool:
    """Say whether a request can be passed on over HTTP/1.1 as it is: HTTP/2 frames other bytes too (RFC 9113, 8.2.1).

    What came over HTTP/1.1 was checked when it came (gateway.head).
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    return (
        bool(_NAME.fullmatch(method.encode("utf-8", "replace")) and _TARGET.fullmatch(target))
        and all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers)
        and len(lengths) <= 1
        and all(map(_LENGTH.fullmatch, lengths))
    )


def request_headers(headers: Headers, *, port: int, request_id: str, framing: Headers) -> Headers:
    """Return what a worker gets: the client's headers but for those of the connection, and our own."""
    dropped = _not_passed(headers, _NOT_FORWARDED)
    passed = [header for header in headers if header[0] not in dropped]
    host = (b"host", f"127.0.0.1:{port}".encode())
    return [host, *passed, *framing, (b"x-request-id", request_id.encode())]


def response_headers(headers: Headers) -> Headers:
    """Return what a client gets of a worker's headers; the length stays as it is.

    A length beside a transfer encoding is nobody's (RFC 9112, 6.3): the body was not framed by it.
    """
    dropped = _not_passed(headers, _NOT_ANSWERED)
    if value_of(headers, b"transfer-encoding") is not None:
        dropped |= {b"content-length"}
    return [header for header in headers if header[0] not in dropped]


def request_id_of(named: Named, random_bits: Callable[[int], int]) -> str:
    """Return the client's own X-Request-Id if it is harmless to log, else 128 random bits.

    They need not be secret: drawing them from the kernel takes 3 µs.
    """
    given = named.get(b"x-request-id")
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else f"{random_bits(128):032x}"

"""Answers that do not go through Hypercorn, as they go over an HTTP/1.1 connection. Pure."""

import email.utils
from functools import lru_cache
from http import HTTPStatus

from gateway.errors import Told, dialect_of, error_body, error_headers
from gateway.head import HEADER_LINE
from gateway.headers import Headers

SWITCHING_PROTOCOLS = 101
_FINAL = 200


def raw_answer(said: Told, date: str, target: bytes = b"", method: bytes = b"") -> bytes:
    """Return an error answer in the words of the API that was asked. It says that the connection closes."""
    body = error_body(dialect_of(target.decode("latin1")), said.status, said.sentence)
    headers: Headers = [
        *((name, value) for name, value in error_headers(said) if name != b"connection"),
        (b"content-length", b"%d" % len(body)),
        (b"date", date.encode()),
        (b"connection", b"close"),
    ]
    return _head(said.status, headers) + (b"" if method == b"HEAD" else body)


def head_of(status: int, headers: Headers, at_s: int, *, chunked: bool, closes: bool) -> bytes:
    """Return the head of an answer of the express lane: `headers`, the date, and what concerns the connection.

    `at_s` is the time of day, in whole seconds since 1970.
    """
    lines = [_status_line(status)]
    lines += [b"%b: %b" % header for header in headers if header[0] != b"connection"]
    lines.append(_date_line(at_s))
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    lines.append(b"connection: close\r\n\r\n" if closes else b"\r\n")
    return b"\r\n".join(lines)


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    """RFC 9110, 6.6.1. Written once a second."""
    return b"date: " + email.utils.formatdate(second, usegmt=True).encode()


def informational(status: int, headers: Headers) -> bytes:
    """Return an informational answer (RFC 9110, 15.2). ValueError when it is none, or would end the talk of HTTP."""
    if not 100 <= status < _FINAL or status == SWITCHING_PROTOCOLS:
        raise ValueError(f"{status} is no informational status")
    for name, value in headers:
        if not HEADER_LINE.fullmatch(b"%b:%b" % (name, value)):
            raise ValueError(f"header {name!r} cannot be sent")
    return _head(status, headers)


def with_phrase(data: bytes | bytearray | memoryview, status: int) -> bytes | bytearray | memoryview:
    """Write a status's name into the head that `data` begins with, if that is one of this status without its name.

    Ollama does so, Hypercorn does not, and clients show it to people: the official command says
    `Error: 404 Not Found: ...` of a stream that was refused.
    """
    bare = b"HTTP/1.1 %d \r\n" % status
    if bytes(data[: len(bare)]) != bare:
        return data  # HTTP/2
    return _status_line(status) + bytes(data[len(bare) - 2 :])


def _head(status: int, headers: Headers) -> bytes:
    return b"\r\n".join((_status_line(status), *(b"%b: %b" % pair for pair in headers), b"", b""))


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # any number may be a status
        phrase = ""
    return b"HTTP/1.1 %d %b" % (status, phrase.encode())

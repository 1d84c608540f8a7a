"""What really goes over a connection: one HTTP/1.1 request and its answer, recorded chunk by chunk, to be compared."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import h11

# Headers that a proxy may add or set anew: they say nothing of what was answered.
_OWN = re.compile(rb"x-chimera-|x-request-id$|date$|content-length$|transfer-encoding$|connection$")

# What differs from one answer to the next of the same server: times, and ids made of chance.
_VARIES = (
    (re.compile(rb'("(?:created_at|modified_at|expires_at)":)"[^"]*"'), rb'\1"TIME"'),
    (re.compile(rb'("(?:total|load|prompt_eval|eval)_duration":)\d+'), rb"\1TIME"),
    (re.compile(rb'("created":)\d+'), rb"\1TIME"),
    (re.compile(rb'("id":"(?:chatcmpl-|cmpl-|call_))[^"]*"'), rb'\1ID"'),
)


def without_times(body: bytes) -> bytes:
    """Return a body without what differs from one answer to the next."""
    for pattern, constant in _VARIES:
        body = pattern.sub(constant, body)
    return body


@dataclass(frozen=True)
class Recorded:
    """An answer. `framing` says how the end of its body is known: "chunked", "length" or "close"."""

    status: int
    reason: str
    headers: Mapping[bytes, bytes]
    framing: str
    chunks: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """All of the body."""
        return b"".join(self.chunks)

    @property
    def alike(self) -> tuple[object, ...]:
        """Everything in which two answers to the same request are to be the same, byte for byte."""
        headers = {name: value for name, value in self.headers.items() if not _OWN.match(name)}
        return self.status, self.reason, headers, self.framing, without_times(self.body)

    @property
    def in_whole_lines(self) -> bool:
        """Whether every chunk ends where a line ends: a client that acts on what it has never waits for the rest."""
        return all(chunk.endswith(b"\n") for chunk in self.chunks)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, *, headers: Mapping[str, str] | None = None
) -> Recorded:
    """Send a request to 127.0.0.1:port on a connection of its own and record the answer."""
    given = [("Host", f"127.0.0.1:{port}"), *(headers or {}).items()]
    if body is not None:
        given += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    http = h11.Connection(h11.CLIENT)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        request = http.send(h11.Request(method=method, target=path, headers=given)) or b""
        connection.sendall(request + (http.send(h11.Data(data=body)) or b"" if body else b""))
        http.send(h11.EndOfMessage())
        return _read(http, connection)


def _read(http: h11.Connection, connection: socket.socket) -> Recorded:
    head: h11.Response | None = None
    chunks: list[bytes] = []
    fresh = True
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            if fresh:
                chunks.append(b"")
            chunks[-1] += bytes(event.data)
            fresh = event.chunk_end
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            raise AssertionError(f"not an answer: {event!r}")
    assert head is not None
    headers = dict(head.headers)
    framing = "chunked" if b"transfer-encoding" in headers else "length" if b"content-length" in headers else "close"
    return Recorded(head.status_code, bytes(head.reason).decode(), headers, framing, tuple(chunks))

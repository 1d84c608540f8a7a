"""What comes over a client's connection, before Hypercorn sees it: tried against h11, and in other pieces.

Three things must hold of any bytes: they are handed on or refused, nothing else; it does not matter in which pieces
they came; and what is handed on is what h11 takes, with the same requests in it, so that nothing can hide between two.
"""

from dataclasses import dataclass, field
from random import Random
from zlib import crc32

import h11

from gateway.ending import end_of
from gateway.framing import At, Framing
from gateway.head import Refused
from gateway.headers import Headers, first_values
from gateway.keys import digest_of, presented, priority_of
from gateway.traceparent import parent_of, with_parent
from scripts.fuzz.targets_gateway import headers_in

_MOST_REQUESTS = 50


@dataclass
class Taken:
    """What a connection handed on, request by request, and how it ended: refused, or in another protocol."""

    requests: list[bytes] = field(default_factory=list)
    refused: int = 0
    other: bool = False


def taken(pieces: list[bytes]) -> Taken:
    """Feed a connection; each request is answered as soon as it is complete."""
    framing, whole, current = Framing(), Taken(), b""
    try:
        for piece in pieces:
            current += framing.feed(piece)
            while framing.at is At.ANSWER:
                whole.requests.append(current)
                framing.answered()
                current = framing.feed(b"")
    except Refused as refused:
        whole.refused = refused.status
    else:
        whole.other = framing.at is At.OTHER
        whole.requests.append(current)
    return whole


def pieces_of(data: bytes, chance: Random) -> list[bytes]:
    """Cut bytes at a few places."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([1, 3, 20])))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_framing(data: bytes) -> None:
    """Bytes are handed on or refused, in whatever pieces, and h11 takes every whole request that is handed on."""
    at_once = taken([data])
    again = taken(pieces_of(data, Random(crc32(data))))  # noqa: S311 - chance that the input decides
    assert at_once.refused in (0, 400, 414, 431, 501, 505), at_once.refused
    assert (at_once.refused, at_once.other) == (again.refused, again.other)
    complete = at_once.requests if at_once.refused else at_once.requests[:-1]
    assert [_meaning(request) for request in complete] == [
        _meaning(request) for request in again.requests[: len(complete)]
    ]
    for request in complete[:_MOST_REQUESTS]:
        assert _meaning(request) is not None


def _meaning(request: bytes) -> tuple[bytes, bytes, Headers, bytes] | None:
    """Return one request as h11 reads it; None when it refuses it, wants more, or finds a second one in it."""
    server, body = h11.Connection(h11.SERVER), bytearray()
    server.receive_data(request)
    try:
        head = server.next_event()
        while isinstance(event := server.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(head, h11.Request) or not isinstance(event, h11.EndOfMessage) or server.trailing_data[0]:
        return None
    return head.method, head.target, list(head.headers), bytes(body)


def check_who(head: bytes) -> None:
    """What a request says of itself in headers: its key, its priority, its trace; nothing is made up."""
    headers = headers_in(head)
    given = presented(first_values(headers))
    if given:
        assert given in head
        assert len(digest_of(given)) == 32
    priority = priority_of(first_values(headers), 9)
    assert priority is None or 0 <= priority <= 9
    parent = parent_of(headers)
    if parent is not None:
        assert parent_of(with_parent(headers, parent, continued=True)) == parent


def check_ending(tail: bytes) -> None:
    """How a stream ended is one of three ways, whatever its last bytes are."""
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"):
        _, last = end_of(path, tail)
        assert last in tail or last in tail.replace(b"\r\n", b"\n")

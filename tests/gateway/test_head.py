"""The head of a request: what is handed on, what is refused, and that a hostile one costs nothing."""

import re
import time

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.head import HEADERS, TARGET_BYTES, Refused, understand

HOST = "Host: a"


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin1")


def refusal(given: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        understand(given)
    return caught.value


@pytest.mark.parametrize(
    ("lines", "chunked", "length"),
    [
        (("GET / HTTP/1.1", HOST), False, 0),
        (("GET / HTTP/1.0",), False, 0),
        (("DELETE /api/delete?a=%20#b HTTP/1.1", "HOST:[::1]:8000"), False, 0),
        (("OPTIONS /api/chat HTTP/1.1", "host:"), False, 0),
        (("POST / HTTP/1.1", HOST, "Content-Length: 0"), False, 0),
        (("POST / HTTP/1.1", HOST, "Content-Length: \t 5 \t"), False, 5),
        (("POST / HTTP/1.1", HOST, "content-length:999999999999999999"), False, 10**18 - 1),
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked"), True, 0),
        (("POST / HTTP/1.1", HOST, "transfer-encoding:\tChunked "), True, 0),
        (("GET / HTTP/1.1", HOST, "x: \t", "y:", "z: a\tb  c \xe9 ", "z: again"), False, 0),
        (("GET / HTTP/1.1", HOST, *["x: y"] * (HEADERS - 1)), False, 0),
        (("GET /" + "x" * (TARGET_BYTES - 1) + " HTTP/1.1", HOST), False, 0),
    ],
)
def test_what_is_understood_is_handed_on_as_it_came(lines: tuple[str, ...], chunked: bool, length: int) -> None:
    understood = understand(head(*lines))
    assert (understood.handed_on, understood.chunked, understood.length) == (head(*lines, "", ""), chunked, length)


@pytest.mark.parametrize(
    ("came", "handed_on"),
    [
        (("GET http://b/x?y HTTP/1.1", "x: 1", HOST), ("GET /x?y HTTP/1.1", "host: b", "x: 1")),
        (("GET HTTPS://b:1 HTTP/1.1", HOST), ("GET / HTTP/1.1", "host: b:1")),
        (("GET http://b?q HTTP/1.0",), ("GET /?q HTTP/1.0", "host: b")),
        (("GET / HTTP/1.1", HOST, "Upgrade: h2c", "x: 1"), ("GET / HTTP/1.1", HOST, "x: 1")),
        (("GET / HTTP/1.1", HOST, "upgrade: websocket"), ("GET / HTTP/1.1", HOST)),
        (("OPTIONS * HTTP/1.1", HOST), ("OPTIONS * HTTP/1.1", HOST)),
    ],
)
def test_what_would_be_taken_in_two_ways_is_written_anew(came: tuple[str, ...], handed_on: tuple[str, ...]) -> None:
    assert understand(head(*came)).handed_on == head(*handed_on, "", "")


@pytest.mark.parametrize(
    ("lines", "status", "sentence"),
    [
        (("GET /",), 400, "request line"),  # HTTP/0.9
        (("GET  / HTTP/1.1", HOST), 400, "request line"),
        (("GET / HTTP/1.1 ", HOST), 400, "request line"),
        (("GET\t/ HTTP/1.1", HOST), 400, "request line"),
        (("GET / http/1.1", HOST), 400, "request line"),
        (("GET / HTTP/1.10", HOST), 400, "request line"),
        (("GET /\xe9 HTTP/1.1", HOST), 400, "request line"),
        (("G(T / HTTP/1.1", HOST), 400, "request line"),
        (("X" * 33 + " / HTTP/1.1", HOST), 400, "request line"),
        (("GET / HTTP/1.2", HOST), 505, "HTTP/1.1"),
        (("GET / HTTP/2.0", HOST), 505, "HTTP/1.1"),
        (("GET /" + "x" * TARGET_BYTES + " HTTP/1.1", HOST), 414, "longer than 8192"),
        (("GET x HTTP/1.1", HOST), 400, "target"),
        (("GET * HTTP/1.1", HOST), 400, "target"),
        (("CONNECT a:80 HTTP/1.1", HOST), 400, "target"),
        (("GET ftp://a/ HTTP/1.1", HOST), 400, "target"),
        (("GET http:///x HTTP/1.1", HOST), 400, "target"),
        (("GET http://user@a/ HTTP/1.1", HOST), 400, "target"),
        (("GET http://a,b/ HTTP/1.1", HOST), 400, "names no host"),
        (("GET / HTTP/1.1",), 400, "one Host"),
        (("GET / HTTP/1.1", HOST, HOST), 400, "one Host"),
        (("GET / HTTP/1.0", HOST, "host: b"), 400, "one Host"),
        (("GET / HTTP/1.1", "Host: a b"), 400, "no host name"),
        (("GET / HTTP/1.1", "Host: a/b"), 400, "no host name"),
        (("GET / HTTP/1.1", "Host: a@b"), 400, "no host name"),
        (("GET / HTTP/1.1", "Host: a, b"), 400, "no host name"),
        (("GET / HTTP/1.1", HOST, " x: folded"), 400, "header line 2 is folded"),
        (("GET / HTTP/1.1", HOST, "x: 1", "\tfolded"), 400, "header line 3 is folded"),
        (("GET / HTTP/1.1", " Host: a"), 400, "header line 1 is folded"),
        (("GET / HTTP/1.1", HOST, "x : 1"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, ": x"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x\x00: y"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x: \x00"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x: a\x7fb"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x: a\rb"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x: a\rContent-Length: 5"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, "x: a\nContent-Length: 5"), 400, "header line 2 is not"),
        (("GET / HTTP/1.1", HOST, *["x: y"] * HEADERS), 431, "more than 100 headers"),
        (("POST / HTTP/1.1", HOST, "Content-Length: 5", "Transfer-Encoding: chunked"), 400, "both"),
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Content-Length: 5"), 400, "both"),
        (("POST / HTTP/1.1", HOST, "Content-Length: 5", "Content-Length: 5"), 400, "more than once"),
        (("POST / HTTP/1.1", HOST, "Content-Length: 5", "Content-length: 6"), 400, "more than once"),
        *[
            (("POST / HTTP/1.1", HOST, f"Content-Length: {value}"), 400, "not a number")
            for value in ("+5", "-5", "5, 5", "5,", "0x5", "5 5", "5.0", "5e0", "", "1" * 19, "\xb2", "five")
        ],
        *[
            (("POST / HTTP/1.1", HOST, f"Transfer-Encoding: {value}"), 400, "chunked, once")
            for value in ("xchunked", "chunked, chunked", "chunked, identity", "identity", "", "chunked;a=b")
        ],
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: \x0bchunked"), 400, "header line 2 is not"),
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: identity, chunked"), 501, "chunked"),
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"), 501, "chunked"),
        (("POST / HTTP/1.1", HOST, "Transfer-Encoding: x", "Transfer-Encoding: chunked"), 400, "more than once"),
        (("POST / HTTP/1.0", HOST, "Transfer-Encoding: chunked"), 400, "HTTP/1.0"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_why(lines: tuple[str, ...], status: int, sentence: str) -> None:
    refused = refusal(head(*lines))
    assert (refused.status, sentence in refused.sentence) == (status, True), refused.sentence


def test_a_refusal_knows_what_was_asked() -> None:
    refused = refusal(head("POST /v1/messages HTTP/1.1", "x"))
    assert (refused.method, refused.target) == (b"POST", b"/v1/messages")


@pytest.mark.parametrize(
    "line", [b"x:" + b" " * 60_000 + b"\x01", b"x: " + b"a " * 30_000 + b"\x01", b"x" * 60_000 + b" :", b"\t" * 60_000]
)
def test_a_line_made_to_be_tried_again_and_again_is_not(line: bytes) -> None:
    began = time.process_time()
    refusal(b"GET / HTTP/1.1\r\nHost: a\r\n" + line)
    # a thousandth of that is what it takes; the square of its length would be minutes
    assert time.process_time() - began < 5


NAMES = st.text("abcXYZ019-_!~", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_any_ordinary_header_passes_unchanged(pairs: list[tuple[str, str]]) -> None:
    pairs = [(name, re.sub("[\x80-\x9f]", "", value)) for name, value in pairs]
    lines = [f"{name}: {value}" for name, value in pairs]
    understood = understand(head("GET / HTTP/1.1", HOST, *lines))
    assert understood.handed_on == head("GET / HTTP/1.1", HOST, *lines, "", "")


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"Host: a", b"host: http", b"Content-Length: 5", b"content-length:5",
        b"Transfer-Encoding: chunked", b"Upgrade: h2c", b"Connection: upgrade", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r",
        b" ", b"\t", b":", b",", b"\x00", b"5", b"+", b"x: y", b"GET http://b/ HTTP/1.1", b"\xff",
    ]
)  # fmt: skip


@given(st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: a\r\n"]), st.lists(PIECES, max_size=12))
def test_whatever_is_handed_on_the_parser_behind_reads_the_same(begin: bytes, pieces: list[bytes]) -> None:
    given_head = begin + b"".join(pieces)
    if b"\r\n\r\n" in given_head:
        return  # where a head ends is for `framing` to say
    try:
        understood = understand(given_head)
    except Refused:
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(understood.handed_on)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    headers = dict(request.headers)
    assert (b"transfer-encoding" in headers) is understood.chunked
    assert int(headers.get(b"content-length", b"0")) == understood.length
    assert b"upgrade" not in headers
    assert request.target.startswith(b"/")

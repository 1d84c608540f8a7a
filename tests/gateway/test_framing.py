"""A connection's requests: one at a time, however their bytes come, and nothing after a refusal."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.framing import PREFACE, REQUEST_LINE_BYTES, At, Framing
from gateway.head import HEAD_BYTES, Refused

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def refusal(*parts: bytes) -> Refused:
    framing = Framing()
    for part in parts[:-1]:
        framing.feed(part)
    with pytest.raises(Refused) as caught:
        framing.feed(parts[-1])
    return caught.value


@pytest.mark.parametrize("request_", [GET, POST, CHUNKED])
def test_the_next_request_waits_for_the_answer(request_: bytes) -> None:
    framing = Framing()
    assert framing.feed(request_ + GET) == request_
    assert (framing.at, framing.ahead) == (At.ANSWER, len(GET))
    assert framing.feed(GET) == b""
    framing.answered()
    assert framing.feed(b"") == GET
    framing.answered()
    assert framing.feed(b"") == GET
    framing.answered()
    assert (framing.at, framing.ahead) == (At.HEAD, 0)


@pytest.mark.parametrize("request_", [GET, POST])
def test_a_request_that_comes_whole_is_handed_on_as_if_it_came_in_pieces(request_: bytes) -> None:
    whole, pieces = Framing(), Framing()
    for framing in (whole, pieces):  # a connection's first request may be another protocol's beginning
        framing.feed(GET)
        framing.answered()
    assert whole.feed(request_) == request_
    assert b"".join(pieces.feed(request_[at : at + 1]) for at in range(len(request_))) == request_
    assert (whole.at, whole.ahead, whole.head) == (pieces.at, pieces.ahead, pieces.head) == (At.ANSWER, 0, whole.head)


def test_a_head_is_handed_on_whole_and_its_body_as_it_comes() -> None:
    framing = Framing()
    assert framing.feed(POST[:10]) == b""
    assert framing.feed(POST[10:-3]) == POST[:-3]
    assert framing.feed(b"l") == b"l"
    assert framing.feed(b"lo" + GET) == b"lo"
    assert (framing.at, framing.ahead) == (At.ANSWER, len(GET))


def test_an_answer_before_the_end_of_its_request_begins_no_other() -> None:
    framing = Framing()
    framing.feed(POST[:-1])
    framing.answered()
    assert framing.at is At.BODY


def test_an_empty_line_before_a_request_is_passed_over_one_only() -> None:
    framing = Framing()
    assert framing.feed(b"\r") == b""
    assert framing.feed(b"\n" + GET) == GET
    framing.answered()
    assert framing.feed(b"\r\n") == b""
    assert refusal(b"\r\n", b"\r\n" + GET).status == 400
    assert refusal(b"\r\n\r\n" + GET).status == 400


def test_http_2_is_not_looked_into() -> None:
    framing = Framing()
    assert framing.feed(PREFACE[:10]) == b""
    assert framing.feed(PREFACE[10:] + b"\x00") == PREFACE + b"\x00"
    assert framing.at is At.OTHER
    assert framing.feed(b"\n\n") == b"\n\n"


def test_http_2_begins_a_connection_or_not_at_all() -> None:
    framing = Framing()
    framing.feed(GET)
    framing.answered()
    with pytest.raises(Refused, match=r"HTTP/1\.1"):
        framing.feed(PREFACE)


@pytest.mark.parametrize(
    ("parts", "status", "sentence"),
    [
        ((b"\x16\x03\x01",), 400, "not HTTPS"),
        ((b"\x00",), 400, "does not begin"),
        ((b" GET / HTTP/1.1\r\n",), 400, "does not begin"),
        ((b"GET / HTTP/1.1\n",), 400, "bare line feed"),
        ((b"GET / HTTP/1.1\r\nHost: a\n\n",), 400, "bare line feed"),
        ((b"GET / HTTP/1.1\r\nHost: a\r", b"\n\n"), 400, "bare line feed"),
        ((b"GET / HTTP/1.1\r\nHost: a\r\n\n",), 400, "bare line feed"),
        ((b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",), 400, "bare line feed"),
        ((b"GET /" + b"x" * REQUEST_LINE_BYTES,), 414, "request line"),
        ((b"G" * REQUEST_LINE_BYTES,), 414, "request line"),
        ((b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES,), 431, "head"),
        ((b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * HEAD_BYTES + b"\r\n\r\n",), 431, "head"),
        ((b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",), 505, "HTTP/1.1"),
        ((POST[:-5].replace(b"5", b"+5"),), 400, "Content-Length"),
        ((CHUNKED[:-5], b"0x0\r\n"), 400, "hexadecimal"),
    ],
)
def test_what_no_further_byte_could_mend_is_refused_at_once(
    parts: tuple[bytes, ...], status: int, sentence: str
) -> None:
    refused = refusal(*parts)
    assert (refused.status, sentence in refused.sentence) == (status, True), refused.sentence


def test_a_head_of_just_the_right_size_is_taken() -> None:
    begin = b"GET / HTTP/1.1\r\nHost: a\r\nx: "
    head = begin + b"y" * (HEAD_BYTES - len(begin) - 4) + b"\r\n\r\n"
    assert Framing().feed(head) == head
    assert refusal(head.replace(b"y", b"yy", 1)).status == 431


REQUESTS = st.lists(st.sampled_from([GET, POST, CHUNKED]), min_size=1, max_size=5)


@given(REQUESTS, st.data())
def test_however_they_come_the_requests_are_the_same(requests: list[bytes], data: st.DataObject) -> None:
    framing, left, handed_on = Framing(), b"".join(requests), [b""]
    while left or framing.ahead:
        length = data.draw(st.integers(1, len(left))) if left else 0
        handed_on[-1] += framing.feed(left[:length])
        left = left[length:]
        while framing.at is At.ANSWER:
            framing.answered()
            handed_on.append(framing.feed(b""))
    assert len(handed_on) == len(requests) + 1
    assert [body_of(part) for part in handed_on[:-1]] == [body_of(request) for request in requests]


def body_of(request: bytes) -> tuple[bytes, bytes]:
    """The target and body of the one request there is, as the parser behind us reads it."""
    parser, target, body = h11.Connection(h11.SERVER), b"", b""
    parser.receive_data(request)
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Request | h11.Data), event
        if isinstance(event, h11.Request):
            target = event.target
        else:
            body += bytes(event.data)
    assert parser.trailing_data == (b"", False)
    return target, body


PIECES = st.sampled_from(
    [
        GET, POST, CHUNKED, b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n",
        b"\r\n", b"\n", b"\r", b" ", b"0\r\n\r\n", b"3\r\nabc\r\n", b"abc", b";x", b"\x00",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12))
def test_whatever_comes_each_request_that_is_handed_on_is_one(pieces: list[bytes]) -> None:
    framing, requests = Framing(), [b""]
    try:
        for piece in pieces:
            requests[-1] += framing.feed(piece)
            while framing.at is At.ANSWER:
                framing.answered()
                requests.append(b"")
                requests[-1] += framing.feed(b"")
    except Refused:
        pass
    for request in requests[:-1]:
        body_of(request)

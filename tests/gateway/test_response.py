"""Workers' answers, read as they come."""

from itertools import pairwise

import h11
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.response import HEAD_BYTES, Response, chunk_of

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json \r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nX-T: 1\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello"
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + LENGTH
WHOLE = (LENGTH, CHUNKED, CLOSED, INFORMED, b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def fed(*parts: bytes, method: str = "POST") -> Response:
    response = Response(method)
    for part in parts:
        response.feed(part)
    return response


@pytest.mark.parametrize(
    ("said", "keeps"), [(LENGTH, True), (CHUNKED, True), (INFORMED, True), (WHOLE[-1], False)]
)  # fmt: skip
def test_an_answer_is_read_to_its_end(said: bytes, keeps: bool) -> None:
    response = fed(said)
    assert (response.status, b"".join(response.parts), response.ended) == (200, b"hello", True)
    assert (response.keeps, response.extra, response.fault) == (keeps, False, None)


def test_names_are_lower_case_and_values_without_blanks_around() -> None:
    assert fed(LENGTH).headers == [(b"content-type", b"application/json"), (b"content-length", b"5")]


def test_a_trailer_is_no_header() -> None:
    assert fed(CHUNKED).headers == [(b"transfer-encoding", b"chunked")]


def test_one_without_a_length_ends_with_its_connection_which_cannot_be_used_again() -> None:
    response = fed(CLOSED)
    assert (response.started, response.ended) == (True, False)
    response.feed(b"")
    assert (response.ended, response.keeps, response.parts) == (True, False, [b"hello"])


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_answers_have_no_body(status: bytes) -> None:
    response = fed(b"HTTP/1.1 %b\r\ncontent-length: 5\r\n\r\n" % status)
    assert (response.ended, response.keeps, response.extra) == (True, True, False)


def test_an_answer_to_head_has_none_either() -> None:
    response = fed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", method="HEAD")
    assert (response.ended, response.keeps, response.extra) == (True, True, False)
    response.feed(b"hello")
    assert (response.extra, response.parts) == (True, [])


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\n\r\n", b"H", b"what?", LENGTH])
def test_what_comes_after_the_end_belongs_to_nobody(more: bytes) -> None:
    for response in (fed(LENGTH, more), fed(LENGTH + more)):
        assert (response.ended, response.extra, response.fault, response.parts) == (True, True, None, [b"hello"])


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"", "the connection was closed"),
        (b"what do you want?\r\n\r\n", "its answer is no HTTP: Expected HTTP/, RTSP/ or ICE/"),
        (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", "its answer is no HTTP: Missing expected CR after response line"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "it speaks no HTTP/1.1 that was asked for"),
        (b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "it speaks no HTTP/1.1 that was asked for"),
        (b"HTTP/1.1 101 Go\r\n\r\n", "it speaks no HTTP/1.1 that was asked for"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", "its answer has a transfer encoding that nobody knows"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "its answer is no HTTP: Duplicate Content-Length",
        ),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES, f"the head of its answer is longer than {HEAD_BYTES} bytes"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(said: bytes, fault: str) -> None:
    response = fed(said)
    assert (response.fault, response.started, response.ended) == (fault, False, False)


@pytest.mark.parametrize("more", [b"", b"x\r\nhello\r\n"])
def test_what_came_before_a_break_is_kept(more: bytes) -> None:
    response = fed(CHUNKED.partition(b"0\r\n")[0], more)
    assert (response.parts, response.ended, response.started) == ([b"hel", b"lo"], False, True)
    assert response.fault is not None


@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 200)), st.binary(max_size=20))
def test_it_does_not_matter_how_an_answer_is_cut_into_parts(said: bytes, cuts: list[int], after: bytes) -> None:
    said += after if said is not CLOSED else b""
    at = sorted({0, len(said), *(min(cut, len(said)) for cut in cuts)})
    parts = [said[begin:end] for begin, end in pairwise(at)]
    one, many = fed(said, b""), fed(*parts, b"")
    assert b"".join(one.parts) == b"".join(many.parts) == b"hello"
    assert (one.ended, one.status, one.headers) == (many.ended, many.status, many.headers)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), st.booleans())
def test_it_reads_what_another_parser_writes(parts: list[bytes], chunked: bool) -> None:
    length = str(sum(map(len, parts)))
    framing = ("transfer-encoding", "chunked") if chunked else ("content-length", length)
    worker = h11.Connection(h11.SERVER)
    worker.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    while not isinstance(worker.next_event(), h11.EndOfMessage):
        continue
    said = worker.send(h11.Response(status_code=200, headers=[framing])) or b""
    said += b"".join(worker.send(h11.Data(data=part)) or b"" for part in parts)
    said += worker.send(h11.EndOfMessage()) or b""
    response = fed(said)
    assert (b"".join(response.parts), response.ended, response.extra) == (b"".join(parts), True, False)


# -- chunks that come alone --------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"5\r\nhello\r\n", b"hello"),
        (b"00A\r\nhello\r\nyou\r\n", b"hello\r\nyou"),
        (b"5\r\nhello\r\n5\r\nhello\r\n", b""),
        (b"5\r\nhello", b""),
        (b"5\r\nhello\n\n", b""),
        (b"6\r\nhello\r\n", b""),
        (b"4\r\nhello\r\n", b""),
        (b"5\nhello\r\n", b""),
        (b"5;why\r\nhello\r\n", b""),
        (b"+5\r\nhello\r\n", b""),
        (b"0x5\r\nhello\r\n", b""),
        (b"5 \r\nhello\r\n", b""),
        (b"00000005\r\nhello\r\n", b""),
        (b"0\r\n\r\n", b""),
        (b"0\r\nA: b\r\n\r\n", b""),
        (b"2\r\n", b""),
        (b"\r\n", b""),
        (b"", b""),
    ],
)
def test_a_chunk_is_only_what_is_exactly_one(data: bytes, body: bytes) -> None:
    assert chunk_of(data) == body


@given(st.lists(st.sampled_from([b"x", b"\r\n", b"0\r\n", b"5\r\nhello\r\n", b"a" * 20]), max_size=5), st.data())
def test_it_lies_between_chunks_only_where_the_next_byte_is_of_a_size(bodies: list[bytes], data: st.DataObject) -> None:
    """However an answer is cut: a chunk of somebody else's making, put in there, would be one chunk more."""
    said = HEAD
    ends: dict[int, bytes] = {}
    for body in bodies:
        said += b"%x\r\n%b\r\n" % (len(body), body)
        ends[len(said)] = b"".join(bodies[: len(ends) + 1])
    whole = said + b"0\r\n\r\n"
    cut = data.draw(st.integers(0, len(whole)))
    cuts = sorted(data.draw(st.sets(st.integers(0, cut), max_size=4)) | {0, cut})
    assume(cut > 0)
    response = fed(*(whole[begin:end] for begin, end in pairwise(cuts)))
    # where only a line's last byte was to come it is not seen, and the next chunk is read like any other
    assert response.between == (cut in ends and cut - cuts[-2] > 1)
    assert not response.between or b"".join(response.parts) == ends[cut]


def test_an_answer_of_a_declared_length_has_nothing_between() -> None:
    assert not fed(LENGTH).between
    assert not fed(LENGTH[:-3]).between


@given(st.binary(max_size=400))
def test_whatever_comes_it_is_an_answer_or_a_fault(said: bytes) -> None:
    response = fed(said, b"")
    assert response.ended or response.fault is not None
    assert response.fault is None or len(response.fault) < 100

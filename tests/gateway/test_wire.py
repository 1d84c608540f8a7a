"""Answers as bytes, read by h11's client."""

import json

import h11
import pytest

from gateway.errors import NO_PLACE, Told
from gateway.wire import head_of, informational, raw_answer

DATE = "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (b"/api/chat", {"error": "no"}),
        (b"", {"error": "no"}),
        (b"/v1/chat/completions", {"error": {"message": "no", "type": "api_error", "param": None, "code": None}}),
        (b"/v1/messages\xff", {"type": "error", "error": {"type": "api_error", "message": "no"}}),
    ],
)
def test_an_error_answer_is_whole_and_says_that_it_closes(target: bytes, body: object) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.receive_data(raw_answer(Told(431, "no", 3), DATE, target))
    head, data, end = client.next_event(), client.next_event(), client.next_event()
    assert isinstance(head, h11.Response)
    headers = dict(head.headers)
    assert (head.status_code, headers[b"connection"], headers[b"retry-after"]) == (431, b"close", b"3")
    assert headers[b"date"] == DATE.encode()
    assert isinstance(data, h11.Data)
    assert json.loads(bytes(data.data)) == body
    assert isinstance(end, h11.EndOfMessage)
    assert client.their_state is h11.MUST_CLOSE


def test_the_answer_to_a_head_request_has_no_body() -> None:
    assert raw_answer(NO_PLACE, DATE, b"/", b"HEAD").endswith(b"\r\n\r\n")


def test_an_informational_answer_is_none_to_a_client_that_knows_none() -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.receive_data(informational(102, [(b"x-place", b"3")]) + informational(199, []))
    first, second = client.next_event(), client.next_event()
    assert isinstance(first, h11.InformationalResponse)
    assert (first.status_code, list(first.headers)) == (102, [(b"x-place", b"3")])
    assert isinstance(second, h11.InformationalResponse)


@pytest.mark.parametrize("status", [99, 101, 200, 404])
def test_what_is_not_informational_is_not_sent(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        informational(status, [])


@pytest.mark.parametrize("header", [(b"x", b"a\r\nb: c"), (b"x y", b"a"), (b"", b"a"), (b"x", b"\x00")])
def test_a_header_cannot_bring_another_with_it(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        informational(102, [header])


@pytest.mark.parametrize(("chunked", "closes"), [(False, False), (True, True)])
def test_a_head_of_the_express_lane_is_what_a_client_reads(chunked: bool, closes: bool) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    given = [(b"x-a", b"b"), (b"connection", b"close")]
    client.receive_data(head_of(200, given, 0, chunked=chunked, closes=closes))
    head = client.next_event()
    assert isinstance(head, h11.Response)
    own = [(b"x-a", b"b"), (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
    own += [(b"transfer-encoding", b"chunked")] if chunked else []
    own += [(b"connection", b"close")] if closes else []
    assert (head.status_code, head.reason, list(head.headers)) == (200, b"OK", own)

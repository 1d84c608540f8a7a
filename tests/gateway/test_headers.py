"""Which headers pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import Headers, framing_of, request_headers, request_id_of, response_headers, sendable, value_of


def sent(*headers: tuple[bytes, bytes], framing: Headers | None = None) -> Headers:
    return request_headers(list(headers), port=11500, request_id="id-1", framing=framing or [])


def test_a_worker_gets_the_clients_headers_its_own_host_and_the_request_id() -> None:
    assert sent((b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2"), (b"host", b"example.com")) == [
        (b"host", b"127.0.0.1:11500"),
        (b"accept", b"*/*"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"x-request-id", b"id-1"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"authorization", b"cookie", b"x-api-key", b"proxy-authorization", b"connection", b"keep-alive",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"expect",
        b"x-request-id", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip",
        b"x-forwarded-port", b"x-forwarded-server",
    ],
)  # fmt: skip
def test_what_is_between_the_client_and_the_gateway_does_not_pass(name: bytes) -> None:
    assert sent((name, b"secret"))[1:] == [(b"x-request-id", b"id-1")]


def test_what_connection_names_does_not_pass() -> None:
    headers = [(b"connection", b"Keep-Alive, X-Secret"), (b"connection", b"x-other"), (b"x-secret", b"1")]
    assert sent(*headers, (b"x-other", b"2"), (b"x-kept", b"3"))[1:-1] == [(b"x-kept", b"3")]


def test_connection_cannot_take_away_what_the_gateway_sets() -> None:
    connection = (b"connection", b"host, x-request-id, content-length")
    assert sent(connection, framing=[(b"content-length", b"3")]) == [
        (b"host", b"127.0.0.1:11500"), (b"content-length", b"3"), (b"x-request-id", b"id-1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "framing"),
    [
        ([], []),
        ([(b"content-length", b"7")], [(b"content-length", b"7")]),
        ([(b"content-length", b"0")], [(b"content-length", b"0")]),
        ([(b"transfer-encoding", b"chunked")], [(b"transfer-encoding", b"chunked")]),
        ([(b"transfer-encoding", b"Chunked")], [(b"transfer-encoding", b"chunked")]),
        ([(b"content-length", b"7"), (b"transfer-encoding", b"chunked")], [(b"transfer-encoding", b"chunked")]),
    ],
)
def test_a_body_is_framed_in_one_way(headers: Headers, framing: Headers) -> None:
    assert framing_of(headers) == framing


def test_a_client_gets_the_workers_headers_but_for_those_of_the_connection() -> None:
    given_by_worker = [
        (b"content-type", b"application/json"), (b"content-length", b"7"), (b"date", b"yesterday"),
        (b"connection", b"close, X-Private"), (b"x-private", b"1"), (b"keep-alive", b"timeout=5"),
        (b"set-cookie", b"a"), (b"set-cookie", b"b"),
    ]  # fmt: skip
    assert response_headers(given_by_worker) == [
        (b"content-type", b"application/json"), (b"content-length", b"7"), (b"set-cookie", b"a"), (b"set-cookie", b"b"),
    ]  # fmt: skip


def test_a_length_beside_a_transfer_encoding_does_not_pass() -> None:
    """The body was framed by the encoding (RFC 9112, 6.3): a client that counts would wait, or be short of bytes."""
    given_by_worker = [(b"content-length", b"7"), (b"transfer-encoding", b"chunked"), (b"content-type", b"text/plain")]
    assert response_headers(given_by_worker) == [(b"content-type", b"text/plain")]


GOOD = [(b"accept", b"*/*"), (b"x-a", b"a  b\tc"), (b"x-b", b""), (b"x-c", b"\xc3\xa9"), (b"content-length", b"5")]


def test_what_http_1_has_words_for_can_be_passed_on() -> None:
    assert sendable("POST", b"/api/chat?a=%20", GOOD)


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("P T", b"/", None),
        ("", b"/", None),
        ("\u017f", b"/", None),
        ("GET", b"/a b", None),
        ("GET", b"", None),
        ("GET", b"/\r\nx: y", None),
        ("GET", b"/\xc3\xa9", None),
        ("GET", b"/", (b"", b"a")),
        ("GET", b"/", (b"a b", b"a")),
        ("GET", b"/", (b"a:", b"a")),
        ("GET", b"/", (b"a", b"b\r\nx: y")),
        ("GET", b"/", (b"a", b"\0")),
        ("GET", b"/", (b"a", b" b")),
        ("GET", b"/", (b"a", b"b\t")),
        ("GET", b"/", (b"content-length", b"5")),  # the second one
    ],
)
def test_what_only_http_2_can_frame_cannot(method: str, target: bytes, header: tuple[bytes, bytes] | None) -> None:
    assert not sendable(method, target, [*GOOD, *([header] if header else [])])


@pytest.mark.parametrize("length", [b"+5", b"1_0", b"", b"5, 5", b"9" * 19])
def test_a_length_is_a_number(length: bytes) -> None:
    assert not sendable("GET", b"/", [(b"content-length", length)])


def fresh(bits: int) -> int:
    return 7 if bits == 128 else 0


@pytest.mark.parametrize("good", [b"a", b"req-1", b"A.b_c:9", b"x" * 128, b"0af7651916cd43dd8448eb211c80319c"])
def test_a_harmless_request_id_is_kept(good: bytes) -> None:
    assert request_id_of({b"x-request-id": good}, fresh) == good.decode()


@pytest.mark.parametrize(
    "bad", [b"", b" ", b"a b", b"a\n", b"a\r\nset-cookie: x", b"x" * 129, b"\xc3\xa9", b"a;b", b'"a"', b"\x1b[31m"]
)
def test_any_other_request_id_is_replaced(bad: bytes) -> None:
    assert request_id_of({b"x-request-id": bad}, fresh) == f"{7:032x}"
    assert request_id_of({}, fresh) == f"{7:032x}"


def test_the_first_value_counts() -> None:
    assert value_of([(b"a", b"1"), (b"a", b"2")], b"a") == b"1"
    assert value_of([], b"a") is None


NAMES = st.sampled_from([b"connection", b"transfer-encoding", b"content-length", b"host", b"x-a", b"x-b", b"te"])


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"x-a", b"chunked", b"5", b"X-A, x-b", b"", b",,"])), max_size=8))
def test_there_is_always_one_host_one_id_and_at_most_one_framing(headers: Headers) -> None:
    passed = request_headers(headers, port=1, request_id="i", framing=framing_of(headers))
    names = [name for name, _ in passed]
    assert (names.count(b"host"), names.count(b"x-request-id")) == (1, 1)
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert b"connection" not in names

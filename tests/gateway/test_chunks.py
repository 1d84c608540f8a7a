"""Chunked bodies: the same data however they come, and no shape that another server might read otherwise."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chunks import LINE_BYTES, OVERHEAD_BYTES, TRAILER_BYTES, Chunks
from gateway.head import Refused


def read(handed_on: bytes) -> bytes:
    """The data of what was handed on, as the parser behind us reads it."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + handed_on)
    data = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Request | h11.Data)
        data += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert parser.trailing_data == (b"", False)
    return data


def take(body: bytes) -> tuple[bytes, bytes]:
    """What is handed on of a body that comes at once, and what is left."""
    rest = bytearray(body)
    return Chunks().take(rest), bytes(rest)


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"00000000000000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"A\r\n0123456789\r\n1\r\n\r\r\n0\r\n\r\n", b"0123456789\r"),
        (b"1;x=y\r\na\r\n1 ; x=\"y z\"\r\nb\r\n0;\r\n\r\n", b"ab"),
        (b"1\r\na\r\n0\r\nx: y\r\nz:\r\n\r\n", b"a"),
    ],
)  # fmt: skip
def test_a_body_is_handed_on_in_chunks_of_our_own(body: bytes, data: bytes) -> None:
    handed_on, rest = take(body + b"GET /next")
    assert (read(handed_on), rest) == (data, b"GET /next")
    assert b"x" not in handed_on
    assert handed_on.count(b"\r\n") == (4 if data else 2) + data.count(b"\r\n")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"\r\n", "hexadecimal"),
        (b" 5\r\n", "hexadecimal"),
        (b"5 \r\nhello\r\n", "hexadecimal"),
        (b"+5\r\nhello\r\n", "hexadecimal"),
        (b"-5\r\nhello\r\n", "hexadecimal"),
        (b"0x5\r\nhello\r\n", "hexadecimal"),
        (b"5_0\r\nhello\r\n", "hexadecimal"),
        (b"5,\r\nhello\r\n", "hexadecimal"),
        (b"five\r\n", "hexadecimal"),
        (b"5\rX\r\nhello\r\n", "hexadecimal"),
        (b"5;a\rb\r\nhello\r\n", "hexadecimal"),
        (b"5;\x00\r\nhello\r\n", "hexadecimal"),
        (b"1" + b"0" * 15 + b"\r\n", "hexadecimal"),
        (b"5\nhello\r\n", "bare line feed"),
        (b"5;x\nhello\r\n", "bare line feed"),
        (b"\n", "bare line feed"),
        (b"5" * LINE_BYTES, "longer than 256"),
        (b"5;" + b"x" * LINE_BYTES, "longer than 256"),
        (b"5\r\nhellooo", "longer than it says"),
        (b"5\r\nhello\n", "longer than it says"),
        (b"5\r\nhello\r0", "longer than it says"),
        (b"5\r\nhello0\r\n\r\n", "longer than it says"),
        (b"0\r\nx\r\n\r\n", "no header"),
        (b"0\r\n x: y\r\n\r\n", "no header"),
        (b"0\r\nx: a\rb\r\n\r\n", "no header"),
        (b"0\r\nx: y\n\r\n", "bare line feed"),
        (b"0\r\n\n", "bare line feed"),
        (b"0\r\n" + b"x: y\r\n" * (TRAILER_BYTES // 6) + b"x: y\r\n", "trailer is longer"),
        (b"1;" + b"x" * 200 + b"\r\na\r\n", ""),
    ],
)
def test_what_is_refused_is_told_why(body: bytes, sentence: str) -> None:
    if not sentence:
        body, sentence = body * (OVERHEAD_BYTES // 150), "no data"
    with pytest.raises(Refused) as caught:
        take(body)
    assert (caught.value.status, sentence in caught.value.sentence) == (400, True), caught.value.sentence


def test_extensions_of_chunks_that_carry_much_are_taken_for_ever() -> None:
    chunks = Chunks()
    chunk = b"10000;chunk-signature=" + b"0" * 64 + b"\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(OVERHEAD_BYTES // 50):
        assert len(chunks.take(bytearray(chunk))) == 0x10000 + 9


def test_a_body_of_one_byte_chunks_is_handed_on_as_one() -> None:
    handed_on, _ = take(b"1\r\nx\r\n" * 10_000)
    assert handed_on == b"2710\r\n" + b"x" * 10_000 + b"\r\n"


DATA = st.lists(st.binary(min_size=1, max_size=20), max_size=8)
EXTENSIONS = st.sampled_from([b"", b";", b";a=b", b" ;a", b'\t; a = "\xe9"'])


@given(DATA, st.data())
def test_however_it_comes_the_data_is_the_same(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(part), data.draw(EXTENSIONS), part) for part in parts)
    body += b"0\r\n" + data.draw(st.sampled_from([b"", b"x: y\r\n"])) + b"\r\n"
    after = data.draw(st.binary(max_size=10))
    chunks, rest, handed_on = Chunks(), bytearray(), b""
    left = body + after
    while left and not chunks.ended:
        length = data.draw(st.integers(1, len(left)))
        rest += left[:length]
        left = left[length:]
        handed_on += chunks.take(rest)
    assert chunks.ended
    assert (read(handed_on), bytes(rest) + left) == (b"".join(parts), after)


@given(st.lists(st.sampled_from([b"5", b"0", b"a", b";", b"\r\n", b"\r", b"\n", b" ", b"hello", b"x: y", b"\x00"])))
def test_whatever_comes_what_is_handed_on_is_whole_chunks(pieces: list[bytes]) -> None:
    chunks = Chunks()
    try:
        handed_on = chunks.take(bytearray(b"".join(pieces)))
    except Refused:
        return
    read(handed_on if chunks.ended else handed_on + b"0\r\n\r\n")

"""A chunked request body: its data, and which shapes of chunks are refused. Pure.

The chunks that are handed on are not the client's but our own, one for all the data that came together: a body of
one-byte chunks then costs no more than another, and no extension or trailer reaches a parser that is less strict.
"""

import re

from gateway.head import HEADER_LINE, Refused

# A chunk's size with its extensions.
LINE_BYTES = 256
TRAILER_BYTES = 8 * 1024
# How much of a body may be no data, beyond a little for each chunk: Go's rule (net/http/internal, CVE-2023-39326).
OVERHEAD_BYTES = 16 * 1024
_OVERHEAD_PER_CHUNK = 16

# RFC 9112, 7.1. Not one digit more than fits, no sign, no 0x, and blanks only before an extension.
_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;[\t -~\x80-\xff]*+)?")


class Chunks:
    """One chunked body, as it comes."""

    def __init__(self) -> None:
        self._read = self._size_line
        self._left = 0  # of the chunk under way
        self._overhead = 0
        self._trailer = 0
        self._data: list[bytes] = []
        self.ended = False

    def take(self, rest: bytearray) -> bytes:
        """Move from `rest` what is complete in what it says; return it as it is handed on. Raises Refused."""
        at = self._whole_chunks(rest) if self._read == self._size_line else 0
        while not self.ended and (took := self._read(rest, at)):
            at += took
        del rest[:at]
        data = b"".join(self._data)
        self._data.clear()
        handed_on = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return handed_on + b"0\r\n\r\n" if self.ended else handed_on

    def _whole_chunks(self, rest: bytearray) -> int:
        """Take the chunks that `rest` begins with, as far as they are plain and all there; return their bytes.

        The steps below would do the same, in five times the time: a body of one-byte chunks must not hold up the loop.
        """
        at = 0
        while line := _PLAIN_SIZE_LINE.match(rest, at):
            begin, size = line.end(), int(line[1], 16)
            end = begin + size
            if not size or rest[end : end + 2] != b"\r\n":
                break
            self._data.append(bytes(rest[begin:end]))
            if self._overhead:
                self._count(begin - at, size)
            at = end + 2
        return at

    def _count(self, line_bytes: int, size: int) -> None:
        self._overhead = max(0, self._overhead + line_bytes - _OVERHEAD_PER_CHUNK - 2 * size)
        if self._overhead > OVERHEAD_BYTES:
            raise Refused(400, "the chunks of the body have too much that is no data")

    # Each of these returns how many bytes it took, 0 when more must come first.

    def _size_line(self, rest: bytearray, at: int) -> int:
        line = _line(rest, at, LINE_BYTES, "the line of a chunk's size")
        if line is None:
            return 0
        size = _SIZE_LINE.fullmatch(line)
        if not size:
            raise Refused(400, "a chunk's size is no hexadecimal number of at most 15 digits")
        self._left = int(size[1], 16)
        self._count(len(line) + 2, self._left)
        self._read = self._chunk if self._left else self._trailer_line
        return len(line) + 2

    def _chunk(self, rest: bytearray, at: int) -> int:
        data = bytes(rest[at : at + self._left])
        if data:
            self._data.append(data)
        self._left -= len(data)
        if not self._left:
            self._read = self._chunk_end
        return len(data)

    def _chunk_end(self, rest: bytearray, at: int) -> int:
        end = bytes(rest[at : at + 2])
        if not b"\r\n".startswith(end):
            raise Refused(400, "a chunk is longer than it says")
        if len(end) < 2:
            return 0
        self._read = self._size_line
        return 2

    def _trailer_line(self, rest: bytearray, at: int) -> int:
        line = _line(rest, at, TRAILER_BYTES - self._trailer, "the trailer")
        if line is None:
            return 0
        self._trailer += len(line) + 2
        if line and not HEADER_LINE.fullmatch(line):
            raise Refused(400, "a line of the trailer is no header")
        self.ended = not line
        return len(line) + 2


def _line(rest: bytearray, at: int, most: int, what: str) -> bytes | None:
    """Return the line that begins at `at`, without its end; None while it is not all there. Raises Refused."""
    end = rest.find(b"\n", at, at + most)
    if end < 0:
        if len(rest) - at >= most:
            raise Refused(400, f"{what} is longer than {most} bytes")
        return None
    if end == at or rest[end - 1] != ord("\r"):
        raise Refused(400, f"{what} ends in a bare line feed")
    return bytes(rest[at : end - 1])

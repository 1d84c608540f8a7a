"""Where a client's HTTP/1.1 requests begin and end on its connection. Pure.

The parser inside Hypercorn is forgiving: it takes bare line feeds, folded lines, a length said twice, blanks after a
chunk's size, any HTTP/1.x. So a connection's bytes pass through here first, and the parser sees heads that are
complete and understood (`head`), bodies as long as their framing says (`chunks`), and not a byte of the next request
before this one is answered. What is refused ends its connection: nothing after it is ever read as a request.
"""

import re
from enum import Enum

from gateway.chunks import Chunks
from gateway.head import HEAD_BYTES, TARGET_BYTES, TOKEN, Head, Refused, understand

# The target, the method, two spaces, the version and the line's end.
REQUEST_LINE_BYTES = TARGET_BYTES + 64
# RFC 9113, 3.4: what a client sends first that knows this to be HTTP/2.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TLS_HANDSHAKE = 0x16
_FIRST_BYTE = re.compile(TOKEN)
_BARE_LF = re.compile(rb"(?<!\r)\n")


class At(Enum):
    """Where in a request the next byte belongs."""

    HEAD = "head"
    BODY = "body"
    ANSWER = "the request is complete, its answer is not"
    OTHER = "another protocol"


class Framing:
    """One connection's requests, as they come."""

    def __init__(self) -> None:
        self.at = At.HEAD
        self.head: Head | None = None  # of the last request that has begun
        self._rest = bytearray()  # what has come and cannot be handed on yet
        self._searched = 0  # so much of it has no end of a head in it
        self._chunks: Chunks | None = None
        self._left = 0  # of a body that is not chunked
        self._first = True
        self._blank = False  # whether this head had an empty line before it

    @property
    def ahead(self) -> int:
        """How many bytes have come that cannot be handed on yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        """Return what may be handed on now that `data` has come; it may be nothing, yet.

        Raises Refused; nothing that came after that may be handed on.
        """
        if self.at is At.OTHER:
            return data
        if self.at is At.BODY and len(data) < self._left:  # then nothing is ahead
            self._left -= len(data)
            return data
        if self.at is At.HEAD and not self._rest and self._comes_whole(data):
            return data
        self._rest += data
        handed_on = self._head() if self.at is At.HEAD else b""
        return handed_on + self._body() if self.at is At.BODY else handed_on

    def answered(self) -> None:
        """The answer is complete: what comes next, or has come ahead, is the next request."""
        if self.at is At.ANSWER:
            self.at = At.HEAD

    def _comes_whole(self, data: bytes) -> bool:
        """Take what is exactly one request, as nearly all are, and handed on as it came; else say that it is not."""
        if self._first or self._blank or not _FIRST_BYTE.match(data):
            return False
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        _check_lines(data, 0, end)
        head = understand(data[:end])
        if not head.plain or head.chunked or head.length != len(data) - end - 4:
            return False
        self.head, self.at = head, At.ANSWER
        return True

    def _head(self) -> bytes:
        rest = self._rest
        if self._first and rest and PREFACE.startswith(bytes(rest[: len(PREFACE)])):
            return self._preface()
        if rest[:2] == b"\r\n" and not self._blank:
            # RFC 9112, 2.2: old clients end a body with one line too many
            del rest[:2]
            self._blank = True
        if rest and rest != b"\r" and not _FIRST_BYTE.match(rest):
            tls = rest[0] == _TLS_HANDSHAKE
            raise Refused(400, "this port speaks HTTP, not HTTPS" if tls else "the request does not begin as HTTP does")
        end = rest.find(b"\r\n\r\n", max(0, self._searched - 3))
        _check_lines(rest, self._searched, end)
        if end < 0:
            self._searched = len(rest)
            return b""
        head = self.head = understand(bytes(rest[:end]))
        del rest[: end + 4]
        self._searched, self._first, self._blank = 0, False, False
        self._chunks, self._left = Chunks() if head.chunked else None, head.length
        self.at = At.BODY if head.chunked or head.length else At.ANSWER
        return head.handed_on

    def _preface(self) -> bytes:
        """HTTP/2 has a framing of its own, in which nothing can be smuggled; Hypercorn's h2 keeps its limits."""
        if len(self._rest) < len(PREFACE):
            return b""
        self.at = At.OTHER
        handed_on = bytes(self._rest)
        self._rest.clear()
        return handed_on

    def _body(self) -> bytes:
        if self._chunks:
            handed_on = self._chunks.take(self._rest)
            ended = self._chunks.ended
        else:
            handed_on = bytes(self._rest[: self._left])
            del self._rest[: self._left]
            self._left -= len(handed_on)
            ended = not self._left
        if ended:
            self.at = At.ANSWER
        return handed_on


def _check_lines(rest: bytes | bytearray, searched: int, end: int) -> None:
    """Refuse at once what no further byte can mend; `end` of the head is -1 while it is not there."""
    stop = len(rest) if end < 0 else end
    # counting is quicker than searching, and nearly every head comes in one piece
    quick = searched == 0 and rest.count(b"\n", 0, stop) == rest.count(b"\r\n", 0, stop)
    if not quick and _BARE_LF.search(rest, searched, stop):
        raise Refused(400, "a line of the head ends in a bare line feed")
    if len(rest) >= REQUEST_LINE_BYTES and rest.find(b"\r\n", 0, REQUEST_LINE_BYTES) < 0:
        raise Refused(414, f"the request line is longer than {REQUEST_LINE_BYTES} bytes")
    if (len(rest) if end < 0 else end + 4) > HEAD_BYTES:
        raise Refused(431, f"the head of the request is longer than {HEAD_BYTES} bytes")

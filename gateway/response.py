"""A worker's answer as its bytes come: where its head and its body end. Pure.

The parser is llhttp (httptools), strict as it comes: no bare line feeds, no length said twice or beside a transfer
encoding. What it leaves to its caller is here: the bound of a head, informational answers (RFC 9110, 15.2), answers
without a body or without an end of their own (RFC 9112, 6.3), and bytes after the end, which belong to no request.
"""

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.headers import Headers, value_of

HEAD_BYTES = 128 * 1024
_VERSIONS = ("1.1", "1.0")
# A chunk's size, as RFC 9112, 7.1, has it: no sign, no blank, no extension, and not so long that it could be wrong.
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")


class Malformed(Exception):
    """What came is no answer. Its text is fit for a log: it repeats nothing of what came."""


class Response:
    """One answer. `parts` is what has come of its body, to be taken; `fault` says why no more of it can come.

    `between`: all that has come is whole chunks, so that the next byte is of another one's size. A chunk that comes
    then, alone and whole (`chunk_of`), need not be fed: nothing is different after it.
    """

    __slots__ = (
        "_head_bytes", "_head_request", "_informational", "_parser", "_until_end", "between", "ended", "extra", "fault",
        "headers", "keeps", "parts", "started", "status",
    )  # fmt: skip

    def __init__(self, method: str) -> None:
        """`method` is the request's: an answer to HEAD has no body, whatever its headers say."""
        self.status = 0
        self.headers: Headers = []  # lower-case names
        self.parts: list[bytes] = []
        self.started = False  # its head is complete
        self.ended = False
        self.between = False
        self.extra = False  # something came after its end
        self.keeps = False  # the connection may be used again
        self.fault: str | None = None
        self._head_request = method == "HEAD"
        self._head_bytes = 0
        self._informational = False
        self._until_end = False
        self._parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what has come; b"" is the connection's end. What is wrong with it is then in `fault`."""
        if not data:
            self._connection_ended()
            return
        try:
            self._parser.feed_data(data)
            # a part of the next size line calls nothing yet
            self.between = self.between and data.endswith(b"\r\n")
        except (HttpParserError, HttpParserUpgrade) as error:
            # what breaks after the end breaks no answer
            self._break("it speaks no HTTP/1.1 that was asked for" if self.ended else _why(error))
            return
        if not self.started:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._break(f"the head of its answer is longer than {HEAD_BYTES} bytes")

    def take(self) -> bytes:
        """Return what has come of the body since it was last taken: parts that came together, together."""
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    def release(self) -> None:
        """Let the parser go: the two hold each other, and would wait for the garbage collector."""
        del self._parser

    def _connection_ended(self) -> None:
        if self.started and self._until_end:
            self.ended = True
        else:
            self._break("the connection was closed")

    def _break(self, why: str) -> None:
        if self.ended:
            self.extra = True
        else:
            self.fault = self.fault or why

    # -- what the parser calls -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """After the end: the beginning of an answer to nothing."""
        self.extra = self.ended

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or of a trailer, which nobody asked for."""
        if not self.started and not self.ended:
            self.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Raises Malformed for what could not be passed on."""
        if self.ended:
            return
        parser = self._parser
        status = parser.get_status_code()
        coding = value_of(self.headers, b"transfer-encoding")
        if parser.get_http_version() not in _VERSIONS or status < 100 or status == 101:
            raise Malformed("it speaks no HTTP/1.1 that was asked for")
        if coding is not None and coding.lower() != b"chunked":
            raise Malformed("its answer has a transfer encoding that nobody knows")
        self._informational = status < 200
        if self._informational:
            return
        self.status, self.started = status, True
        self.keeps = parser.should_keep_alive()
        self._until_end = coding is None and value_of(self.headers, b"content-length") is None
        self.ended = self._head_request

    def on_chunk_header(self) -> None:
        """A chunk's size has come, the last one's of nought too."""
        self.between = False

    def on_chunk_complete(self) -> None:
        """All of a chunk has, and the end of its line; of the last one, all of the answer."""
        self.between = True

    def on_body(self, data: bytes) -> None:
        """A part of it, a chunk or what has come of one."""
        if self.ended:
            self.extra = True
        else:
            self.parts.append(data)

    def on_message_complete(self) -> None:
        """Of an informational answer too: then the next one begins."""
        if self._informational:
            self.headers.clear()
        else:
            self.ended, self.between = True, False


def chunk_of(data: bytes) -> bytes:
    """Return what is in a chunk, if `data` is exactly one of RFC 9112, 7.1, b"" for anything else and the last one."""
    size = _SIZE_LINE.match(data)
    if size is None or not data.endswith(b"\r\n"):
        return b""
    body = data[size.end() : -2]
    return body if len(body) == int(size[1], 16) else b""


def _why(error: Exception) -> str:
    if isinstance(error, HttpParserUpgrade):
        return "it speaks no HTTP/1.1 that was asked for"
    if isinstance(error.__context__, Malformed):
        return str(error.__context__)
    return f"its answer is no HTTP: {error}"

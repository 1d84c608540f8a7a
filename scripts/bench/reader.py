"""Reads the answers of a load, and finds in them when each chunk was sent. Standard library only. Pure."""

import re

_STAMP = re.compile(rb"t=(\d{16});")
_DONE = (b'"done":true', b'"done": true', b"data: [DONE]", b'"finish_reason":"stop"', b'"finish_reason": "stop"')
# What is kept of a piece for a stamp that lies across two: one byte less than a stamp, so that none counts twice.
_REST_BYTES = 18
# How much of the end of an answer is searched for the mark that it is complete.
_END_BYTES = 2048


class Reader:
    """Reads one response out of a connection's bytes: is it complete, and what was in it?

    `stamps` are moments of sending, in ns. Raises ValueError for what is no response.
    """

    __slots__ = ("_end", "_left", "_rest", "_unread", "body", "stamps", "status")

    def __init__(self) -> None:
        self.status = 0
        self.stamps: list[int] = []
        self.body = False  # some of the body has come
        self._unread = b""  # of the head or of a chunk, until it is whole
        self._left: int | None = None  # of the body; None: it is chunked
        self._rest = b""
        self._end = b""

    @property
    def done(self) -> bool:
        """Whether the body says by its last words that it is all."""
        return any(mark in self._end for mark in _DONE)

    def feed(self, data: bytes) -> bool:
        """Take what has come; return whether the response has ended with it."""
        if self._unread:
            data = self._unread + data
            self._unread = b""
        if not self.status:
            stop = data.find(b"\r\n\r\n")
            if stop < 0:
                self._unread = data
                return False
            self._read_head(data[:stop].decode("latin-1"))
            data = data[stop + 4 :]
        return self._chunked(data) if self._left is None else self._counted(data)

    def _read_head(self, text: str) -> None:
        first, *lines = text.split("\r\n")
        self.status = int(first.split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" not in headers.get("transfer-encoding", ""):
            self._left = int(headers["content-length"])

    def _counted(self, data: bytes) -> bool:
        if data:
            self._look(data)
        self._left = (self._left or 0) - len(data)
        if self._left < 0:
            raise ValueError("more came than was announced")
        return self._left == 0

    def _chunked(self, data: bytes) -> bool:
        """Take framed bytes. A chunk is looked at when it has come whole."""
        at = 0
        while (stop := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:stop].partition(b";")[0], 16)
            end = stop + 2 + size
            if len(data) < end + 2:
                break
            if data[end : end + 2] != b"\r\n":
                raise ValueError("a chunk does not end where it should")
            if size == 0:
                if len(data) > end + 2:
                    raise ValueError("more came than one response")
                return True
            self._look(data[stop + 2 : end])
            at = end + 2
        self._unread = data[at:]
        return False

    def _look(self, data: bytes) -> None:
        self.body = True
        data = self._rest + data
        self.stamps += map(int, _STAMP.findall(data))
        self._rest = data[-_REST_BYTES:]
        self._end = (self._end + data)[-_END_BYTES:]

"""What has been relayed of one answer so far: how many parts, how it ends, how long its worker was waited for. Pure."""

from gateway.ollama import ERROR_BYTES
from gateway.slots import WorkerSlots


class Relayed:
    """Looks at each part as it passes. Times are trio's clock.

    `tail` is the end of what came, ERROR_BYTES of it at least. `last_at`: when the last part came. `waited_s` is how
    long the worker was waited for: for all of an answer that came at once, or from the first to the last of its
    `chunks`.
    """

    __slots__ = ("_since", "_worker", "chunks", "last_at", "tail", "waited_s")

    def __init__(self, worker: WorkerSlots | None, asked_at: float) -> None:
        """`worker`: whose answer it is, None for the primary's; `asked_at`: when it was asked."""
        self.chunks = 0
        self.tail = bytearray()
        self.waited_s = 0.0
        self.last_at: float | None = None
        self._worker = worker
        self._since = asked_at  # since when it is waited for

    def came(self, chunk: bytes, now: float) -> None:
        """A part has come."""
        self.waited_s = now - self._since + (self.waited_s if self.chunks > 1 else 0.0)
        self._since = self.last_at = now
        self.chunks += 1
        tail = self.tail
        tail += chunk
        if len(tail) > 2 * ERROR_BYTES:
            del tail[:-ERROR_BYTES]
        if self._worker is not None:
            self._worker.progress_at = now

    def waits_from(self, now: float) -> None:
        """The client has taken what came: from now on it is the worker that is waited for."""
        self._since = now

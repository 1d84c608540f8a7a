"""Notes of requests in the workers' own logs, between Ollama's lines, which name none."""

from collections.abc import Callable
from pathlib import Path

from supervisor.lines import LineWriter

# What each note has behind its time, and no line of Ollama's has.
MARK = " chimera request="


class WorkerLogNotes:
    """Notes in a worker's own log which request it was given, between Ollama's lines, which name none.

    The gateway's `WorkerNotes`. `chimera logs w1` then shows the id that the client has in X-Request-Id.
    """

    def __init__(self, log_of: Callable[[str], Path], writer: LineWriter[Path], stamp: Callable[[], str]) -> None:
        """`log_of` says where a worker's log is, `stamp` what time it is, for people."""
        self._log_of = log_of
        self._writer = writer
        self._stamp = stamp
        self._logs: dict[str, Path] = {}  # making a path takes longer than all else here

    def begins(self, worker_id: str, request_id: str, model: str | None) -> None:
        """A request is given to a worker."""
        named = f" model={_printable(model)}" if model else ""
        self._put(worker_id, f"{request_id}{named} begins")

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        """It has ended there."""
        said = f"ends status={status} outcome={outcome} after_ms={round(after_s * 1000)}"
        self._put(worker_id, f"{request_id} {said}")

    def _put(self, worker_id: str, said: str) -> None:
        log = self._logs.get(worker_id)
        if log is None:
            log = self._logs[worker_id] = self._log_of(worker_id)
        self._writer.put(log, f"{self._stamp()}{MARK}{said}")


def _printable(text: str, limit: int = 100) -> str:
    """Return a client's word as one word of printable ASCII: nobody writes lines of their own into a log."""
    cut = text[:limit]
    if cut.isascii() and cut.isprintable() and " " not in cut:
        return cut
    return cut.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")[:limit]

"""What becomes of a request: when each of its phases began, at which workers it was tried, and how it ended. Pure.

Times are trio's clock in seconds, None for what it never came to; who has a clock writes them. Writing them is all
that is done while a request runs: what is said of it (metrics, access line, spans) is made when it has ended.
"""

from typing import Final, Protocol

import msgspec

from gateway.errors import (
    ClientGone,
    ConnectFailed,
    FirstByteTimeout,
    GatewayError,
    NoWorkerWanted,
    QueueFull,
    QueueTimeout,
    RunnerDied,
    ShuttingDown,
    Stalled,
    WorkerLost,
    WorkerRefused,
)

# How a request ended, in one word. `refused`: it got no slot. `broken`: its answer began and did not come to its end,
# or ended with an error line. `cut`: Chimera went down, or its connection was closed from this side. `error`: any
# other fault that is not the client's.
OUTCOMES: Final = ("ok", "client_error", "refused", "timeout", "broken", "client_left", "cut", "error")
# How one try at a worker ended. `lost`: no connection, or gone before its first byte. `refused`: by the worker's own
# word that it cannot just now.
TRY_OUTCOMES: Final = ("ok", "client_error", "refused", "timeout", "broken", "lost", "cut", "error")
# Why a request got no slot.
REFUSALS: Final[dict[type[BaseException], str]] = {
    QueueFull: "queue_full",
    QueueTimeout: "queue_timeout",
    NoWorkerWanted: "no_worker",
    ShuttingDown: "shutting_down",
}
# What broke an answer that had begun.
BREAKS: Final = ("error_line", "no_end", "lost", "stalled")
# Where a request was when its client left.
LEFT_IN: Final = ("body", "queue", "worker", "answer")


class Try(msgspec.Struct):
    """One try at one worker: `began_at` its slot was granted, `sent_at` the request was with the worker."""

    worker_id: str
    began_at: float
    sent_at: float | None = None
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    ended_at: float | None = None
    status: int = 0
    outcome: str = "cut"  # until it has ended otherwise


class Phases(msgspec.Struct):
    """The phases of one request.

    `read_at`: its body was there. `queued_at`: it asked for a slot. `answered_at`: its answer's head went out.
    `status` 0: it got none. `stream`: the answer came in lines or events. Token counts are None where the worker said
    none. `fault` is what ended it, `broken` one of BREAKS, `outcome` one of OUTCOMES once it has ended.
    """

    read_at: float | None = None
    queued_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    tries: list[Try] = []
    model: str | None = None
    stream: bool = False
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    fault: BaseException | None = None
    broken: str | None = None
    outcome: str = ""

    @property
    def left_in(self) -> str:
        """Where it was when it ended early: one of LEFT_IN."""
        if self.answered_at is not None:
            return "answer"
        if self.queued_at is None:
            return "body" if self.read_at is None else "worker"  # the primary, or a load, without a queue
        # a try that the client's leaving ended is cut; after one that ended by itself it waits for the next
        return "worker" if self.tries and self.tries[-1].outcome == "cut" else "queue"

    @property
    def tokens_per_s(self) -> float | None:
        """How fast the answer's tokens came; None where it is not known.

        Of a stream, from its first byte to its last; else from the moment the worker had the request: then the
        time for the prompt is in it.
        """
        last = self.tries[-1] if self.tries else None
        if last is None or last.last_byte_at is None or not self.answer_tokens:
            return None
        begin = last.first_byte_at if self.stream else last.sent_at
        took_s = last.last_byte_at - begin if begin is not None else 0.0
        return self.answer_tokens / took_s if took_s > 0 else None


def outcome_of(phases: Phases) -> str:
    """Return how a request ended, from its status and its fault: one of OUTCOMES."""
    fault = phases.fault
    if fault is None and phases.broken is None:  # nearly every time
        return _of_status(phases.status)
    if phases.broken is not None:
        return "broken"
    if isinstance(fault, ClientGone):
        return "client_left"
    if fault is not None and not isinstance(fault, GatewayError):
        return "error" if isinstance(fault, Exception) else "cut"  # a bug of ours, or a cancellation
    if fault is not None and 0 < phases.status < 400:
        return "broken"  # it had begun to answer
    if isinstance(fault, tuple(REFUSALS)):
        return "refused"
    if isinstance(fault, FirstByteTimeout | Stalled):
        return "timeout"
    return _of_status(phases.status)


def _of_status(status: int) -> str:
    if status >= 500 or status == 0:
        return "error"
    return "client_error" if status >= 400 else "ok"


def try_outcome_of(tried: Try, fault: BaseException | None, broken: str | None) -> str:
    """Return how a try ended: one of TRY_OUTCOMES. `fault` is what left it, None: it came to its answer's end."""
    match fault:
        case ConnectFailed() | WorkerLost() | RunnerDied():
            return "lost"
        case WorkerRefused():
            return "refused"
        case FirstByteTimeout() | Stalled():
            return "timeout"
        case None:
            return "broken" if broken is not None else _of_status(tried.status)
        case Exception() if not isinstance(fault, ClientGone):
            return "error"
        case _:
            return "cut"


class WorkerNotes(Protocol):
    """Who notes in a worker's own log which request it was given: Ollama's lines name none. Neither call may block."""

    def begins(self, worker_id: str, request_id: str, model: str | None) -> None:
        """A request is given to a worker, or to the primary. `model` is the client's word."""

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        """It has ended there; `status` 0: without an answer. `outcome` is one of TRY_OUTCOMES."""


class Unnoted:
    """Nobody notes it."""

    def begins(self, worker_id: str, request_id: str, model: str | None) -> None:
        """Nothing to note."""

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        """Nothing to note."""


def clean(text: str, limit: int) -> str:
    """Return a text of a client's as printable ASCII of at most `limit` characters, fit for one line of a log.

    Whatever else is in it is written as an escape: line ends and terminal codes of a client's own making stay text.
    """
    cut = text[:limit]
    if not (cut.isascii() and cut.isprintable()):
        cut = cut.encode("unicode_escape").decode("ascii")[:limit]
    return cut if len(text) <= limit else f"{cut}..."

"""What can go wrong with a request, named by phase and by fault, and what the client is told. Pure.

One exhaustive match turns a fault into status, headers and sentence; one writes the sentence in the dialect of
the API that was asked (Ollama's, OpenAI's, Anthropic's), so that every client meets the errors it knows.
"""

import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from gateway.limits import Over

# Ollama's own words for its own full queue (its two spaces included): clients already know them.
BUSY = "server busy, please try again.  maximum pending requests exceeded"


class Dialect(Enum):
    """Whose form an error has."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path's API."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith("/v1/") else Dialect.OLLAMA


class GatewayError(Exception):
    """Base of the faults below; `str()` is for logs."""


class QueueFull(GatewayError):
    """The queue has no place for one more ticket."""


class QueueTimeout(GatewayError):
    """A ticket waited longer than QUEUE_TIMEOUT_S."""

    def __init__(self, waited_s: float, *, ready_workers: int) -> None:
        super().__init__(f"waited {waited_s:.0f} s, {ready_workers} workers ready")
        self.waited_s = waited_s
        self.ready_workers = ready_workers


class NoWorkerWanted(GatewayError):
    """The fleet is empty by the operator's wish: waiting would not help."""


class ShuttingDown(GatewayError):
    """Chimera is going down."""


class PrimaryAway(GatewayError):
    """The primary is not there, or went away before it answered."""


class BodyTooLarge(GatewayError):
    """A request body is larger than MAX_BODY_BYTES."""

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"more than {max_body_bytes} bytes")
        self.max_body_bytes = max_body_bytes


class BodyTooSlow(GatewayError):
    """A request body comes so slowly that its sender is taken for one that only holds the connection."""


class KeyMissing(GatewayError):
    """A request needs an API key and presents none (API_KEYS_REQUIRED)."""


class KeyUnknown(GatewayError):
    """A request needs an API key, and the one that it presents is nobody's, or revoked."""


class ModelsForbidden(GatewayError):
    """A request would change the model store, and its key may not."""


class BadPriority(GatewayError):
    """A request asks for a priority that is no number."""


class OverLimit(GatewayError):
    """A request's key has taken what it may."""

    def __init__(self, over: Over) -> None:
        super().__init__(f"over {over.quantity} {over.limit}")
        self.over = over


class Unsendable(GatewayError):
    """A request came over HTTP/2 with bytes for which HTTP/1.1, which workers speak, has no words."""


class ConnectFailed(GatewayError):
    """A worker did not take the connection. Nothing was sent to the client."""


class WorkerLost(GatewayError):
    """A worker's connection broke before its answer was complete."""


class WorkerRefused(GatewayError):
    """A worker answered that it cannot take work just now (502, 503, 504). Nothing was sent to the client."""


class RunnerDied(GatewayError):
    """A worker answered that its runner died; the worker itself starts another. Nothing was sent to the client."""


class LoadFailed(GatewayError):
    """A worker answered that it could not load the model. Nothing was sent to the client."""


class ModelLethal(GatewayError):
    """Loading the model has ended the workers that tried (gateway.lethal). It is not tried for `paused_s`."""

    def __init__(self, paused_s: float) -> None:
        super().__init__(f"not tried for {paused_s:.0f} s")
        self.paused_s = paused_s


class FirstByteTimeout(GatewayError):
    """A worker gave no first byte within FIRST_BYTE_TIMEOUT_S."""

    def __init__(self, silent_s: float) -> None:
        super().__init__(f"no first byte after {silent_s:g} s")
        self.silent_s = silent_s


class Stalled(GatewayError):
    """A worker fell silent within its answer for STALL_TIMEOUT_S."""

    def __init__(self, silent_s: float) -> None:
        super().__init__(f"silent for {silent_s:g} s")
        self.silent_s = silent_s


class ClientGone(GatewayError):
    """The client left; there is nobody to tell."""


KeyFault = KeyMissing | KeyUnknown | ModelsForbidden | BadPriority | OverLimit
Fault = (
    QueueFull | QueueTimeout | NoWorkerWanted | ShuttingDown | PrimaryAway | BodyTooLarge | BodyTooSlow | Unsendable
    | KeyFault
    | ConnectFailed | WorkerLost | WorkerRefused | LoadFailed | RunnerDied | ModelLethal | FirstByteTimeout
    | Stalled
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told of a fault: `retry_after_s` None means that trying again is no use by itself."""

    status: int
    sentence: str
    retry_after_s: int | None = None


# As many clients are connected as there may be, and none of them is idle.
NO_PLACE = Told(503, "too many connections are open, and none of them is idle (MAX_CONNECTIONS)", 1)


def told(fault: Fault) -> Told:  # noqa: C901 - one case each
    """Return what the client is told."""
    match fault:
        case QueueFull():
            return Told(503, BUSY, 1)
        case QueueTimeout(ready_workers=0):
            return Told(503, f"no worker was ready within {fault.waited_s:.0f} s (QUEUE_TIMEOUT_S)", 5)
        case QueueTimeout():
            return Told(503, f"no slot became free within {fault.waited_s:.0f} s (QUEUE_TIMEOUT_S)", 5)
        case NoWorkerWanted():
            return Told(503, "the fleet has no workers; spawn one (chimera spawn)", 30)
        case ShuttingDown():
            return Told(503, "the server is shutting down", 5)
        case PrimaryAway():
            return Told(503, "the primary ollama server is not ready", 2)
        case BodyTooLarge():
            return Told(413, f"the request body is larger than {fault.max_body_bytes} bytes (MAX_BODY_BYTES)")
        case BodyTooSlow():
            return Told(408, "the request body comes too slowly, or not at all")
        case Unsendable():
            return Told(400, "the request has bytes in its path or headers that HTTP/1.1 does not allow there")
        case KeyMissing() | KeyUnknown() | ModelsForbidden() | BadPriority() | OverLimit():
            return _told_of_key(fault)
        case ConnectFailed() | WorkerLost() | WorkerRefused() | LoadFailed() | RunnerDied():
            return Told(502, "the worker was lost before it answered, and so were the others that were tried", 1)
        case ModelLethal():
            said = "workers ended while they loaded this model; it is tried again later (see chimera logs)"
            return Told(503, said, math.ceil(fault.paused_s))
        case FirstByteTimeout():
            return Told(504, "the worker gave no first byte in time (FIRST_BYTE_TIMEOUT_S)")
        case Stalled():
            return Told(504, "the worker fell silent within its answer (STALL_TIMEOUT_S)")
        case _:
            assert_never(fault)


def _told_of_key(fault: KeyFault) -> Told:
    match fault:
        case KeyMissing():
            return Told(401, "an API key is needed (Authorization: Bearer KEY, or x-api-key: KEY)")
        case KeyUnknown():
            return Told(401, "this API key is not known here, or was revoked")
        case ModelsForbidden():
            return Told(403, "this API key may not change the model store")
        case BadPriority():
            return Told(400, "X-Chimera-Priority must be a whole number, 0 to 9")
        case OverLimit():
            return Told(429, _over(fault.over), max(1, math.ceil(fault.over.wait_s)))
        case _:
            assert_never(fault)


def _over(over: Over) -> str:
    match over.quantity:
        case "concurrency":
            return f"over this API key's limit of requests at the same time ({over.limit})"
        case "requests":
            return f"over this API key's limit of requests a minute ({over.limit})"
        case "tokens":
            return f"over this API key's limit of tokens a minute ({over.limit})"
        case _:
            assert_never(over.quantity)


def error_headers(said: Told) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error answer, but for its length."""
    headers = [(b"content-type", b"application/json; charset=utf-8")]
    if said.retry_after_s is not None:
        headers.append((b"retry-after", str(said.retry_after_s).encode()))
    if said.status == 401:  # RFC 9110, 11.6.1
        headers.append((b"www-authenticate", b'Bearer realm="chimera"'))
    if said.status in (400, 408):  # who knows where the next request on that connection would begin (RFC 9112, 6.1)
        headers.append((b"connection", b"close"))
    return headers


def error_body(dialect: Dialect, status: int, sentence: str) -> bytes:
    """Return an error as the dialect's clients expect it."""
    return json.dumps(_error(dialect, status, sentence)).encode()


def error_event(dialect: Dialect, sentence: str, *, sse: bool, mid_line: bool) -> bytes:
    """Return what ends a broken stream, so that it never looks complete.

    A line or an event of its own: `mid_line` says that what was sent before did not end with one.
    """
    body = json.dumps(_error(dialect, 502, sentence)).encode()
    if not sse:
        return (b"\n" if mid_line else b"") + body + b"\n"
    event = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return (b"\n\n" if mid_line else b"") + event + b"data: " + body + b"\n\n"


def _error(dialect: Dialect, status: int, sentence: str) -> dict[str, object]:
    match dialect:
        case Dialect.OLLAMA:
            return {"error": sentence}
        case Dialect.OPENAI:
            kinds = {400: "invalid_request_error", 401: "invalid_request_error", 403: "invalid_request_error",
                     404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip
            codes = {401: "invalid_api_key", 403: "insufficient_permissions", 429: "rate_limit_exceeded"}
            kind, code = kinds.get(status, "api_error"), codes.get(status)
            return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}
        case Dialect.ANTHROPIC:
            kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                     404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
                     503: "overloaded_error"}  # fmt: skip
            return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": sentence}}
        case _:
            assert_never(dialect)

"""Two requests for the same pull become one: the clients of a model share one pull of the primary.

Ollama merges the downloads of two pulls of one model by itself, but checks and writes twice; and a client that came
first and left must not end the pull of one that came later. A pull goes on as long as one of its clients is there.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
import trio

from gateway.errors import (
    ConnectFailed,
    Fault,
    FirstByteTimeout,
    GatewayError,
    PrimaryAway,
    ShuttingDown,
    Stalled,
    WorkerLost,
    error_event,
)
from gateway.exchange import PRIMARY, Exchange
from gateway.headers import Headers, request_headers, response_headers
from gateway.ollama import PullAsk, read_pull
from gateway.request import Reply, Request, own_headers
from gateway.upstream import Answer

log = structlog.get_logger("gateway")

# A pull's body is a name and a few words; what is longer is passed on unread.
BODY_BYTES = 64 * 1024
# What is kept of a pull for a client that comes late: the newest line of each of so many layers and phases.
KEPT_LINES = 256
LINE_BYTES = 64 * 1024
REFUSAL_BYTES = 64 * 1024

LOST = "the primary ollama server was lost before the pull was complete"
SILENT = "the primary ollama server fell silent within the pull"


class _Line(msgspec.Struct):
    """What is read of a status line."""

    status: Any = None
    digest: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True, eq=False)
class Pull:
    """One pull of the primary. Written by its task, read by its clients.

    `head` is set with the answer's. `lines` are the newest of each phase and layer, by age, each with its number:
    progress that a client was too slow for is passed over, never a phase, never the last line. `refusal` is the body
    of an answer that is no stream, `fault` what ended the pull before its end, `ended` that the primary ended it.
    """

    wanted: PullAsk
    request_id: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    clients: int = 0
    head: tuple[int, Headers] | None = None
    lines: dict[object, tuple[int, bytes]] = field(default_factory=dict)
    told: int = 0
    last: bytes = b'{"error":"unexpected end of progress response"}'  # Ollama's words for an answer without a last line
    succeeded: bool = False
    ended: bool = False
    refusal: bytes | None = None
    fault: Fault | None = None
    over: bool = False
    news: trio.Event = field(default_factory=trio.Event)

    def take(self, line: bytes) -> None:
        """Take a line that came, its line end included."""
        try:
            said = _decoder.decode(line)
            key: object = (str(said.status), str(said.digest)) if said.error is None else "error"
        except (msgspec.DecodeError, UnicodeDecodeError):
            said, key = _Line(), "odd"
        self.succeeded = said.status == "success" and said.error is None
        self.told += 1
        if said.error is not None or self.succeeded:
            self.last = line
        self.lines.pop(key, None)
        self.lines[key] = (self.told, line)
        if len(self.lines) > KEPT_LINES:
            del self.lines[next(iter(self.lines))]

    def tell(self) -> None:
        """Wake its clients."""
        self.news.set()
        self.news = trio.Event()


class Pulls:
    """The pulls in progress."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._pulls: dict[PullAsk, Pull] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the pulls' tasks. Cancellation ends every pull; the primary goes on from there next time."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def answer(self, request: Request, body: bytes, reply: Reply) -> None:
        """Answer a POST /api/pull, with the pull of the same model that is in progress where there is one.

        One that is out of the ordinary goes to the primary unchanged. Raises PrimaryAway, FirstByteTimeout, Stalled
        and ShuttingDown while nothing has been sent. Cancellation leaves the pull to its other clients; without any it
        ends.
        """
        read = read_pull(body)
        if read is None or self._nursery is None:
            await self._exchange.to_primary(request, body, reply)
            return
        wanted, stream = read
        pull = self._pulls.get(wanted)
        if pull is None:
            pull = self._pulls[wanted] = Pull(wanted, request.id)
            self._nursery.start_soon(self._carry_out, pull)
        else:
            log.info("pull joined", request=request.id, model=wanted.model, pull=pull.request_id)
        request.attempts, request.worker_id = request.attempts + 1, PRIMARY
        pull.clients += 1
        try:
            await (_follow if stream else _wait)(request, pull, reply)
        finally:
            pull.clients -= 1
            if not pull.clients:
                self._forget(pull)
                pull.scope.cancel()

    def _forget(self, pull: Pull) -> None:
        if self._pulls.get(pull.wanted) is pull:
            del self._pulls[pull.wanted]

    async def _carry_out(self, pull: Pull) -> None:
        try:
            with pull.scope:
                await self._pull(pull)
        except (ConnectFailed, WorkerLost, FirstByteTimeout, Stalled) as fault:
            pull.fault = fault if isinstance(fault, FirstByteTimeout | Stalled) else PrimaryAway(str(fault))
            log.warning("pull broken", model=pull.wanted.model, cause=str(fault))
        finally:
            # from here on the next request for it is a new pull
            self._forget(pull)
            if pull.fault is None and not pull.ended:
                pull.fault = ShuttingDown()
            pull.over = True
            pull.tell()

    async def _pull(self, pull: Pull) -> None:
        port = self._exchange.primary_port
        body = msgspec.json.encode({"model": pull.wanted.model, "insecure": pull.wanted.insecure, "stream": True})
        framing: Headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers = request_headers([], port=port, request_id=pull.request_id, framing=framing)
        async with self._exchange.upstream.exchange(port, "POST", b"/api/pull", headers, body) as answer:
            if answer.status != 200:
                refusal = await _whole(answer)
                pull.head, pull.refusal = (answer.status, response_headers(answer.headers)), refusal
                pull.ended = True
                return
            rest = b""
            while part := await answer.read():
                pull.head = (answer.status, response_headers(answer.headers))
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    pull.take(line + b"\n")
                pull.tell()
                if len(rest) > LINE_BYTES:
                    raise WorkerLost(f"a line of more than {LINE_BYTES} bytes")
            if rest:
                pull.take(rest + b"\n")
            pull.ended = True


async def _whole(answer: Answer) -> bytes:
    body = b""
    while part := await answer.read():
        body += part
        if len(body) > REFUSAL_BYTES:
            raise WorkerLost(f"a refusal of more than {REFUSAL_BYTES} bytes")
    return body


async def _follow(request: Request, pull: Pull, reply: Reply) -> None:
    """Answer with the lines: what is known at once, then each as it comes."""
    seen = 0
    while True:
        news = pull.news
        if pull.head is not None and (pull.lines or pull.over) and pull.refusal is None and not reply.started:
            await reply.start(pull.head[0], [*pull.head[1], *own_headers(request)])
        fresh = [(number, line) for number, line in pull.lines.values() if number > seen]
        if fresh and reply.started:
            seen = fresh[-1][0]
            await reply.write(b"".join(line for _, line in fresh))
        elif pull.over:
            break
        else:
            await news.wait()
    if not reply.started:
        await _refuse(request, pull, reply)
        return
    if pull.fault is not None:
        sentence = SILENT if isinstance(pull.fault, Stalled) else LOST
        await reply.write(error_event(request.dialect, sentence, sse=False, mid_line=False))
    await reply.end()


async def _wait(request: Request, pull: Pull, reply: Reply) -> None:
    """Answer with how it ended, as Ollama does without a stream: the last line, its error with status 500."""
    while not pull.over:
        await pull.news.wait()
    if pull.fault is not None or pull.refusal is not None:
        await _refuse(request, pull, reply)
        return
    await _send(request, reply, 200 if pull.succeeded else 500, _JSON, pull.last.strip())


_JSON: Headers = [(b"content-type", b"application/json; charset=utf-8")]


async def _refuse(request: Request, pull: Pull, reply: Reply) -> None:
    """Answer with the primary's own refusal, or raise what came in its place."""
    if pull.fault is not None or pull.head is None or pull.refusal is None:
        fault: GatewayError = pull.fault or PrimaryAway("the pull was not begun")
        raise fault.with_traceback(None)  # every client raises it
    status, headers = pull.head
    passed = [pair for pair in headers if pair[0] != b"content-length"]
    await _send(request, reply, status, passed, pull.refusal)


async def _send(request: Request, reply: Reply, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await reply.start(status, [*headers, length, *own_headers(request)])
    if body:
        await reply.write(body)
    await reply.end()

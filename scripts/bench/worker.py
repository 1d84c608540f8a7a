#!/usr/bin/env -S python3 -IS
"""A worker of known speed: answers as `ollama serve` does, at the pace that the request itself asks for.

    worker.py serve        listens on OLLAMA_HOST, ends on SIGTERM with 0

A prompt (of /api/chat and /v1/chat/completions: the last message) says in its words what the answer is to be, in any
order and among others: `chunks=200 rate=50 size=20 first_s=0.5`. See `Answer`. Each chunk's text begins with the
moment at which it was sent, `t=0000123456789012;` (nanoseconds of the machine's monotonic clock), so that who reads it
can tell what the way here took, through whatever has unpacked and packed it. Each answer says in the header
`X-Bench-Worker` on which port it was made.

From the environment, as Ollama has it: OLLAMA_HOST, OLLAMA_NUM_PARALLEL (answers at once of each loaded model, others
wait), OLLAMA_MAX_LOADED_MODELS (0: any number). And of its own:

    BENCH_MODELS   models that are in the store, separated by commas: bench
    BENCH_LOADED   which of them are loaded at the start: bench
    BENCH_LOAD_S   how long a load takes: 0
    BENCH_SPEEDS   how fast workers are, 1 as asked for: "1,0.25" makes the second, the fourth, … four times slower
    BENCH_PORT_BASE   the port of the first worker, to count from

Standard library only, one file, one thread and one epoll loop: what it costs must not hide what is measured.
"""

import heapq
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

VERSION = "0.5.4"
MODEL_BYTES = 253_000_000
STAMP = b"t=%016d;"
STAMP_BYTES = 19
# What may wait in memory for a client that does not read, as the pipe of a real one; then the answer stands still.
_MOST_UNSENT_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_DATE = "2026-01-01T00:00:00.000000Z"
_JSON, _LINES, _EVENTS = "application/json; charset=utf-8", "application/x-ndjson", "text/event-stream"


# --- What is asked for


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer is to be.

    `chunks` pieces of `size` bytes of text each (no less than a stamp), `rate` of them a second (0: as fast as they
    are taken), the first after `first_s` seconds. Not streamed, it is all of that in one piece, in the same time.
    """

    chunks: int = 1
    rate: float = 0.0
    size: int = STAMP_BYTES
    first_s: float = 0.0

    def prompt(self, tag: str = "") -> str:
        """Return a prompt that asks for this answer; `tag` comes first and tells it from others."""
        return f"{tag} chunks={self.chunks} rate={self.rate:g} size={self.size} first_s={self.first_s:g}".lstrip()

    @property
    def seconds(self) -> float:
        """How long it takes at speed 1, without waiting."""
        return self.first_s + ((self.chunks - 1) / self.rate if self.rate else 0.0)


def read_answer(prompt: str) -> Answer:
    """Return what a prompt asks for; the default where it says nothing that can be read."""
    said = dict(word.split("=", 1) for word in prompt.split() if "=" in word)
    try:
        return Answer(
            max(1, int(said.get("chunks", 1))),
            max(0.0, float(said.get("rate", 0))),
            max(STAMP_BYTES, int(said.get("size", STAMP_BYTES))),
            max(0.0, float(said.get("first_s", 0))),
        )
    except ValueError:
        return Answer()


def full_name(name: str) -> str:
    """Return a model's name with its tag."""
    return name if ":" in name else f"{name}:latest"


def speed_of(port: int, speeds: str, base: int) -> float:
    """Return how fast the worker on `port` is, of BENCH_SPEEDS and BENCH_PORT_BASE."""
    factors = [float(text) for text in speeds.split(",") if text]
    return factors[(port - base) % len(factors)] if factors else 1.0


# --- Who is answered now


@dataclass(eq=False, slots=True)
class Job:
    """One request that is to be answered. `due_s`: when its next chunk is to go out."""

    client: "Client"
    model: str
    answer: Answer
    stream: bool
    path: str
    left: int = 0
    due_s: float = 0.0
    begin: bytes = b""
    end: bytes = b""

    def __lt__(self, other: "Job") -> bool:
        return self.due_s < other.due_s


@dataclass(slots=True)
class Runner:
    """A loaded model (or one that is being loaded, until `ready_s`)."""

    ready_s: float
    used_s: float = 0.0
    active: set[Job] = field(default_factory=set)
    waiting: deque[Job] = field(default_factory=deque)

    def idle(self, now: float) -> bool:
        """Say whether it may be unloaded."""
        return not self.active and not self.waiting and self.ready_s <= now


class Scheduler:
    """Which jobs run, as Ollama decides it. Pure: `now` in seconds is handed in.

    All requests stand in one line. Its head goes to its model's runner, and waits there for one of `slots`. If its
    model is not loaded, it is loaded, which takes `load_s`; where there is no room (`most_loaded`, 0: any number) the
    idle model that was used longest ago goes. While none is idle the head waits, and with it the line.
    """

    def __init__(self, slots: int, most_loaded: int = 0, load_s: float = 0.0) -> None:
        self.slots, self.most_loaded, self.load_s = slots, most_loaded, load_s
        self.line: deque[Job] = deque()
        self.runners: dict[str, Runner] = {}
        self.loads = 0

    def advance(self, now: float) -> list[Job]:
        """Return the jobs that begin now."""
        while self.line and (runner := self._runner(self.line[0].model, now)) is not None:
            runner.waiting.append(self.line.popleft())
        begun: list[Job] = []
        for runner in self.runners.values():
            while runner.waiting and runner.ready_s <= now and len(runner.active) < self.slots:
                job = runner.waiting.popleft()
                runner.active.add(job)
                runner.used_s = now
                begun.append(job)
        return begun

    def ended(self, job: Job, now: float) -> None:
        """Take out a job that has been answered, or whose client has gone, wherever it stands."""
        runner = self.runners.get(job.model)
        if runner is not None and job in runner.active:
            runner.active.discard(job)
            runner.used_s = now
        elif runner is not None and job in runner.waiting:
            runner.waiting.remove(job)
        elif job in self.line:
            self.line.remove(job)

    def load(self, model: str) -> None:
        """Have a model loaded from the start."""
        self.runners[model] = Runner(0.0)

    def unload(self, model: str, now: float) -> None:
        """Unload a model if it is idle."""
        if model in self.runners and self.runners[model].idle(now):
            del self.runners[model]

    def wake_s(self, now: float) -> float | None:
        """Return when the next load ends, None: none is under way."""
        return min((runner.ready_s for runner in self.runners.values() if runner.ready_s > now), default=None)

    def _runner(self, model: str, now: float) -> Runner | None:
        if model in self.runners:
            return self.runners[model]
        if self.most_loaded and len(self.runners) >= self.most_loaded:
            idle = [name for name, runner in self.runners.items() if runner.idle(now)]
            if not idle:
                return None
            del self.runners[min(idle, key=lambda name: self.runners[name].used_s)]
        self.loads += 1
        runner = self.runners[model] = Runner(now + self.load_s)
        return runner


# --- How an answer looks


def head(status: int, kind: str, length: int | None, port: int) -> bytes:
    """Return the head of a response; `length` None: it comes in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    reason = {200: "OK", 404: "Not Found"}.get(status, "Error")
    return (f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nX-Bench-Worker: {port}\r\n"
            f"{framing}\r\n\r\n").encode()  # fmt: skip


def frame(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def around(path: str, model: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the text in a streamed piece."""
    name = json.dumps(model)
    if path == "/v1/chat/completions":
        begin = f'data: {{"id":"bench","object":"chat.completion.chunk","created":1,"model":{name},"choices":['
        begin += '{"index":0,"delta":{"role":"assistant","content":"'
        return begin.encode(), b'"},"finish_reason":null}]}\n\n'
    begin = f'{{"model":{name},"created_at":"{_DATE}",'
    if path == "/api/chat":
        return f'{begin}"message":{{"role":"assistant","content":"'.encode(), b'"},"done":false}\n'
    return f'{begin}"response":"'.encode(), b'","done":false}\n'


def whole(path: str, model: str, text: str, answer: Answer) -> Json:
    """Return an answer that is not streamed, or, without text, the last line of one that is."""
    if path == "/v1/chat/completions":
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": answer.chunks, "total_tokens": 9 + answer.chunks}
        return {"id": "bench", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
                "usage": usage}  # fmt: skip
    said: Json = {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
    took = int(answer.seconds * 1e9)
    return {"model": model, "created_at": _DATE, **said, "done": True, "done_reason": "stop", "total_duration": took,
            "load_duration": 0, "prompt_eval_count": 9, "prompt_eval_duration": 1, "eval_count": answer.chunks,
            "eval_duration": max(1, took)}  # fmt: skip


def end_of_stream(path: str, model: str, answer: Answer) -> bytes:
    """Return what ends a stream, framed."""
    if path == "/v1/chat/completions":
        last = {"id": "bench", "object": "chat.completion.chunk", "created": 1, "model": model,
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}  # fmt: skip
        data = b"data: %s\n\ndata: [DONE]\n\n" % _json(last)
    else:
        data = _json(whole(path, model, "", answer)) + b"\n"
    return frame(data) + b"0\r\n\r\n"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- The server


@dataclass(eq=False, slots=True)
class Client:
    """One connection: what has come, what has not gone yet, the job it waits for."""

    sock: socket.socket
    came: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    job: Job | None = None
    gone: bool = False
    # what goes on once everything has been sent
    held: Job | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has come in whole."""

    method: str
    path: str
    body: bytes


def take_request(came: bytearray) -> Request | None:
    """Take the next request out of what has come, None: it is not whole yet. Raises ValueError for what is none."""
    stop = came.find(b"\r\n\r\n")
    if stop < 0:
        return None
    first, *lines = bytes(came[:stop]).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    start = stop + 4
    if headers.get("transfer-encoding", "").lower() == "chunked":
        found = _dechunked(came, start)
        if found is None:
            return None
        body, end = found
    else:
        end = start + int(headers.get("content-length", 0))
        if len(came) < end:
            return None
        body = bytes(came[start:end])
    del came[:end]
    return Request(method, target.partition("?")[0], body)


def _dechunked(came: bytearray, at: int) -> tuple[bytes, int] | None:
    """Return a chunked body without trailers and where it ends, None: it is not whole yet."""
    parts: list[bytes] = []
    while (stop := came.find(b"\r\n", at)) >= 0:
        size = int(bytes(came[at:stop]).partition(b";")[0], 16)
        end = stop + 2 + size + 2
        if len(came) < end:
            return None
        parts.append(bytes(came[stop + 2 : stop + 2 + size]))
        at = end
        if size == 0:
            return b"".join(parts), at
    return None


class Server:
    """One `serve`: its connections, its jobs, its loop."""

    def __init__(self, host: str, port: int, environ: Mapping[str, str]) -> None:
        self.port = port
        self.speed = speed_of(port, environ.get("BENCH_SPEEDS", ""), int(environ.get("BENCH_PORT_BASE") or port))
        self.models = [full_name(name) for name in (environ.get("BENCH_MODELS") or "bench").split(",")]
        self.jobs = Scheduler(
            int(environ.get("OLLAMA_NUM_PARALLEL") or 4),
            int(environ.get("OLLAMA_MAX_LOADED_MODELS") or 0),
            float(environ.get("BENCH_LOAD_S") or 0),
        )
        for name in environ.get("BENCH_LOADED", "bench").split(","):
            if name:
                self.jobs.load(full_name(name))
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server((host, port), backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.heap: list[Job] = []
        self.eager: deque[Job] = deque()  # as fast as they are taken
        self.loaded_s: float | None = None  # when the next load ends

    def run(self) -> None:
        """Serve until a signal ends the process."""
        while True:
            for key, mask in self.selector.select(self._pause_s()):
                key.data(mask)
            now = time.monotonic()
            if self.loaded_s is not None and self.loaded_s <= now:
                self._begin()
            while self.heap and self.heap[0].due_s <= now:
                self._step(heapq.heappop(self.heap), now)
            for _ in range(len(self.eager)):
                self._step(self.eager.popleft(), now)

    def _pause_s(self) -> float | None:
        if self.eager:
            return 0
        next_s = [moment for moment in (self.heap[0].due_s if self.heap else None, self.loaded_s) if moment]
        return max(0.0, min(next_s) - time.monotonic()) if next_s else None

    # Connections

    def _accept(self, _: int) -> None:
        for _ in range(64):
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(sock)
            self.selector.register(sock, selectors.EVENT_READ, self._ready(client))

    def _ready(self, client: Client) -> Callable[[int], None]:
        def ready(mask: int) -> None:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ and not client.gone:
                self._read(client)

        return ready

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(client)
            return
        client.came += data
        self._next(client)

    def _next(self, client: Client) -> None:
        """Answer what has come whole; a request behind one that is being answered waits."""
        while client.job is None and not client.gone:
            try:
                request = take_request(client.came)
            except ValueError:
                self._close(client)
                return
            if request is None:
                return
            self._answer(client, request)

    def _close(self, client: Client) -> None:
        client.gone = True
        self.selector.unregister(client.sock)
        client.sock.close()
        if client.job is not None:
            self._ended(client)

    def _send(self, client: Client, data: bytes) -> None:
        if client.gone:
            return
        if not client.unsent:
            try:
                sent = client.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(client)
                return
            if sent == len(data):
                return
            data = data[sent:]
            self.selector.modify(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready(client))
        client.unsent += data

    def _flush(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        del client.unsent[:sent]
        if not client.unsent:
            self.selector.modify(client.sock, selectors.EVENT_READ, self._ready(client))
        if client.held is not None and len(client.unsent) < _MOST_UNSENT_BYTES:
            job, client.held = client.held, None
            self._put(job)

    # Answers

    def _answer(self, client: Client, request: Request) -> None:
        if request.path in ("/api/generate", "/api/chat", "/v1/chat/completions") and request.method == "POST":
            self._infer(client, request)
            return
        status, body = self._plain(request)
        kind = _JSON if isinstance(body, dict) else "text/plain; charset=utf-8"
        data = _json(body) if isinstance(body, dict) else body
        top = head(status, kind, len(data), self.port)
        self._send(client, top if request.method == "HEAD" else top + data)

    def _plain(self, request: Request) -> tuple[int, Json | bytes]:
        details: Json = {"format": "gguf", "family": "bench", "families": ["bench"], "parameter_size": "1M"}
        match request.path:
            case "/":
                return 200, b"Ollama is running"
            case "/api/version":
                return 200, {"version": VERSION}
            case "/api/tags":
                rows = [{"name": name, "model": name, "modified_at": _DATE, "size": MODEL_BYTES, "digest": "0" * 64,
                         "details": details} for name in self.models]  # fmt: skip
                return 200, {"models": rows}
            case "/api/ps":
                now = time.monotonic()
                rows = [{"name": name, "model": name, "size": MODEL_BYTES, "size_vram": 0, "digest": "0" * 64,
                         "details": details, "expires_at": "2099-01-01T00:00:00Z"}
                        for name, runner in self.jobs.runners.items() if runner.ready_s <= now]  # fmt: skip
                return 200, {"models": rows}
            case "/api/show":
                return 200, {"details": details, "model_info": {}, "capabilities": ["completion"]}
            case "/v1/models":
                return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            case "/bench/loads":
                return 200, {"loads": self.jobs.loads}
        return 404, {"error": f"no {request.path} here"}

    def _infer(self, client: Client, request: Request) -> None:
        try:
            body: Json = json.loads(request.body)
            model = full_name(str(body.get("model") or ""))
            messages = body.get("messages") or []
            prompt = str(messages[-1].get("content") if messages else body.get("prompt") or "")
        except (ValueError, AttributeError, TypeError):
            self._send(client, head(400, _JSON, 17, self.port) + b'{"error":"what?"}')
            return
        if model not in self.models:
            data = _json({"error": f'model "{model}" not found, try pulling it first'})
            self._send(client, head(404, _JSON, len(data), self.port) + data)
            return
        stream = bool(body.get("stream", request.path != "/v1/chat/completions"))
        job = Job(client, model, read_answer(prompt), stream and bool(prompt), request.path)
        if not prompt and body.get("keep_alive") == 0:
            self.jobs.unload(model, time.monotonic())
            data = _json(whole(request.path, model, "", job.answer))
            self._send(client, head(200, _JSON, len(data), self.port) + data)
            return
        client.job = job
        self.jobs.line.append(job)
        self._begin()

    def _begin(self) -> None:
        now = time.monotonic()
        begun = self.jobs.advance(now)
        self.loaded_s = self.jobs.wake_s(now)
        for job in begun:
            answer = job.answer
            job.left = answer.chunks if job.stream else 1
            job.due_s = now + (answer.first_s if job.stream else answer.seconds) / self.speed
            if job.stream:
                begin, end = around(job.path, job.model)
                size = len(begin) + answer.size + len(end)
                job.begin = b"%x\r\n%s" % (size, begin)
                job.end = b"x" * (answer.size - STAMP_BYTES) + end + b"\r\n"
            self._put(job)

    def _put(self, job: Job) -> None:
        """Have the next chunk of a job go out at its time."""
        if job.due_s <= 0.0:
            self.eager.append(job)
        else:
            heapq.heappush(self.heap, job)

    def _step(self, job: Job, now: float) -> None:
        """Send the next chunk, or the whole of an answer that is not streamed."""
        client = job.client
        if client.gone or client.job is not job:
            return
        if len(client.unsent) >= _MOST_UNSENT_BYTES:
            client.held = job
            return
        answer = job.answer
        stamp = STAMP % time.monotonic_ns()
        if not job.stream:
            text = (stamp + b"x" * (answer.size * answer.chunks - STAMP_BYTES)).decode()
            data = _json(whole(job.path, job.model, text, answer))
            self._send(client, head(200, _JSON, len(data), self.port) + data)
        else:
            data = job.begin + stamp + job.end
            if job.left == answer.chunks:
                kind = _EVENTS if job.path.startswith("/v1") else _LINES
                data = head(200, kind, None, self.port) + data
            self._send(client, data)
        job.left -= 1
        if client.job is not job:  # it has gone meanwhile
            return
        if job.left > 0:
            job.due_s = job.due_s + 1 / (answer.rate * self.speed) if answer.rate else 0.0
            self._put(job)
            return
        if job.stream:
            self._send(client, end_of_stream(job.path, job.model, answer))
        if client.job is job:
            self._ended(client)
            self._next(client)

    def _ended(self, client: Client) -> None:
        job, client.job, client.held = client.job, None, None
        if job is not None:
            self.jobs.ended(job, time.monotonic())
            self._begin()


def main(argv: list[str]) -> int:
    """Serve; other commands of Ollama's are not known here."""
    if argv != ["serve"]:
        print(f"{sys.argv[0]}: only `serve`", file=sys.stderr)
        return 2
    host, _, port = (os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434").rpartition(":")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    try:
        server = Server(host, int(port), os.environ)
    except OSError as error:
        print(f"Error: listen tcp {host}:{port}: {error}", file=sys.stderr)
        return 1
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

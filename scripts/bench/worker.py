#!/usr/bin/env -S python3 -IS
"""A worker of known speed: answers as `ollama serve` does, at the pace that the request itself asks for.

    worker.py serve        listens on OLLAMA_HOST, ends on SIGTERM with 0

A prompt (of /api/chat and /v1/chat/completions: the last message) says in its words what the answer is to be, in any
order and among others: `chunks=200 rate=50 size=20 first_s=0.5`. See `Answer`. Each chunk's text begins with the
moment at which it was sent, `t=0000123456789012;` (nanoseconds of the machine's monotonic clock), so that who reads it
can tell what the way here took, through whatever has unpacked and packed it. Each answer says in the header
`X-Bench-Worker` on which port it was made. `/bench` says how many requests are under way, and how often a model was
loaded.

From the environment, as Ollama has it: OLLAMA_HOST, OLLAMA_NUM_PARALLEL (answers at once of each loaded model, others
wait), OLLAMA_MAX_LOADED_MODELS (0: any number). And of its own:

    BENCH_MODELS   models that are in the store, separated by commas: bench
    BENCH_LOADED   which of them are loaded at the start: bench
    BENCH_LOAD_S   how long a load takes: 0
    BENCH_SPEEDS   how fast workers are, 1 as asked for: "1,0.25" makes the second, the fourth, … four times slower
    BENCH_PORT_BASE   the port of the first worker, to count from

Standard library only, one thread and one epoll loop: what it costs must not hide what is measured. It is run as a file,
outside the project's environment; its parts are `answers`, `jobs`, `worker_http` and `worker_connections` beside it.
"""

import heapq
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

# Run as a file, and isolated (-I): Python looks nowhere but in its own library.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.answers import (
    STAMP_BYTES,
    Json,
    around,
    as_json,
    end_of_stream,
    full_name,
    head,
    read_answer,
    speed_of,
    whole,
)
from scripts.bench.jobs import Client, Job, Scheduler
from scripts.bench.worker_connections import MOST_UNSENT_BYTES, Connections
from scripts.bench.worker_http import Request, page

STAMP = b"t=%016d;"
_JSON, _LINES, _EVENTS = "application/json; charset=utf-8", "application/x-ndjson", "text/event-stream"


class Server(Connections):
    """One `serve`: its connections, its jobs, its loop."""

    def __init__(self, host: str, port: int, environ: Mapping[str, str]) -> None:
        super().__init__(host, port)
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

    def answer(self, client: Client, request: Request) -> None:
        """Answer a request, or have it wait in the line."""
        if request.path in ("/api/generate", "/api/chat", "/v1/chat/completions") and request.method == "POST":
            self._infer(client, request)
            return
        now = time.monotonic()
        loaded = [name for name, runner in self.jobs.runners.items() if runner.ready_s <= now]
        own = {"loads": self.jobs.loads, "under_way": self.jobs.under_way}
        status, body = page(request.path, self.models, loaded, own)
        kind = _JSON if isinstance(body, dict) else "text/plain; charset=utf-8"
        data = as_json(body) if isinstance(body, dict) else body
        top = head(status, kind, len(data), self.port)
        self.send(client, top if request.method == "HEAD" else top + data)

    def _infer(self, client: Client, request: Request) -> None:
        try:
            body: Json = json.loads(request.body)
            model = full_name(str(body.get("model") or ""))
            messages = body.get("messages") or []
            prompt = str(messages[-1].get("content") if messages else body.get("prompt") or "")
        except (ValueError, AttributeError, TypeError):
            self.send(client, head(400, _JSON, 17, self.port) + b'{"error":"what?"}')
            return
        if model not in self.models:
            data = as_json({"error": f'model "{model}" not found, try pulling it first'})
            self.send(client, head(404, _JSON, len(data), self.port) + data)
            return
        stream = bool(body.get("stream", request.path != "/v1/chat/completions"))
        job = Job(client, model, read_answer(prompt), stream and bool(prompt), request.path)
        if not prompt and body.get("keep_alive") == 0:
            self.jobs.unload(model, time.monotonic())
            data = as_json(whole(request.path, model, "", job.answer))
            self.send(client, head(200, _JSON, len(data), self.port) + data)
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
            self.put(job)

    def put(self, job: Job) -> None:
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
        if len(client.unsent) >= MOST_UNSENT_BYTES:
            client.held = job
            return
        answer = job.answer
        stamp = STAMP % time.monotonic_ns()
        if not job.stream:
            text = (stamp + b"x" * (answer.size * answer.chunks - STAMP_BYTES)).decode()
            data = as_json(whole(job.path, job.model, text, answer))
            self.send(client, head(200, _JSON, len(data), self.port) + data)
        else:
            data = job.begin + stamp + job.end
            if job.left == answer.chunks:
                kind = _EVENTS if job.path.startswith("/v1") else _LINES
                data = head(200, kind, None, self.port) + data
            self.send(client, data)
        job.left -= 1
        if client.job is not job:  # it has gone meanwhile
            return
        if job.left > 0:
            job.due_s = job.due_s + 1 / (answer.rate * self.speed) if answer.rate else 0.0
            self.put(job)
            return
        if job.stream:
            self.send(client, end_of_stream(job.path, job.model, answer))
        if client.job is job:
            self.ended(client)
            self.answer_next(client)

    def ended(self, client: Client) -> None:
        """Take a client's job out, and begin what can begin now."""
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

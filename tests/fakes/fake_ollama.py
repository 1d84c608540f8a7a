#!/usr/bin/env -S python3 -IS
r"""A stand-in for `ollama`, for faults that the real one cannot be asked for and for tests without a model.

    fake_ollama.py serve                  listens on OLLAMA_HOST, answers Ollama's API, ends on SIGTERM with 0
    fake_ollama.py create NAME -f FILE    registers a model through the server at OLLAMA_HOST
    fake_ollama.py pull NAME | list | --version

Standard library only (-I and -S in the first line halve its start). Models are files in OLLAMA_MODELS, so all
fakes with the same directory share them. Each JSON answer and stream line but an error has a field
`worker_env` that says who answered. Loaded models have one "runner" child (its argv contains `fake-runner`),
in the server's process group and without a parent-death signal, like Ollama's; if FAKE_OLLAMA_RUNNER names a Python
file, that is run as the runner. If OLLAMA_NUM_PARALLEL is set, requests beyond it wait, as in Ollama.

Behaviour comes from the JSON file named by FAKE_OLLAMA_CONTROL, read at start and at every request (no file:
the defaults). Keys stand at the top level, or under `"by_port": {"11501": {...}}` for one server. Write it
with `write_control()`, which replaces the file in one step.

At start and end
  start_s         listens only after so many seconds
  exit_at_start   exits with this code instead of listening
  never_ready     GET /api/version answers 500
  ignore_term     SIGTERM does nothing
  leave_runner    the runner ignores SIGTERM and survives the server (read when either starts or ends)
  library         what its log calls the device it found: "cuda" with a GPU in CUDA_VISIBLE_DEVICES, else "cpu"
Every inference request (with a prompt; loads and unloads are not)
  tokens          how many tokens an answer has: 5 (a smaller num_predict wins)
  token_s         delay before each token but the first: 0
  first_token_s   delay before the first: 0
  echo            the answer is the prompt, cut into `tokens` pieces
  ascii           JSON in ASCII: everything else as \uXXXX
  max_seen_file   a file to which "PORT MAX" is appended whenever more requests than ever are here at once
Faults of an inference request (n tokens go out first; 0: none, not even the response head)
  faults_for              only the first so many inference requests of this process have them: all
  status                  answers this status, 503 with Ollama's "server busy" body
  die_on_request          SIGKILLs itself on arrival
  die_mid_stream_after    n tokens, then SIGKILLs itself; the runner stays
  hang_after              n tokens, then silence
  error_line_after        n tokens, then a line {"error": ...} and a proper end (unary: 500)
  truncate_after          n tokens, then the connection closes without an end
Models
  load_s          how long a load takes: 0
  load_error      a load answers 500 with this text
  size_vram       what /api/ps says of a loaded model: all of it with a GPU in CUDA_VISIBLE_DEVICES, else 0
  vram_mib        what a loaded model adds in FAKE_NVML_STATE: 512
  hide_from_nvml  the runner does not stand in FAKE_NVML_STATE: it computes on the CPU
  expires_at      what /api/ps says of a loaded model's end, as it is: the time by its keep_alive
  pull_s          how long a pull takes: 0
  pull_error      a pull ends with this text as its error line
  pull_error_for  only the first so many pulls of this process do: all
Everything
  version         what /api/version says: 0.5.4
  requests_file   a file to which each well-formed request adds a line {"port", "method", "path", "model"}

It logs to standard error, and like Ollama goes on when that cannot be written (a full disk).

With FAKE_NVML_STATE set (a file with one line per GPU,
`uuid|name|total_mib|used_mib|util|temp|milliwatt|ret|pid:MiB,...|xid`), the runner's pid and memory stand in
the line of the first GPU of CUDA_VISIBLE_DEVICES while a model is loaded; a runner that outlives its server
stays there. Writers hold a flock on FAKE_NVML_STATE + ".lock" and replace the file.
"""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

Json = dict[str, Any]

BUSY = "server busy, please try again.  maximum pending requests exceeded"
MODEL_BYTES = 253_000_000
FOREVER_S = 100 * 365 * 86400.0
# The runner ends by itself after a quarter of an hour, so that a failed test does not leave it for ever.
RUNNER = "import signal, sys; {trap}; signal.alarm(900); signal.pause()"
REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}


# --- Files: control, models, GPU state


def replace_file(path: Path, text: str) -> None:
    """Write `path` in one step: a reader sees the old text or the new, never half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_control(path: Path, **keys: object) -> None:
    """Set what the fakes do from their next request on; keys not named go back to their defaults."""
    replace_file(path, json.dumps(keys))


def read_control(path: str | None, port: int) -> Json:
    """The keys that hold for the server on `port`."""
    try:
        keys: Json = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except FileNotFoundError:
        return {}
    own = keys.pop("by_port", {}).get(str(port), {})
    return {**keys, **own}


def max_seen(path: Path) -> dict[int, int]:
    """What max_seen_file says: the most requests each port has had at once."""
    seen: dict[int, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        port, most = map(int, line.split())
        seen[port] = max(most, seen.get(port, 0))
    return seen


def append_line(path: str, line: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def full_name(name: str) -> str:
    """Ollama's full name of a model: with its tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class Store:
    """The models in one directory, one file each."""

    def __init__(self, directory: Path) -> None:
        self.models = directory / "fake-models"
        self.blobs = directory / "blobs"

    def path(self, name: str) -> Path:
        file = quote(full_name(name), safe="") + ".json"
        if len(file) > 200:
            raise ValueError("the model's name is too long")
        return self.models / file

    def add(self, name: str) -> None:
        """Register a model, as create and pull do."""
        self.models.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(full_name(name).encode()).hexdigest()
        replace_file(self.path(name), json.dumps({"digest": digest, "modified_at": now_text()}))

    def remove(self, name: str) -> bool:
        """Forget a model; false if it was not there."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def rows(self) -> list[Json]:
        """The models as /api/tags lists them."""
        rows = []
        for path in sorted(self.models.glob("*.json")):
            name = unquote(path.stem)
            facts = {"name": name, "model": name, "size": MODEL_BYTES, "details": details()}
            with contextlib.suppress(FileNotFoundError):  # deleted by another fake since the glob
                rows.append({**facts, **json.loads(path.read_text(encoding="utf-8"))})
        return rows


def add_model(models_directory: Path, name: str) -> None:
    """Make a model known to all fakes with this OLLAMA_MODELS, without asking one."""
    Store(models_directory).add(name)


def details() -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "fake",
        "families": ["fake"],
        "parameter_size": "268M",
        "quantization_level": "Q4_K_M",
    }


def gpu_line(line: str, uuids: list[str], pid: int, mib: int | None) -> str:
    """A GPU's line with `pid` in its processes (or, for `mib` None, without it), its used memory to match."""
    fields = line.split("|")
    if line.startswith("!") or len(fields) < 9 or fields[0] not in uuids:
        return line
    processes = dict(entry.split(":") for entry in fields[8].split(",") if entry)
    used = int(fields[3]) - int(processes.pop(str(pid), "") or 0) + (mib or 0)
    if mib is not None:
        processes[str(pid)] = str(mib)
    fields[3] = str(used)
    fields[8] = ",".join(f"{owner}:{size}" for owner, size in processes.items())
    return "|".join(fields)


def show_on_gpu(pid: int, mib: int | None) -> None:
    """Add the runner to FAKE_NVML_STATE, or take it away; nothing happens while the driver is not loaded."""
    state, uuids = os.environ.get("FAKE_NVML_STATE"), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not state or not Path(state).exists():
        return
    path = Path(state)
    with Path(state + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = path.read_text(encoding="utf-8").split("\n")
        replace_file(path, "\n".join(gpu_line(line, uuids[:1], pid, mib) for line in lines))


# --- Small things


def now_text(after_s: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=after_s)).isoformat().replace("+00:00", "Z")


def log(text: str) -> None:
    """Write a line of the log; a disk that is full ends nothing, as with Go's."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def on_gpu() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names a GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")


def discovery_line(library: str) -> str:
    """What Ollama logs once it has looked for GPUs."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if library != "cpu" else "0"
    return f'level=INFO source=types.go:131 msg="inference compute" id={device} library={library} total="139.8 GiB"'


def keep_alive_s(value: object) -> float:
    """Ollama's keep_alive in seconds: a number, or a Go duration such as "5m"; negative means for ever."""
    if value is None:
        return 300.0
    if isinstance(value, str):
        unit = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        number = value.rstrip("hms")
        seconds = float(number) * unit.get(value[len(number) :], 1.0)
    else:
        seconds = float(str(value))
    return FOREVER_S if seconds < 0 else seconds


def pieces(text: str, count: int) -> list[str]:
    """`text` in at most `count` pieces, about equally long."""
    step = max(1, -(-len(text) // max(1, count)))
    return [text[i : i + step] for i in range(0, len(text), step)]


def host_allowed(host: str) -> bool:
    """Ollama's rule against DNS rebinding: an address of this machine or network, or a local name."""
    name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        local = (".localhost", ".local", ".internal")
        return name in ("", "localhost", socket.gethostname()) or name.endswith(local)
    return address.is_loopback or address.is_private or address.is_unspecified


class ClientGoneError(Exception):
    """The client closed its connection."""


class AnswerError(Exception):
    """The request ends with an HTTP status and an error text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class BrokenAnswerError(Exception):
    """The answer ends in the middle: with an error line, or, without a text, with a cut connection."""

    def __init__(self, text: str | None) -> None:
        super().__init__(text)
        self.text = text


# --- One connection


class Connection:
    """A client's connection: reads requests, writes answers, knows when the client has gone."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = sock.makefile("rb")
        self.method = self.path = ""
        self.headers: dict[str, str] = {}
        self.started = False
        self.close_after = False
        self.ascii = False

    def read_head(self) -> bool:
        """Read the next request's head; false at the end of the connection."""
        line = self.reader.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return False
        self.method, self.path = line[0], line[1].split("?")[0]
        self.headers, self.started = {}, False
        while (header := self.reader.readline(65536).decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            self.headers[name.lower()] = value.strip()
        self.close_after = self.headers.get("connection", "").lower() == "close" or line[2] == "HTTP/1.0"
        return True

    def body(self) -> Iterator[bytes]:
        """The request's body, in pieces."""
        if self.headers.get("expect", "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := int(self.reader.readline().split(b";")[0] or b"0", 16):
                yield self.reader.read(size)
                self.reader.readline()
            while self.reader.readline().strip():
                pass  # trailers
            return
        left = int(self.headers.get("content-length", "0"))
        while left and (piece := self.reader.read(min(left, 65536))):
            left -= len(piece)
            yield piece

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises ClientGoneError as soon as the client closes."""
        end = time.monotonic() + seconds
        watch = select.poll()
        watch.register(self.sock, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if not watch.poll(1000 * min(left, 3600.0)):
                continue
            if self.sock.recv(1, socket.MSG_PEEK) == b"":
                raise ClientGoneError
            watch.unregister(self.sock)  # a pipelined request: it waits, and so do we

    def head(self, status: int, kind: str, length: int | None) -> bytes:
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        close = "Connection: close\r\n" if self.close_after else ""
        reason = REASONS.get(status, "Service Unavailable" if status == 503 else "Error")
        self.started = True
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nDate: {date}\r\n{close}{framing}\r\n\r\n"
        ).encode()

    def text(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        head = self.head(status, kind, len(body))
        self.sock.sendall(head if self.method == "HEAD" else head + body)

    def json(self, status: int, value: Json) -> None:
        self.text(status, self.encode(value), "application/json; charset=utf-8")

    def error(self, status: int, text: str) -> None:
        """An error in the form of the API that was asked."""
        if self.path.startswith("/v1"):
            kind = "not_found_error" if status == 404 else "api_error"
            self.json(status, {"error": {"message": text, "type": kind, "param": None, "code": None}})
        else:
            self.json(status, {"error": text})

    def chunk(self, data: bytes, kind: str) -> None:
        """One chunk of a streamed answer; the head goes out with the first."""
        head = b"" if self.started else self.head(200, kind, None)
        self.sock.sendall(b"%s%x\r\n%s\r\n" % (head, len(data), data))

    def finish(self, kind: str) -> None:
        head = b"" if self.started else self.head(200, kind, None)
        self.sock.sendall(head + b"0\r\n\r\n")

    def encode(self, value: Json) -> bytes:
        """`value` as JSON, with the mark of who answers. Like Go's encoder, it escapes <, > and &."""
        names = ("CUDA_VISIBLE_DEVICES", "OLLAMA_HOST")
        mark = {} if "error" in value else {"worker_env": {name: os.environ.get(name) for name in names}}
        marked = {**value, **mark}
        encoded = json.dumps(marked, ensure_ascii=self.ascii, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            encoded = encoded.replace(character, f"\\u{ord(character):04x}")
        return encoded.encode("utf-8", "surrogatepass")


# --- The server

Handler = Callable[[Connection, Json, Json], None]


class Server:
    """One `serve` process: its loaded models, its runner, its requests."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        home = Path.home() / ".ollama" / "models"
        self.store = Store(Path(os.environ.get("OLLAMA_MODELS") or home))
        self.lock = threading.Lock()
        self.loading = threading.Lock()
        self.ending = False
        self.loaded: dict[str, float] = {}  # name -> monotonic time at which it goes
        self.runner: subprocess.Popen[bytes] | None = None
        self.here = self.most_here = self.inferences = self.pulls = 0
        slots = os.environ.get("OLLAMA_NUM_PARALLEL") or "1000000"
        self.slots = threading.Semaphore(int(slots))

    def control(self) -> Json:
        return read_control(os.environ.get("FAKE_OLLAMA_CONTROL"), self.port)

    # Models and the runner

    def runner_lives(self) -> bool:
        runner = self.runner  # another thread may end it meanwhile
        return runner is not None and runner.poll() is None

    def start_runner(self, keys: Json) -> None:
        trap = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if keys.get("leave_runner") else "pass"
        own = os.environ.get("FAKE_OLLAMA_RUNNER")
        code = [own] if own else ["-c", RUNNER.format(trap=trap)]
        argv = [sys.executable, "-I", "-S", *code, "fake-runner", f"--of={self.port}"]
        self.runner = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        if not keys.get("hide_from_nvml"):
            show_on_gpu(self.runner.pid, keys.get("vram_mib", 512))
        if self.ending:
            self.end_runner()

    def end_runner(self) -> None:
        if self.runner is not None:
            self.runner.kill()
            self.runner.wait()
            show_on_gpu(self.runner.pid, None)
            self.runner = None

    def load(self, name: str, keep_s: float, keys: Json, wait: Callable[[float], None]) -> None:
        """Make sure that the model is loaded; a runner that died is started again, as Ollama does."""
        with self.loading:
            if name not in self.loaded or not self.runner_lives():
                if "load_error" in keys:
                    raise AnswerError(500, keys["load_error"])
                if not self.runner_lives():
                    self.end_runner()
                    self.start_runner(keys)
                wait(keys.get("load_s", 0.0))
            self.loaded[name] = time.monotonic() + keep_s

    def unload(self, name: str) -> None:
        with self.loading:
            self.loaded.pop(name, None)
            if not self.loaded:
                self.end_runner()

    def expire(self) -> None:
        """Reap a runner that died, and unload what has outlived its keep_alive, unless a request is here."""
        if not self.loading.acquire(blocking=False):
            return  # a load is under way
        try:
            if self.runner is not None and not self.runner_lives():
                self.end_runner()
            gone = [name for name, end in self.loaded.items() if end < time.monotonic() and not self.here]
            for name in gone:
                del self.loaded[name]
            if gone and not self.loaded:
                self.end_runner()
        finally:
            self.loading.release()

    def need(self, body: Json) -> str:
        """The full name of the model that a request asks for. Raises AnswerError if it is not there."""
        name = body.get("model") or body.get("name") or ""
        if not isinstance(name, str) or not self.store.has(name):
            raise AnswerError(404, f'model "{name}" not found, try pulling it first')
        return full_name(name)

    # Requests

    def serve_connection(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that has gone, at whatever point, ends its connection and nothing else.
        with sock, contextlib.suppress(ClientGoneError, ConnectionError):
            connection = Connection(sock)
            while connection.read_head():
                self.answer(connection)
                if connection.close_after:
                    break

    def answer(self, connection: Connection) -> None:
        keys = self.control()
        connection.ascii = bool(keys.get("ascii"))
        if not host_allowed(connection.headers.get("host", "")):
            list(connection.body())
            connection.text(403, b"")
            return
        try:
            if connection.path.startswith("/api/blobs/"):
                self.blob(connection)
                return
            raw = b"".join(connection.body())
            body = parse(raw) if connection.method in ("POST", "DELETE") else {}
            if "requests_file" in keys:
                facts = {"port": self.port, "method": connection.method, "path": connection.path}
                model = body.get("model", body.get("name"))
                append_line(keys["requests_file"], json.dumps({**facts, "model": model}))
            self.handler(connection.method, connection.path)(connection, body, keys)
        except AnswerError as error:
            connection.error(error.status, error.text)
        except ODD as error:
            # what Ollama's strict types refuse; in the middle of an answer there is nothing left but to cut it
            if connection.started:
                raise ClientGoneError from error
            connection.error(400, f"cannot make sense of it: {error}")

    def handler(self, method: str, path: str) -> Handler:
        table: dict[tuple[str, str], Handler] = {
            ("GET", "/"): lambda c, _b, _k: c.text(200, b"Ollama is running"),
            ("GET", "/api/version"): self.version,
            ("GET", "/api/tags"): lambda c, _b, _k: c.json(200, {"models": self.store.rows()}),
            ("GET", "/api/ps"): self.ps,
            ("GET", "/v1/models"): self.v1_models,
            ("POST", "/api/show"): self.show,
            ("POST", "/api/pull"): self.pull,
            ("POST", "/api/create"): self.create,
            ("DELETE", "/api/delete"): self.delete,
        }
        for inference in SHAPES:
            table["POST", inference] = self.infer
        for embedding in ("/api/embed", "/api/embeddings", "/v1/embeddings"):
            table["POST", embedding] = self.embed
        found = table.get(("GET" if method == "HEAD" else method, path))
        if found is None:
            raise AnswerError(404, f"fake ollama: no {method} {path}")
        return found

    def version(self, connection: Connection, _body: Json, keys: Json) -> None:
        if keys.get("never_ready"):
            raise AnswerError(500, "fake ollama: never ready")
        connection.json(200, {"version": keys.get("version", "0.5.4")})

    def ps(self, connection: Connection, _body: Json, keys: Json) -> None:
        self.expire()
        vram = keys.get("size_vram", MODEL_BYTES if on_gpu() else 0)
        rows = []
        for name, end in list(self.loaded.items()):
            facts = {"name": name, "model": name, "size": MODEL_BYTES, "size_vram": vram, "details": details()}
            expires_at = keys.get("expires_at", now_text(end - time.monotonic()))
            rows.append({**facts, "context_length": 4096, "expires_at": expires_at})
        connection.json(200, {"models": rows})

    def v1_models(self, connection: Connection, _body: Json, _keys: Json) -> None:
        facts = {"object": "model", "created": 0, "owned_by": "library"}
        rows = [{"id": row["name"], **facts} for row in self.store.rows()]
        connection.json(200, {"object": "list", "data": rows})

    def show(self, connection: Connection, body: Json, _keys: Json) -> None:
        name = self.need(body)
        facts = {"general.architecture": "fake", "general.parameter_count": 268_000_000}
        words = {"modelfile": f"FROM {name}", "template": "{{ .Prompt }}", "capabilities": ["completion"]}
        connection.json(200, {**words, "details": details(), "model_info": facts})

    def stream_status(self, connection: Connection, body: Json, lines: list[Json], seconds: float) -> None:
        """The first status lines of a pull or a create, over `seconds`; none if it does not stream."""
        for line in lines:
            if body.get("stream") is not False:
                connection.chunk(connection.encode(line) + b"\n", NDJSON)
            connection.wait(seconds / len(lines))

    def end_status(self, connection: Connection, body: Json, last: Json) -> None:
        if body.get("stream") is False:
            connection.json(500 if "error" in last else 200, last)
        else:
            connection.chunk(connection.encode(last) + b"\n", NDJSON)
            connection.finish(NDJSON)

    def pull(self, connection: Connection, body: Json, keys: Json) -> None:
        name = body.get("model") or body.get("name")
        if not name:
            raise AnswerError(400, "invalid model name")
        digest = hashlib.sha256(full_name(name).encode()).hexdigest()
        layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": MODEL_BYTES}
        layers = [{**layer, "completed": MODEL_BYTES * part // 4} for part in range(5)]
        lines: list[Json] = [{"status": "pulling manifest"}, *layers, {"status": "verifying sha256 digest"}]
        self.stream_status(connection, body, lines, keys.get("pull_s", 0.0))
        with self.lock:
            self.pulls += 1
            fails = "pull_error" in keys and self.pulls <= keys.get("pull_error_for", self.pulls)
        if fails:
            self.end_status(connection, body, {"error": keys["pull_error"]})
        else:
            self.store.add(name)
            self.end_status(connection, body, {"status": "success"})

    def create(self, connection: Connection, body: Json, _keys: Json) -> None:
        name = body.get("model") or body.get("name")
        if not name:
            raise AnswerError(400, "invalid model name")
        self.stream_status(connection, body, [{"status": "writing manifest"}], 0.0)
        self.store.add(name)
        self.end_status(connection, body, {"status": "success"})

    def delete(self, connection: Connection, body: Json, _keys: Json) -> None:
        name = body.get("model") or body.get("name") or ""
        if not self.store.remove(name):
            raise AnswerError(404, f"model '{name}' not found")
        connection.text(200, b"")

    def blob(self, connection: Connection) -> None:
        digest = connection.path.removeprefix("/api/blobs/")
        path = self.store.blobs / digest.replace(":", "-").replace("/", "-")
        if connection.method == "HEAD":
            connection.text(200 if path.exists() else 404, b"")
            return
        self.store.blobs.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}-partial-{threading.get_ident()}")
        sha256 = hashlib.sha256()
        with partial.open("wb") as file:
            for piece in connection.body():
                sha256.update(piece)
                file.write(piece)
        if digest != f"sha256:{sha256.hexdigest()}":
            partial.unlink()
            raise AnswerError(400, "digest mismatch, file must be downloaded again")
        partial.replace(path)
        connection.text(201, b"")

    # Inference

    @contextlib.contextmanager
    def counted(self, connection: Connection, keys: Json) -> Iterator[None]:
        """Count a request as here, and hold one of the slots."""
        with self.lock:
            self.here += 1
            if self.here > self.most_here:
                self.most_here = self.here
                if "max_seen_file" in keys:
                    append_line(keys["max_seen_file"], f"{self.port} {self.here}")
        try:
            while not self.slots.acquire(blocking=False):
                connection.wait(0.005)
            try:
                yield
            finally:
                self.slots.release()
        finally:
            with self.lock:
                self.here -= 1

    def embed(self, connection: Connection, body: Json, keys: Json) -> None:
        name = self.need(body)
        given = body.get("input", body.get("prompt"))
        inputs = [given] if isinstance(given, str) else list(given or [])
        with self.counted(connection, keys):
            keys = self.faults(keys)
            self.load(name, keep_alive_s(body.get("keep_alive")), keys, connection.wait)
            connection.wait(keys.get("first_token_s", 0.0))
        vectors = [[byte / 255 for byte in hashlib.sha256(str(text).encode()).digest()] for text in inputs]
        if connection.path == "/api/embed":
            counts = {"prompt_eval_count": len(inputs)}
            connection.json(200, {"model": body["model"], "embeddings": vectors, **counts})
        elif connection.path == "/api/embeddings":
            connection.json(200, {"embedding": vectors[0] if vectors else []})
        else:
            rows = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(vectors)]
            usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
            connection.json(200, {"object": "list", "data": rows, "model": body["model"], "usage": usage})

    def faults(self, keys: Json) -> Json:
        """The keys that hold for one more inference request; its faults before any byte happen here."""
        with self.lock:
            self.inferences += 1
            if self.inferences > keys.get("faults_for", self.inferences):
                keys = {name: value for name, value in keys.items() if name not in FAULTS}
        if keys.get("die_on_request"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "status" in keys:
            status = keys["status"]
            raise AnswerError(status, BUSY if status == 503 else f"fake status {status}")
        return keys

    def infer(self, connection: Connection, body: Json, keys: Json) -> None:
        """generate and chat, in Ollama's form and in OpenAI's."""
        name = self.need(body)
        shape = SHAPES[connection.path](str(body["model"]))
        prompt = prompt_of(body)
        keep_s = keep_alive_s(body.get("keep_alive"))
        if not prompt:
            if keep_s == 0:
                self.unload(name)
            else:
                self.load(name, keep_s, keys, connection.wait)
            connection.json(200, shape.loaded("unload" if keep_s == 0 else "load"))
            return
        with self.counted(connection, keys):
            keys = self.faults(keys)
            self.load(name, keep_s, keys, connection.wait)
            words, shape.reason = words_of(body, prompt, keys)
            answer = self.tokens(connection, words, keys)
            if body.get("stream", shape.streams):
                self.stream(connection, shape, answer)
            else:
                self.whole(connection, shape, answer)
        if keep_s == 0:
            self.unload(name)

    def tokens(self, connection: Connection, words: list[str], keys: Json) -> Iterator[str]:
        """The answer's tokens, each in its time. Raises BrokenAnswerError at the fault that `keys` name."""
        for number in range(len(words) + 1):
            if keys.get("die_mid_stream_after") == number:
                os.kill(os.getpid(), signal.SIGKILL)
            if keys.get("hang_after") == number:
                connection.wait(FOREVER_S)
            if keys.get("truncate_after") == number:
                raise BrokenAnswerError(None)
            if keys.get("error_line_after") == number or not self.runner_lives():
                raise BrokenAnswerError("an error was encountered while running the model: unexpected EOF")
            if number < len(words):
                connection.wait(keys.get("token_s" if number else "first_token_s", 0.0))
                yield words[number]

    def stream(self, connection: Connection, shape: "Shape", answer: Iterator[str]) -> None:
        count = 0
        try:
            for token in answer:
                count += 1
                connection.chunk(shape.frame(connection.encode(shape.piece(token))), shape.kind)
        except BrokenAnswerError as broken:
            if broken.text is None:
                connection.sock.shutdown(socket.SHUT_RDWR)
                raise ClientGoneError from broken
            if not connection.started:
                raise AnswerError(500, broken.text) from broken
            connection.chunk(shape.frame(connection.encode(shape.error(broken.text))), shape.kind)
        else:
            connection.chunk(shape.frame(connection.encode(shape.end("", count))) + shape.tail, shape.kind)
        connection.finish(shape.kind)

    def whole(self, connection: Connection, shape: "Shape", answer: Iterator[str]) -> None:
        text, count = "", 0
        try:
            for token in answer:
                text, count = text + token, count + 1
        except BrokenAnswerError as broken:
            if broken.text is not None:
                raise AnswerError(500, broken.text) from broken
            half = connection.encode(shape.end(text, count))
            connection.sock.sendall(connection.head(200, "application/json", 2 * len(half)) + half)
            connection.sock.shutdown(socket.SHUT_RDWR)
            raise ClientGoneError from broken
        connection.json(200, shape.end(text, count, whole=True))


# What a body with fields of other types, or a name longer than a file's may be, comes to in Python.
ODD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
FAULTS = {"status", "die_on_request"}
FAULTS |= {"die_mid_stream_after", "hang_after", "error_line_after", "truncate_after"}
NDJSON = "application/x-ndjson"


def parse(raw: bytes) -> Json:
    try:
        value = json.loads(raw) if raw else None
    except ValueError as error:
        raise AnswerError(400, f"invalid character in JSON: {error}") from error
    if not isinstance(value, dict):
        raise AnswerError(400, "missing request body" if value is None else "the body is not a JSON object")
    return value


def prompt_of(body: Json) -> str:
    """What a request asks: the prompt, or the last message; empty for a load or an unload."""
    if body.get("messages"):
        content = body["messages"][-1].get("content", "")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        return str(content) or " "
    return str(body.get("prompt") or "")


def words_of(body: Json, prompt: str, keys: Json) -> tuple[list[str], str]:
    """The answer's tokens, and why it ends there: "stop" or "length"."""
    count = keys.get("tokens", 5)
    words = pieces(prompt, count) if keys.get("echo") else [f"tok{number} " for number in range(count)]
    limit = (body.get("options") or {}).get("num_predict", body.get("max_tokens"))
    if limit is None or limit < 0 or limit >= len(words):
        return words, "stop"
    return words[:limit], "length"


class Shape:
    """How one API words an answer: this one is /api/generate."""

    kind = NDJSON
    streams = True
    tail = b""
    reason = "stop"

    def __init__(self, model: str) -> None:
        self.model = model
        self.since_ns = time.monotonic_ns()

    def frame(self, encoded: bytes) -> bytes:
        return encoded + b"\n"

    def base(self) -> Json:
        return {"model": self.model, "created_at": now_text()}

    def said(self, text: str) -> Json:
        return {"response": text}

    def piece(self, token: str) -> Json:
        return {**self.base(), **self.said(token), "done": False}

    def loaded(self, reason: str) -> Json:
        return {**self.base(), **self.said(""), "done": True, "done_reason": reason}

    def end(self, text: str, count: int, *, whole: bool = False) -> Json:
        del whole  # Ollama's last line and its unary answer have the same form
        spent = time.monotonic_ns() - self.since_ns
        durations = {"total_duration": spent, "load_duration": 0, "prompt_eval_duration": 0, "eval_duration": spent}
        counts = {"prompt_eval_count": 7, "eval_count": count}
        return {**self.base(), **self.said(text), "done": True, "done_reason": self.reason, **durations, **counts}

    def error(self, text: str) -> Json:
        return {"error": text}


class ChatShape(Shape):
    """/api/chat."""

    def said(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}


class OpenAIChatShape(Shape):
    """/v1/chat/completions."""

    kind = "text/event-stream"
    streams = False
    tail = b"data: [DONE]\n\n"
    object = "chat.completion"

    def frame(self, encoded: bytes) -> bytes:
        return b"data: " + encoded + b"\n\n"

    def base(self) -> Json:
        return {"id": "chatcmpl-fake", "created": 0, "model": self.model}

    def choice(self, text: str, finish: str | None, *, whole: bool) -> Json:
        says = {"role": "assistant", "content": text}
        return {"index": 0, "message" if whole else "delta": says, "finish_reason": finish}

    def piece(self, token: str) -> Json:
        choices = [self.choice(token, None, whole=False)]
        return {**self.base(), "object": f"{self.object}.chunk", "choices": choices}

    def loaded(self, reason: str) -> Json:
        raise AnswerError(400, f"[] is too short - 'messages' ({reason})")

    def end(self, text: str, count: int, *, whole: bool = False) -> Json:
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        kind = self.object if whole else f"{self.object}.chunk"
        choices = [self.choice(text, self.reason, whole=whole)]
        return {**self.base(), "object": kind, "choices": choices, "usage": usage}

    def error(self, text: str) -> Json:
        return {"error": {"message": text, "type": "api_error", "param": None, "code": None}}


class OpenAITextShape(OpenAIChatShape):
    """/v1/completions."""

    object = "text_completion"

    def choice(self, text: str, finish: str | None, *, whole: bool) -> Json:
        del whole
        return {"index": 0, "text": text, "finish_reason": finish}


SHAPES: dict[str, type[Shape]] = {
    "/api/generate": Shape,
    "/api/chat": ChatShape,
    "/v1/chat/completions": OpenAIChatShape,
    "/v1/completions": OpenAITextShape,
}


# --- Commands


def address() -> tuple[str, int]:
    """OLLAMA_HOST's host and port."""
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").removeprefix("http://").rpartition(":")
    return host or "127.0.0.1", int(port)


def serve() -> int:
    """Serve until SIGTERM or SIGINT."""
    host, port = address()
    server = Server(host, port)
    ended = threading.Event()

    def on_term(_number: int, _frame: object) -> None:
        if not server.control().get("ignore_term"):
            ended.set()

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_term)
    keys = server.control()
    if "exit_at_start" in keys:
        log("Error: fake ollama was asked to exit")
        return int(keys["exit_at_start"])
    if ended.wait(keys.get("start_s", 0.0)):
        return 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        log(f"Error: listen tcp {host}:{port}: bind: {str(error.strerror).lower()}")
        return 1
    log(discovery_line(keys.get("library", "cuda" if on_gpu() else "cpu")))
    log(f"fake ollama listens on {host}:{port}")
    listener.listen(1024)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=server.serve_connection, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    while not ended.wait(0.25):
        server.expire()
    if not server.control().get("leave_runner"):
        server.ending = True
        server.end_runner()
    os._exit(0)  # like Ollama: streams are cut, nothing is waited for


def call(method: str, path: str, body: Json | None = None) -> str:
    """Ask the server at OLLAMA_HOST, as Ollama's own command line does."""
    from http.client import HTTPConnection  # not at the top: serve starts quicker without it

    host, port = address()
    connection = HTTPConnection(host, port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    text = response.read().decode()
    if response.status >= 300 or '"error":' in text:
        raise SystemExit(f"Error: {text.strip()}")
    return text


def main(argv: list[str]) -> int:
    match argv:
        case ["serve"]:
            return serve()
        case ["create", name, "-f", file]:
            if "FROM" not in Path(file).read_text(encoding="utf-8").upper():
                raise SystemExit("Error: no FROM line")
            call("POST", "/api/create", {"model": name})
            print("success")
        case ["pull", name]:
            call("POST", "/api/pull", {"model": name})
            print("success")
        case ["list"]:
            print("NAME\tID\tSIZE\tMODIFIED")
            for row in json.loads(call("GET", "/api/tags"))["models"]:
                print(f"{row['name']}\t{row['digest'][:12]}\t253 MB\t{row['modified_at']}")
        case ["--version"] | ["-v"]:
            print("ollama version is 0.5.4")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

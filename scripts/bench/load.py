"""The load: asks over many connections from one process, on one epoll loop, and checks that every answer is complete.

    python -m scripts.bench.load < LOAD > RESULT         (JSON both; `run_load` does that)

Standard library only, so that it starts at once. What it costs is paid on every side alike.
"""

import contextlib
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_READ_BYTES = 256 * 1024
_STAMP = re.compile(rb"t=(\d{16});")
_DONE = (b'"done":true', b'"done": true', b"data: [DONE]", b'"finish_reason":"stop"', b'"finish_reason": "stop"')
# What is kept of a piece for a stamp that lies across two: one byte less than a stamp, so that none counts twice.
_REST_BYTES = 18
# How much of the end of an answer is searched for the mark that it is complete.
_END_BYTES = 2048
# Beyond its end a load waits so long for answers under way.
_MOST_LATE_S = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask.

    `urls`: where, connections in turn. `connections` at once, each kept and asking again when it has its answer, until
    `seconds` have passed (0: once each) since all have begun, which they do in the course of `spread_s`. `prompt` is
    worker.py's; `{n}` in it becomes the number of the request. `asks`: instead of one `model` and `prompt`, those of
    each request, over again if there are more. `settle_s`: what happens so soon after all have begun is not counted,
    neither requests nor CPU. `again_s`: how soon a client whose request failed asks the next one. `pids`: whose CPU to
    count. `cut`: at the end, do not wait for answers under way. `cpus`: where the load itself may run, anywhere if
    empty. `limit_s`: when it ends at the latest.
    """

    urls: tuple[str, ...]
    connections: int
    prompt: str = ""
    asks: tuple[tuple[str, str], ...] = ()
    stream: bool = False
    seconds: float = 0.0
    spread_s: float = 0.0
    settle_s: float = 0.0
    again_s: float = 0.05
    model: str = "bench"
    path: str = "/api/generate"
    headers: dict[str, str] = field(default_factory=dict)
    pids: tuple[int, ...] = ()
    cpus: tuple[int, ...] = ()
    cut: bool = False
    limit_s: float = 60.0

    def request(self, number: int, host: str) -> bytes:
        """Return the request with this number, head and body."""
        model, prompt = self.asks[(number - 1) % len(self.asks)] if self.asks else (self.model, self.prompt)
        prompt = prompt.replace("{n}", str(number))
        asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in self.path else {"prompt": prompt}
        body = json.dumps({"model": model, "stream": self.stream, **asked}).encode()
        own = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{own}"
                f"Content-Length: {len(body)}\r\n\r\n").encode() + body  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    `took_s`: each complete answer, `delay_s`: each chunk, from the worker's sending to here; those that came while it
    was counted. `first_byte_s`: each answer, from the asking to the first byte of its body, those before it too.
    `cpu_s`: CPU of the load's `pids`, `own_cpu_s` its own; `seconds`: how long was counted. `faults`: what went wrong,
    in words, some of it; `failed`: how often; `broken`: how often of these when some of a good answer had come.
    """

    took_s: list[float]
    first_byte_s: list[float]
    delay_s: list[float]
    chunks: int
    cpu_s: float
    own_cpu_s: float
    seconds: float
    failed: int = 0
    faults: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def requests(self) -> int:
        """How many answers were complete."""
        return len(self.took_s)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie (nearest rank); nan of none."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


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


@dataclass(eq=False, slots=True)
class _Connection:
    address: tuple[str, int]
    begins_s: float
    sock: socket.socket | None = None
    reader: Reader | None = None
    asked_s: float = 0.0
    first_s: float | None = None
    unsent: bytes = b""


class Run:
    """One load while it runs."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.selector = selectors.DefaultSelector()
        self.took_s: list[float] = []
        self.first_byte_s: list[float] = []
        self.delay_s: list[float] = []
        self.chunks = self.asked = self.failed = self.broken = 0
        self.faults: list[str] = []
        self.active = 0
        self.todo: deque[_Connection] = deque()  # to be opened, in the order of time
        self.ending = False

    def run(self) -> Result:
        """Ask, read, and return what came of it."""
        load, start = self.load, time.monotonic()
        addresses = [_address(url) for url in load.urls]
        step_s = load.spread_s / max(1, load.connections)
        self.todo += [_Connection(addresses[n % len(addresses)], start + n * step_s) for n in range(load.connections)]
        stop_s, counted_s = start + load.limit_s, start + load.spread_s + load.settle_s
        began, cpu, own = start, cpu_of(load.pids), time.process_time()
        if load.settle_s:
            self._until(min(stop_s, counted_s))
            self._forget()
            began, cpu, own = time.monotonic(), cpu_of(load.pids), time.process_time()
        if load.seconds:
            self._until(min(stop_s, counted_s + load.seconds))
            self.ending = True
            self.todo.clear()
            stop_s = min(stop_s, time.monotonic() + _MOST_LATE_S)
        if not load.cut:
            self._until(stop_s)
            if late := self.active + len(self.todo):
                self._fault(f"{late} answers had not come when time was up", late)
        ended, used, own = time.monotonic(), cpu_of(load.pids) - cpu, time.process_time() - own
        return Result(self.took_s, self.first_byte_s, self.delay_s, self.chunks, used, own, ended - began, self.failed,
                      self.faults, self.broken)  # fmt: skip

    def _until(self, end_s: float) -> None:
        """Go on until then, or until nothing is left to do."""
        todo, select, ready = self.todo, self.selector.select, self._ready
        while todo or self.active:
            now = time.monotonic()
            if now >= end_s:
                return
            while todo and todo[0].begins_s <= now:
                self._open(todo.popleft())
            next_s = todo[0].begins_s if todo else end_s if self.active else now  # now: none could be opened
            for key, mask in select(max(0.0, min(end_s, next_s) - now)):
                ready(key.data, mask)

    def _forget(self) -> None:
        self.took_s, self.delay_s, self.chunks = [], [], 0

    def _open(self, connection: _Connection) -> None:
        """Connect, which is at once on loopback, and ask."""
        self.active += 1
        try:
            connection.sock = sock = socket.create_connection(connection.address, timeout=10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        except OSError as error:
            connection.sock = None
            self.active -= 1
            self._broken(connection, f"no connection: {error}")
            return
        self.selector.register(sock, selectors.EVENT_READ, connection)
        self._ask(connection)

    def _ask(self, connection: _Connection) -> None:
        host = f"{connection.address[0]}:{connection.address[1]}"
        connection.reader = Reader()
        connection.first_s = None
        connection.asked_s = time.monotonic()
        self.asked += 1
        connection.unsent = self.load.request(self.asked, host)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        assert connection.sock is not None  # noqa: S101 - for the types
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._close(connection, f"broken while asking: {error}")
            return
        waits = bool(connection.unsent) and sent < len(connection.unsent)
        was_waiting = self.selector.get_key(connection.sock).events & selectors.EVENT_WRITE
        connection.unsent = connection.unsent[sent:]
        if waits != bool(was_waiting):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
            self.selector.modify(connection.sock, events, connection)

    def _ready(self, connection: _Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send(connection)
        if not mask & selectors.EVENT_READ or connection.sock is None or connection.reader is None:
            return
        try:
            data = connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(connection, f"broken: {error}")
            return
        now_ns = time.monotonic_ns()
        if not data:
            self._close(connection, "closed in the middle of an answer")
            return
        reader = connection.reader
        seen = len(reader.stamps)
        try:
            ended = reader.feed(data)
        except (ValueError, IndexError, KeyError) as error:
            self._close(connection, f"not HTTP: {error}")
            return
        if connection.first_s is None and reader.body:
            connection.first_s = now_ns / 1e9 - connection.asked_s
            self.first_byte_s.append(connection.first_s)
        for stamp in reader.stamps[seen:]:
            self.delay_s.append((now_ns - stamp) / 1e9)
        self.chunks += len(reader.stamps) - seen
        if ended:
            self._answered(connection, reader, now_ns / 1e9)

    def _answered(self, connection: _Connection, reader: Reader, now: float) -> None:
        if reader.status != 200 or not reader.done:
            self._close(connection, f"status {reader.status}" if reader.status != 200 else "an answer without its end")
            return
        self.took_s.append(now - connection.asked_s)
        if self.load.seconds and not self.ending:
            self._ask(connection)
        else:
            self._close(connection, None)

    def _close(self, connection: _Connection, fault: str | None) -> None:
        if connection.sock is not None:
            self.selector.unregister(connection.sock)
            connection.sock.close()
            connection.sock = None
            self.active -= 1
        if fault is not None:
            self._broken(connection, fault)

    def _broken(self, connection: _Connection, fault: str) -> None:
        """Note it, and connect anew soon, as clients do."""
        self._fault(fault)
        reader, connection.reader = connection.reader, None
        self.broken += reader is not None and reader.status == 200 and reader.body
        if self.load.seconds and not self.ending:
            connection.begins_s = time.monotonic() + self.load.again_s
            self.todo.append(connection)

    def _fault(self, text: str, count: int = 1) -> None:
        self.failed += count
        if len(self.faults) < 5 and text not in self.faults:
            self.faults.append(text)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").strip("/").rpartition(":")
    return host, int(port)


def cpu_of(pids: Sequence[int]) -> float:
    """Return the CPU seconds of these processes. As accounts.cpu_s, which is not imported: psutil starts slowly."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2)
    return total


def run_load(load: Load) -> Result:
    """Run a load in a process of its own. Raises RuntimeError when that fails; answers that fail do not."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.load"],
        cwd=ROOT, input=json.dumps(asdict(load)), capture_output=True, text=True, timeout=load.limit_s + 60,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the load failed: {done.stderr.strip()[-500:]}")
    return Result(**json.loads(done.stdout))


def read_load(fields: dict[str, Any]) -> Load:
    """Return the load that JSON describes."""
    tuples = {name: tuple(fields[name]) for name in ("urls", "pids", "cpus")}
    tuples["asks"] = tuple((model, prompt) for model, prompt in fields["asks"])
    return Load(**(fields | tuples))


def main() -> int:
    """Run the load on standard input."""
    load = read_load(json.load(sys.stdin))
    if load.cpus:
        os.sched_setaffinity(0, load.cpus)
    json.dump(asdict(Run(load).run()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

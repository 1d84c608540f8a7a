"""Memory of the proxy: idle, with 1,000 idle connections, with 1,000 requests that wait (of 1 and of 64 KiB).

Memory is PSS of the proxy's processes (Pss of /proc/PID/smaps_rollup: pages of their own, and their share of those that
others have too), without workers. What the kernel keeps in sockets is not in it: of a request that waits HAProxy reads
16 KiB and leaves the rest there, while Chimera and the plain proxy have read all of it.

Every figure comes from processes that have just been started, and warmed up with some requests: what a process has once
taken it uses again. An idle connection has had one answer. Requests wait because all slots are taken by answers that do
not end; nginx has no queue in which they could.
"""

import contextlib
import json
import resource
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from scripts.bench.accounts import memory
from scripts.bench.answers import Answer
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Peer, Running, installed
from scripts.bench.peers import Chimera, HaProxy, Nginx, Plain
from scripts.bench.reader import Reader
from scripts.bench.stage import ask, quiet, stage
from scripts.bench.workers import Spec

WORKERS, SLOTS = 2, 2
COUNT, QUICK_COUNT = 1_000, 100
BODIES = (1024, 64 * 1024)
# An answer that does not end while something is measured.
HOLD_S = 600.0
TIMEOUT_S = 60.0
# A proxy takes so many new connections at once without refusing any.
AT_ONCE = 100
# More would take many minutes; memory is the same each time.
MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Phase:
    """What is held while memory is measured: `count` idle connections, or requests that wait, of so many bytes each."""

    what: str
    body_bytes: int = 0


PHASES = (Phase("idle connection"), *(Phase("waiting request", size) for size in BODIES))


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one side: PSS with nothing held, and with `held` connections or requests, of those asked for."""

    idle_bytes: int
    full_bytes: int
    held: int

    @property
    def each_bytes(self) -> float:
        """What one of them takes."""
        return (self.full_bytes - self.idle_bytes) / max(1, self.held)


@dataclass(frozen=True, slots=True)
class Row:
    """One side: medians of the rounds. `bytes_each`: what it takes idle, or for each connection or request."""

    what: str
    body_bytes: int
    side: str
    bytes_each: float
    held: int
    rounds_bytes_each: tuple[float, ...]


def rows_of(found: dict[tuple[str, Phase], list[Sample]]) -> list[Row]:
    """Return a row for each side idle, then one for each phase, of the samples of each."""
    idle: dict[str, list[float]] = {}
    for (side, _), samples in found.items():
        idle.setdefault(side, []).extend(float(one.idle_bytes) for one in samples)
    rows = [Row("idle", 0, side, statistics.median(each), 0, tuple(each)) for side, each in idle.items()]
    for (side, phase), samples in found.items():
        sizes = tuple(one.each_bytes for one in samples)
        held = min(one.held for one in samples)
        rows.append(Row(phase.what, phase.body_bytes, side, statistics.median(sizes), held, sizes))
    return rows


def measure(options: Options) -> Record:
    """Measure it, three rounds at most. Raises RuntimeError when Chimera or the workers do not start."""
    spec = Spec(SLOTS)
    sides, left_out = installed([Nginx(), HaProxy(), Plain(), Chimera(spec)])
    count = min(QUICK_COUNT if options.quick else COUNT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)
    found: dict[tuple[str, Phase], list[Sample]] = {}
    for line in left_out:
        options.say(line)
    for number in range(min(options.rounds, MOST_ROUNDS)):
        for phase in PHASES:
            with stage(_of(phase, sides), WORKERS, spec) as on:
                left_out += [line for line in on.left_out if line not in left_out]
                for side in on.turns(number):
                    found.setdefault((side.name, phase), []).append(one_turn(side, phase, count))
    order = [side.name for side in sides]
    rows = rows_of(dict(sorted(found.items(), key=lambda pair: (PHASES.index(pair[0][1]), order.index(pair[0][0])))))
    for row in rows:
        size = f" of {row.body_bytes / 1024:.0f} KiB" if row.body_bytes else ""
        short = f", {row.held} of {count} were held" if row.what != "idle" and row.held < count else ""
        options.say(f"{row.what + size:26} {row.side:14} {row.bytes_each / 1024:10,.1f} KiB{short}")
    figures = {"rows": [asdict(row) for row in rows], "criteria": {}, "count": count, "memory": "PSS"}
    return record("memory", options, sides, figures, left_out)


def _of(phase: Phase, sides: Sequence[Peer]) -> list[Peer]:
    """Return who takes part: nginx has no queue."""
    return [side for side in sides if not (phase.body_bytes and isinstance(side, Nginx))]


def one_turn(side: Running, phase: Phase, count: int) -> Sample:
    """Measure a side idle, and with all that is to be held."""
    ask(side, Answer(size=200).prompt("n{n}"), 16, seconds=0.5)
    quiet(side.pids)
    before = memory(side.pids).proportional_bytes
    with idle(side, count) if phase.body_bytes == 0 else waiting(side, count, phase.body_bytes) as socks:
        quiet(side.pids)
        after = memory(side.pids).proportional_bytes
        held = sum(map(still_open, socks))
    return Sample(before, after, held)


@contextmanager
def idle(side: Running, count: int) -> Iterator[list[socket.socket]]:
    """Hold so many connections that have had one answer each."""
    own = "".join(f"{name}: {value}\r\n" for name, value in side.headers.items())
    asked = f"GET /api/version HTTP/1.1\r\nHost: bench\r\n{own}\r\n".encode()
    with _connections(side, count) as socks:
        for begin in range(0, count, AT_ONCE):
            _send([(sock, asked) for sock in socks[begin : begin + AT_ONCE]], answered=True)
        yield socks


@contextmanager
def waiting(side: Running, count: int, body_bytes: int) -> Iterator[list[socket.socket]]:
    """Hold so many requests that wait, all slots being taken by others before them."""
    slots = WORKERS * SLOTS
    with _connections(side, slots + count) as socks:
        _send([(sock, request(side, 0)) for sock in socks[:slots]], answered=False)
        quiet(side.pids)  # these have got the slots
        for begin in range(slots, slots + count, AT_ONCE):
            _send([(sock, request(side, body_bytes)) for sock in socks[begin : begin + AT_ONCE]], answered=False)
        yield socks[slots:]


def request(side: Running, body_bytes: int) -> bytes:
    """Return a request whose answer does not end soon, its body of so many bytes or a few more."""
    prompt = Answer(first_s=HOLD_S).prompt("n")
    body = json.dumps({"model": side.model, "stream": True, "prompt": prompt, "suffix": ""})
    body = body[:-2] + "x" * max(0, body_bytes - len(body)) + body[-2:]
    own = "".join(f"{name}: {value}\r\n" for name, value in side.headers.items())
    return (f"POST {side.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{own}"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()  # fmt: skip


@contextmanager
def _connections(side: Running, count: int) -> Iterator[list[socket.socket]]:
    host, _, port = side.url.removeprefix("http://").rpartition(":")
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(count):
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=TIMEOUT_S))
            sock.setblocking(False)
            socks.append(sock)
            if number % AT_ONCE == AT_ONCE - 1:
                quiet(side.pids)  # it has accepted them
        yield socks


def _send(todo: Sequence[tuple[socket.socket, bytes]], *, answered: bool) -> None:
    """Send all of it; return when it has been taken, or `answered`. Raises RuntimeError when it takes too long."""
    deadline = time.monotonic() + TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for sock, data in todo:
            selector.register(sock, selectors.EVENT_WRITE, (memoryview(data), Reader()))
        while selector.get_map():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(selector.get_map())} connections are not served")
            for key, mask in selector.select(1.0):
                rest, reader = key.data
                if mask & selectors.EVENT_WRITE:
                    rest = rest[key.fileobj.send(rest) :]  # type: ignore[union-attr]
                    wants = selectors.EVENT_WRITE if rest else selectors.EVENT_READ
                    if rest or answered:
                        selector.modify(key.fileobj, wants, (rest, reader))
                    else:
                        selector.unregister(key.fileobj)
                elif reader.feed(key.fileobj.recv(65536)):  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)


def still_open(sock: socket.socket) -> bool:
    """Say whether the other side holds the connection, and has said nothing."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

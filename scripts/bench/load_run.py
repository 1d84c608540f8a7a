"""The process of a load: asks over many connections on one epoll loop, and checks that every answer is complete.

    python -m scripts.bench.load_run < LOAD > RESULT         (JSON both; `load.run_load` does that)

Standard library only, so that it starts at once. What it costs is paid on every side alike.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scripts.bench.load import Load, Result, read_load
from scripts.bench.reader import Reader

_READ_BYTES = 256 * 1024
# Beyond its end a load waits so long for answers under way.
_MOST_LATE_S = 20.0


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
        stop_s, counted_s = start + load.limit_s, start + load.spread_s
        began, cpu, own = start, cpu_of(load.pids), time.process_time()
        if load.settle_s:
            self._until(min(stop_s, counted_s))
            # from now, not from when it should have been: a side that is slow to accept is late
            self._until(min(stop_s, time.monotonic() + load.settle_s))
            self._forget()
            began, cpu, own = time.monotonic(), cpu_of(load.pids), time.process_time()
            counted_s = began
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


def main() -> int:
    """Run the load on standard input."""
    load = read_load(json.load(sys.stdin))
    if load.cpus:
        os.sched_setaffinity(0, load.cpus)
    json.dump(asdict(Run(load).run()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

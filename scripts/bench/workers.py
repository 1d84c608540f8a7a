"""Starts workers of known speed (worker.py), and says how Chimera starts the same."""

import http.client
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PROGRAM = Path(__file__).with_name("worker.py")
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What the workers of a measurement are.

    `slots` requests at once each (of each loaded model); `models` in the store, `loaded` at the start, `most_loaded` at
    once (0: any number), a load taking `load_s`; `speeds`: 1 as asked for, one for each worker, over again if there
    are more.
    """

    slots: int
    models: tuple[str, ...] = ("bench",)
    loaded: tuple[str, ...] = ("bench",)
    most_loaded: int = 0
    load_s: float = 0.0
    speeds: tuple[float, ...] = (1.0,)

    def environ(self, first_port: int) -> dict[str, str]:
        """Return the variables that make workers of this kind, whoever starts them; the first is on `first_port`."""
        return {
            "BENCH_MODELS": ",".join(self.models),
            "BENCH_LOADED": ",".join(self.loaded),
            "BENCH_LOAD_S": f"{self.load_s:g}",
            "BENCH_SPEEDS": ",".join(f"{speed:g}" for speed in self.speeds),
            "BENCH_PORT_BASE": str(first_port),
            "OLLAMA_MAX_LOADED_MODELS": str(self.most_loaded),
        }


@contextmanager
def worker(port: int, spec: Spec, first_port: int | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run one worker for the block; it may have ended before that. Returns when it listens."""
    process = _started(port, spec, first_port or port)
    try:
        wait_until(lambda: answers(port), process)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def workers(ports: list[int], spec: Spec) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run a worker on each port for the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(worker(port, spec, ports[0])) for port in ports]


def _started(port: int, spec: Spec, first_port: int) -> "subprocess.Popen[bytes]":
    environ = spec.environ(first_port)
    environ |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NUM_PARALLEL": str(spec.slots), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen([str(PROGRAM), "serve"], env=environ, stdin=subprocess.DEVNULL)


class Loop:
    """A worker in a loop that starts it again when it has ended, as `while true; do …; sleep 1; done` does."""

    def __init__(self, port: int, spec: Spec, first_port: int, pause_s: float) -> None:
        """Start it; returns at once. `pause_s`: between its end and the next start."""
        self._args, self._pause_s = (port, spec, first_port), pause_s
        self._over = threading.Event()
        self.process = _started(*self._args)
        self._thread = threading.Thread(target=self._run, name=f"worker on {port}")
        self._thread.start()

    def _run(self) -> None:
        while True:
            self.process.wait()
            if self._over.wait(self._pause_s):
                return
            self.process = _started(*self._args)
            if self._over.is_set():  # in this very moment
                self.process.kill()

    def end(self) -> None:
        """End the worker and the loop."""
        self._over.set()
        self.process.kill()
        self._thread.join()
        self.process.wait()


@contextmanager
def loops(ports: list[int], spec: Spec, pause_s: float) -> Iterator[list[Loop]]:
    """Run a worker on each port for the block, each in a loop. Returns when all listen."""
    with ExitStack() as stack:
        made: list[Loop] = []
        for port in ports:
            made.append(Loop(port, spec, ports[0], pause_s))
            stack.callback(made[-1].end)
        for port, one in zip(ports, made, strict=True):
            wait_until(partial(answers, port), one.process)
        yield made


def answers(port: int, path: str = "/api/version") -> bool:
    """Say whether a server on loopback answers GET with 200 now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(
    good: Callable[[], bool], process: "subprocess.Popen[bytes]", timeout_s: float = START_TIMEOUT_S
) -> None:
    """Wait until a process is as it should be. Raises RuntimeError when it ends or takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not good():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} is not ready after {timeout_s:g} s")
        try:
            process.wait(0.03)
        except subprocess.TimeoutExpired:
            continue

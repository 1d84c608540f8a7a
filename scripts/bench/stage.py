"""Sides on one stage: all peers run at once before the same workers, and have their turns one after the other."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from scripts.bench.accounts import cpu_s
from scripts.bench.load import Load, Result, run_load
from scripts.bench.peer import Peer, Running
from scripts.bench.peers import Chimera
from scripts.bench.workers import Spec, workers
from tests.fakes.chimera import free_ports

WORKER_PORTS_FROM = 25_000
# Before a turn, what the turn before has left is let end: until the side uses less of a core than this, or so long.
_QUIET_SHARE, _QUIET_LOOK_S, _QUIET_MOST_S = 0.2, 0.1, 5.0
_IDLE_MOST_S = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Sides that run, in the order in which they were given; and lines about those that did not start."""

    sides: tuple[Running, ...]
    worker_pids: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    def turns(self, number: int) -> Iterator[Running]:
        """Yield each side once, another one first in each round, each when all of them have become quiet.

        So have their workers: what one side still has them do would be taken from the next one's turn.
        """
        start = number % len(self.sides)
        for side in self.sides[start:] + self.sides[:start]:
            quiet([pid for other in self.sides for pid in other.pids])
            idle(side.workers)
            yield side


@contextmanager
def stage(peers: Sequence[Peer], count: int, spec: Spec, ports: Sequence[int] = ()) -> Iterator[Stage]:
    """Run the peers for the block, before `count` workers: those of Chimera if it is among them, else some of ours.

    With `ports` they are before the workers there, which are the caller's. Of the others, one that does not start is
    left out. Raises RuntimeError when Chimera or a worker does not.
    """
    with tempfile.TemporaryDirectory(prefix="chimera-bench-") as text, ExitStack() as stack:
        folder = Path(text)
        found: dict[str, Running] = {}
        left_out: list[str] = []
        ours = next((peer for peer in peers if isinstance(peer, Chimera)), None)
        if ours is not None:
            running = stack.enter_context(ours.running([0] * count, spec.slots, folder))
            found[ours.name] = running
            ports = running.workers
            pids = [child.pid for child in psutil.Process(running.pids[0]).children()]
        elif ports:
            pids = []
        else:
            ports = tuple(free_ports(count, WORKER_PORTS_FROM))
            pids = [one.pid for one in stack.enter_context(workers(list(ports), spec))]
        for peer in peers:
            if peer is not ours:
                try:
                    found[peer.name] = stack.enter_context(peer.running(ports, spec.slots, folder))
                except RuntimeError as error:
                    left_out.append(f"{peer.name} is left out: {error}")
        sides = tuple(found[peer.name] for peer in peers if peer.name in found)
        yield Stage(sides, tuple(pids), tuple(left_out))


def quiet(pids: Sequence[int]) -> None:
    """Wait until these processes have little to do; some seconds at most."""
    deadline = time.monotonic() + _QUIET_MOST_S
    while time.monotonic() < deadline:
        before, began = cpu_s(pids), time.monotonic()
        time.sleep(_QUIET_LOOK_S)  # noqa: TID251 - no event loop here
        if cpu_s(pids) - before < _QUIET_SHARE * (time.monotonic() - began):
            return


def idle(ports: Sequence[int]) -> None:
    """Wait until these workers have nothing to answer; half a minute at most."""
    deadline = time.monotonic() + _IDLE_MOST_S
    while any(under_way(port) for port in ports) and time.monotonic() < deadline:
        time.sleep(_QUIET_LOOK_S)  # noqa: TID251 - no event loop here


def under_way(port: int) -> int:
    """Return how many requests a worker has, 0 when nobody is there."""
    try:
        return int(httpx.get(f"http://127.0.0.1:{port}/bench", trust_env=False, timeout=10).json()["under_way"])
    except httpx.HTTPError:
        return 0


def ask(side: Running, prompt: str, connections: int, **how: object) -> Result:
    """Run a load against a side; `how` are fields of Load."""
    load = Load(side.urls, connections, prompt, headers=dict(side.headers), path=side.path, model=side.model,
                pids=side.pids, **how)  # type: ignore[arg-type] # fmt: skip
    return run_load(load)


def pin(pids: Iterable[int], cpus: Sequence[int]) -> None:
    """Let processes, with all threads that they have and will have, run on these cores only."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in list(Path(f"/proc/{pid}/task").iterdir()):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cpus)

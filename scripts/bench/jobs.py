"""Who is answered when by a worker of known speed: its slots, its models, its one line. Standard library only, as
worker.py. Pure but for the socket that a client has.
"""

import socket
from collections import deque
from dataclasses import dataclass, field

from scripts.bench.answers import Answer


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

    @property
    def under_way(self) -> int:
        """How many jobs there are, those that wait too."""
        return len(self.line) + sum(len(one.active) + len(one.waiting) for one in self.runners.values())

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

"""The load: what is asked over how many connections, and what came of it. `load_run` does it, in its own process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


# Of each request: its model, its prompt, and how many tokens its answer may have at most (None: not said).
Asks = tuple[tuple[str, str, int | None], ...]


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
    asks: Asks = ()
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
        alike = (self.model, self.prompt, None)
        model, prompt, most = self.asks[(number - 1) % len(self.asks)] if self.asks else alike
        prompt = prompt.replace("{n}", str(number))
        asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in self.path else {"prompt": prompt}
        said = {} if most is None else {"options": {"num_predict": most}}
        body = json.dumps({"model": model, "stream": self.stream, **asked, **said}).encode()
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


def run_load(load: Load) -> Result:
    """Run a load in a process of its own. Raises RuntimeError when that fails; answers that fail do not."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.load_run"],
        cwd=ROOT, input=json.dumps(asdict(load)), capture_output=True, text=True, timeout=load.limit_s + 60,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the load failed: {done.stderr.strip()[-500:]}")
    return Result(**json.loads(done.stdout))


def read_load(fields: dict[str, Any]) -> Load:
    """Return the load that JSON describes."""
    tuples = {name: tuple(fields[name]) for name in ("urls", "pids", "cpus")}
    tuples["asks"] = tuple(tuple(ask) for ask in fields["asks"])
    return Load(**(fields | tuples))

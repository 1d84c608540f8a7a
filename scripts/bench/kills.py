"""Workers that die: one is killed (SIGKILL) every ten seconds under a steady load, each in its turn.

Four workers of four slots; eight clients read streams of 50 to 400 tokens, 100 a second, and ask again when they have
their answer: half of the slots are taken, so that three workers are enough. A client whose request failed asks the next
one after a second. A worker that starts has no model loaded, and a load takes 1.5 s.

Chimera's own supervisor restarts its workers. Those of its peers stand in a loop, as a shell script's, that starts a
worker again a second after its end (less than the three seconds of the systemd unit that Ollama comes with). HAProxy
and nginx are set up for this as their manuals have it: checks, and another worker for a request that got no byte
(haproxy.py, peers.py). The plain proxy has nothing of the kind. Without a proxy a client has nobody else to turn to, so
there is no `direct`.
"""

import random
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import httpx
import psutil

from scripts.bench.answers import Answer
from scripts.bench.load import Asks, Result, quantile
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Running, installed
from scripts.bench.peers import Chimera, HaProxy, Nginx, Plain
from scripts.bench.stage import WORKER_PORTS_FROM, ask, quiet, stage
from scripts.bench.workers import Spec, answers, loops
from tests.fakes.chimera import free_ports, wait_for

WORKERS, SLOTS, CLIENTS = 4, 4, 8
EVERY_S, SECONDS = 10.0, 40.0
QUICK_EVERY_S, QUICK_SECONDS = 1.0, 2.0
TOKENS, QUICK_TOKENS = (50, 400), (20, 60)
TOKENS_PER_S, FIRST_S = 100.0, 0.1
LOAD_S = 1.5
RESTART_PAUSE_S = 1.0
AGAIN_S = 1.0
# Before its turn a side's workers are all there, and its proxy has had time to see it.
BACK_TIMEOUT_S, SETTLE_S = 60.0, 2.0
# More would take an hour.
MOST_ROUNDS = 3

Kill = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one side. `lost_unanswered`: requests that failed with no byte sent, `lost_midway`: after some.

    `answer_…`: from the asking to the whole answer, of those that were answered.
    """

    kills: int
    answered: int
    lost_unanswered: int
    lost_midway: int
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    answer_p50_s: float
    answer_p99_s: float
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One side: counts are sums over the rounds, times medians."""

    side: str
    kills: int
    answered: int
    lost_unanswered: int
    lost_midway: int
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    answer_p50_s: float
    answer_p99_s: float
    rounds_lost: tuple[int, ...]
    faults: tuple[str, ...] = ()


def rows_of(rounds: Sequence[Mapping[str, Sample]]) -> list[Row]:
    """Return a row for each side of its rounds, each a sample by side."""
    made: list[Row] = []
    for side in rounds[0]:
        mine = [turn[side] for turn in rounds]
        made.append(
            Row(
                side,
                kills=sum(one.kills for one in mine),
                answered=sum(one.answered for one in mine),
                lost_unanswered=sum(one.lost_unanswered for one in mine),
                lost_midway=sum(one.lost_midway for one in mine),
                first_byte_p50_ms=statistics.median(one.first_byte_p50_ms for one in mine),
                first_byte_p99_ms=statistics.median(one.first_byte_p99_ms for one in mine),
                answer_p50_s=statistics.median(one.answer_p50_s for one in mine),
                answer_p99_s=statistics.median(one.answer_p99_s for one in mine),
                rounds_lost=tuple(one.lost_unanswered + one.lost_midway for one in mine),
                faults=tuple(dict.fromkeys(fault for one in mine for fault in one.faults)),
            )
        )
    return made


def sample_of(result: Result, kills: int) -> Sample:
    """Return what one turn comes to."""
    return Sample(
        kills, result.requests, result.failed - result.broken, result.broken,
        first_byte_p50_ms=quantile(result.first_byte_s, 0.5) * 1e3,
        first_byte_p99_ms=quantile(result.first_byte_s, 0.99) * 1e3,
        answer_p50_s=quantile(result.took_s, 0.5),
        answer_p99_s=quantile(result.took_s, 0.99),
        faults=tuple(result.faults),
    )  # fmt: skip


def prompts(seed: int, tokens: tuple[int, int] = TOKENS, count: int = 500) -> Asks:
    """Return what is asked, for all sides alike: answers of so many tokens, from and to."""
    chance = random.Random(seed)  # noqa: S311 - lengths, not secrets
    asked = [Answer(chance.randint(*tokens), TOKENS_PER_S, 24, FIRST_S) for _ in range(count)]
    return tuple(("bench", one.prompt("n{n}"), None) for one in asked)


def measure(options: Options) -> Record:
    """Measure it, three rounds at most. Raises RuntimeError when Chimera or the workers do not start."""
    spec = Spec(SLOTS, loaded=(), load_s=LOAD_S)
    ours = Chimera(spec, {"REQUIRED_MODEL": "bench"})
    sides, left_out = installed([Nginx(bounded=False, retry=True), HaProxy(retry=True), Plain(), ours])
    for line in left_out:
        options.say(line)
    ports = free_ports(WORKERS, WORKER_PORTS_FROM)
    with loops(ports, spec, RESTART_PAUSE_S) as kept, stage([ours], WORKERS, spec) as own, \
            stage([side for side in sides if side is not ours], WORKERS, spec, ports) as others:  # fmt: skip
        chimera = own.sides[0]
        kills: dict[str, Kill] = {side.name: lambda number: kept[number].process.kill() for side in others.sides}
        kills[chimera.name] = lambda number: kill_child(chimera, number)
        on = [*others.sides, chimera]
        rounds = [_round(on, kills, number, options) for number in range(min(options.rounds, MOST_ROUNDS))]
        left_out += others.left_out
    rows = rows_of(rounds)
    for row in rows:
        options.say(f"{row.side:14} {row.kills} kills: {row.answered} answered, lost {row.lost_unanswered} before a "
                    f"byte and {row.lost_midway} midway; first byte {row.first_byte_p50_ms:.0f} ms (p99 "
                    f"{row.first_byte_p99_ms:.0f}), answer {row.answer_p50_s:.2f} s (p99 {row.answer_p99_s:.2f})"
                    )  # fmt: skip
    figures = {"rows": [asdict(row) for row in rows], "criteria": {}, "workers": WORKERS, "slots": SLOTS,
               "clients": CLIENTS, "every_s": QUICK_EVERY_S if options.quick else EVERY_S, "load_s": LOAD_S,
               "restart_pause_s": RESTART_PAUSE_S}  # fmt: skip
    return record("kills", options, sides, figures, left_out)


def _round(on: Sequence[Running], kills: Mapping[str, Kill], number: int, options: Options) -> dict[str, Sample]:
    turns: dict[str, Sample] = {}
    start = number % len(on)
    for side in (*on[start:], *on[:start]):
        wait_for(lambda side=side: _back(side), BACK_TIMEOUT_S)  # type: ignore[misc]
        _load_all(side)
        quiet([pid for other in on for pid in other.pids])
        turns[side.name] = one_turn(side, kills[side.name], number, quick=options.quick)
    return turns


def one_turn(side: Running, kill: Kill, seed: int, *, quick: bool) -> Sample:
    """Load a side while its workers are killed."""
    every_s, seconds = (QUICK_EVERY_S, QUICK_SECONDS) if quick else (EVERY_S, SECONDS)
    with killing(kill, SETTLE_S + every_s / 2, every_s, int(seconds / every_s)) as killed:
        asks = prompts(seed, QUICK_TOKENS if quick else TOKENS)
        result = ask(side, "", CLIENTS, asks=asks, stream=True, seconds=seconds, settle_s=SETTLE_S,
                     again_s=AGAIN_S, limit_s=seconds + 60)  # fmt: skip
    return sample_of(result, len(killed))


@contextmanager
def killing(kill: Kill, first_s: float, every_s: float, times: int) -> Iterator[list[int]]:
    """Kill one worker after the other while the block runs; yields the list of those that were."""
    over = threading.Event()
    killed: list[int] = []

    def run() -> None:
        for number in range(times):
            if over.wait(every_s if number else first_s):
                return
            kill(number % WORKERS)
            killed.append(number % WORKERS)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def kill_child(chimera: Running, number: int) -> None:
    """Kill one of Chimera's workers, if it lives."""
    for child in psutil.Process(chimera.pids[0]).children():
        with suppress(psutil.NoSuchProcess):
            if child.environ().get("OLLAMA_HOST", "").endswith(f":{chimera.workers[number]}"):
                child.kill()


def _back(side: Running) -> bool:
    """Say whether all workers of a side are there."""
    if side.name != "Chimera":
        return all(answers(port) for port in side.workers)
    rows = httpx.get(f"{side.url}/admin/instances", trust_env=False, timeout=10).raise_for_status().json()["instances"]
    return sum(row["state"] in ("IDLE", "BUSY") for row in rows) >= WORKERS


def _load_all(side: Running) -> None:
    """Have all workers load the model, as they have while nobody kills them."""
    for port in side.workers:
        asked = {"model": "bench", "prompt": "hi", "stream": False}
        url = f"http://127.0.0.1:{port}/api/generate"
        httpx.post(url, json=asked, trust_env=False, timeout=30).raise_for_status()

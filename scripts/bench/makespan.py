"""How long a batch takes: from the first request to the last answer of many that are asked at once.

Three scenes, each before four workers of four slots (Ollama's and Chimera's default), so that most of the batch waits:

- mixed: answers of very different length on equal workers. Seven of ten are short (a label, a title: 10 to 60 tokens)
  and say so (num_predict 64), the others long (a summary, code: 200 to 600) and say nothing, in random order.
- unequal: the same batch, but one of the workers is four times slower: an old card beside new ones.
- two models: half of the requests are for one model and half for another, in random order, and a worker holds one at a
  time, as a card does that is not large enough for both. As in Ollama, the request at the head of a worker's line waits
  until the other model is idle, and then for its own to be loaded. Every turn begins with nothing loaded anywhere.

A worker answers as one card does with a model of some billion parameters: 100 tokens a second for each slot. A load
takes 1.5 s, which is what real Ollama took here for the smallest model there is (270 million parameters, 1.4 to 1.9 s);
larger ones take longer. All of this is four times faster in the bench, so that it takes minutes: ratios stay as they
are. Each side gets the same batches, another one in each round. nginx passes on all that comes, and so does `direct`:
then it waits in the workers.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import httpx

from scripts.bench.answers import Answer
from scripts.bench.load import Asks, Result, quantile
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Peer, Running, installed
from scripts.bench.peers import Nginx, peers
from scripts.bench.stage import Stage, ask, stage
from scripts.bench.workers import Spec
from tests.fakes.chimera import wait_for

WORKERS, SLOTS = 4, 4
REQUESTS, QUICK_REQUESTS = 192, 32
FASTER, QUICK_FASTER = 4.0, 40.0
TOKENS_PER_S, FIRST_S = 100.0, 0.1
SHORT, LONG = (10, 60), (200, 600)
LONG_SHARE = 0.3
SHORT_SAY = 64
LOAD_S = 1.5
SLOW = 0.25
# Chimera asks its workers every ten seconds what they have loaded.
FORGET_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What is asked of which workers. `speeds` of the workers; `models` that the batch is for, one loaded at once."""

    name: str
    speeds: tuple[float, ...] = (1.0,)
    models: tuple[str, ...] = ("bench",)

    def spec(self, faster: float) -> Spec:
        """Return the workers."""
        if len(self.models) == 1:
            return Spec(SLOTS, speeds=self.speeds)
        return Spec(SLOTS, self.models, loaded=(), most_loaded=1, load_s=LOAD_S / faster, speeds=self.speeds)


SCENES = (
    Scene("mixed"),
    Scene("unequal", speeds=(1.0, 1.0, 1.0, SLOW)),
    Scene("two models", models=("bench-a", "bench-b")),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one side. `answer_p50_s`: from the asking to the whole answer; `loads`: of models, on all workers."""

    makespan_s: float
    answer_p50_s: float
    loads: int
    failed: int
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One side in one scene, medians of the rounds. `times_haproxy`: how many times HAProxy's makespan."""

    scene: str
    side: str
    makespan_s: float
    times_haproxy: float | None
    answer_p50_s: float
    loads: float
    failed: int
    rounds_makespan_s: tuple[float, ...]
    faults: tuple[str, ...] = ()


Turn = Mapping[str, Sample]


def batch(seed: int, count: int, models: Sequence[str], faster: float) -> Asks:
    """Return the model, the prompt and num_predict of each request, in the order in which they are asked."""
    chance = random.Random(seed)  # noqa: S311 - lengths, not secrets
    asks = []
    for number in range(count):
        least, most = LONG if chance.random() < LONG_SHARE else SHORT
        answer = Answer(chance.randint(least, most), TOKENS_PER_S * faster, first_s=FIRST_S / faster)
        asks.append((chance.choice(models), answer.prompt(f"n{number}"), SHORT_SAY if most == SHORT[1] else None))
    return tuple(asks)


def rows_of(scene: str, rounds: Sequence[Turn]) -> list[Row]:
    """Return a row for each side of its rounds, each a sample by side."""
    made: list[Row] = []
    for side in rounds[0]:
        mine = [turn[side] for turn in rounds]
        made.append(
            Row(
                scene, side,
                makespan_s=statistics.median(one.makespan_s for one in mine),
                times_haproxy=ratio(_makespans(rounds), side, "HAProxy"),
                answer_p50_s=statistics.median(one.answer_p50_s for one in mine),
                loads=statistics.median(one.loads for one in mine),
                failed=sum(one.failed for one in mine),
                rounds_makespan_s=tuple(one.makespan_s for one in mine),
                faults=tuple(dict.fromkeys(fault for one in mine for fault in one.faults)),
            )
        )  # fmt: skip
    return made


def _makespans(rounds: Sequence[Turn]) -> dict[str, list[float]]:
    return {side: [turn[side].makespan_s for turn in rounds] for side in rounds[0]}


def ratio(rounds_s: Mapping[str, Sequence[float]], side: str, other: str) -> float | None:
    """Return how many times another side's makespan a side's is (median of each round's), None without the other."""
    if other not in rounds_s:
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(rounds_s[side], rounds_s[other], strict=True))


def criteria_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the criteria (criteria.py) ask of these rows; a side that lost requests proves nothing.

    Against the best peer: the peer next to which Chimera looks worst.
    """
    found: dict[str, float] = {}
    for name, scene in (("makespan_two_models", "two models"), ("makespan_unequal", "unequal")):
        good = {row.side: row.rounds_makespan_s for row in rows if row.scene == scene and not row.failed}
        against = ["HAProxy"] if name == "makespan_two_models" else [side for side in good if side != "Chimera"]
        if "Chimera" in good:
            ratios = [times for side in against if (times := ratio(good, "Chimera", side)) is not None]
            found |= {name: max(ratios)} if ratios else {}
    return found


def measure(options: Options) -> Record:
    """Measure it. Raises RuntimeError when Chimera or the workers do not start."""
    faster = QUICK_FASTER if options.quick else FASTER
    rows: list[Row] = []
    sides, left_out = _sides(SCENES[0].spec(faster))
    for line in left_out:
        options.say(line)
    for scene in SCENES:
        spec = scene.spec(faster)
        with stage(_sides(spec)[0], WORKERS, spec) as on:
            left_out += on.left_out
            rows += _rows(on, options, scene, faster)
    figures = {"rows": [asdict(row) for row in rows], "criteria": criteria_of(rows), "workers": WORKERS,
               "slots": SLOTS, "requests": REQUESTS, "faster": faster, "load_s": LOAD_S, "slow": SLOW}  # fmt: skip
    return record("makespan", options, sides, figures, left_out)


def _sides(spec: Spec) -> tuple[list[Peer], list[str]]:
    return installed([Nginx(bounded=False) if isinstance(peer, Nginx) else peer for peer in peers(spec)])


def _rows(on: Stage, options: Options, scene: Scene, faster: float) -> list[Row]:
    count = QUICK_REQUESTS if options.quick else REQUESTS
    rounds: list[dict[str, Sample]] = []
    for number in range(options.rounds):
        asks = batch(number, count, scene.models, faster)
        rounds.append({side.name: one_turn(side, scene, asks) for side in on.turns(number)})
    order = [side.name for side in on.sides]
    rows = sorted(rows_of(scene.name, rounds), key=lambda row: order.index(row.side))
    for row in rows:
        times = f", {row.times_haproxy:.2f} times HAProxy's" if row.times_haproxy is not None else ""
        options.say(f"{row.scene:10} {row.side:14} {row.makespan_s:6.2f} s{times}, half of the answers in "
                    f"{row.answer_p50_s:.2f} s, {row.loads:.0f} loads"
                    + (f", {row.failed} failed: {row.faults[0]}" if row.failed else ""))  # fmt: skip
    return rows


def one_turn(side: Running, scene: Scene, asks: Asks) -> Sample:
    """Have a side answer a batch, asked all at once."""
    if len(scene.models) > 1:
        forget(side, scene.models)
    before = loads_of(side.workers)
    result = ask(side, "", len(asks), asks=asks, limit_s=300.0)
    return sample_of(result, loads_of(side.workers) - before)


def sample_of(result: Result, loads: int) -> Sample:
    """Return what one turn comes to."""
    return Sample(result.seconds, quantile(result.took_s, 0.5), loads, result.failed, tuple(result.faults))


def forget(side: Running, models: Sequence[str]) -> None:
    """Have every worker unload all models, and Chimera notice it."""
    for port in side.workers:
        for model in models:
            asked = {"model": model, "keep_alive": 0, "stream": False}
            url = f"http://127.0.0.1:{port}/api/generate"
            httpx.post(url, json=asked, trust_env=False, timeout=10).raise_for_status()
    if side.name == "Chimera":
        wait_for(lambda: not _believed(side.url), FORGET_TIMEOUT_S)


def _believed(url: str) -> list[str]:
    """Return the models of which Chimera believes that they are loaded somewhere."""
    said = httpx.get(f"{url}/admin/instances", trust_env=False, timeout=10).raise_for_status().json()
    return [model for worker in said["instances"] for model in worker["models"]]


def loads_of(ports: Sequence[int]) -> int:
    """Return how many models these workers have loaded since they started."""
    urls = [f"http://127.0.0.1:{port}/bench" for port in ports]
    return sum(int(httpx.get(url, trust_env=False, timeout=10).json()["loads"]) for url in urls)

"""Conversations with real Ollama: how soon later turns begin to be answered, by Chimera and by HAProxy leastconn.

Several conversations go on at once, as an agent's do that works on several things in step: each begins with a page of
text (500 words), then asks short questions about it, and all ask their next one when all are answered. Two scenes: two
workers of two slots, where chance alone meets the right worker every other time, and four workers of one slot, as on a
machine with four cards.
Ollama keeps what it computed of the last prompts, so a turn is quick where the turns before it were answered, and slow
elsewhere. (Each asking again at once by itself, there would be nothing to choose: the only free slot would be the one
that the same conversation has just left.) A worker computes in one thread, as it would have a card of its own: with
Ollama's default each has as many as there are cores, and the workers would mostly wait for each other's.

Needs the CPU build of Ollama (scripts/embedded.py install).
"""

import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts.bench import haproxy as peer
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peers import Chimera, HaProxy
from scripts.bench.workers import Spec
from tests.fakes.chimera import chimera, free_ports

MODEL = "gemma3:270m"
# Workers, slots of each, and the criterion (criteria.py) that it decides.
SCENES = ((2, 2, "turns_times_sooner_of_two"), (4, 1, "turns_times_sooner_of_four"))
TALKS, TURNS, FIRST_WORDS = 4, 5, 500
PEER_PORT_FROM = 28_000

# The context is enough for some thousand words.
OPTIONS = {"num_ctx": 4096, "num_thread": 1, "seed": 1}
ANSWER_TOKENS = 16
# The words of each question after the first.
QUESTION_WORDS = 12
TIMEOUT_S = 600.0
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
]


@dataclass(slots=True)
class Talk:
    """One conversation: seconds to the first token of each turn, and who answered (if that is said)."""

    first_token_s: list[float] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of conversations took."""

    talks: tuple[Talk, ...]
    total_s: float

    @property
    def later_s(self) -> list[float]:
        """Seconds to the first token of every turn but the first."""
        return [seconds for talk in self.talks for seconds in talk.first_token_s[1:]]


def median_ms(rounds: Sequence[Round]) -> float:
    """Return the median time to the first token of later turns, in milliseconds."""
    return statistics.median(seconds for one in rounds for seconds in one.later_s) * 1000


def talk(url: str, model: str, turns: int, words: int, seed: int, step: threading.Barrier, into: Talk) -> None:
    """Hold one conversation, in step with the others; what it met goes into `into`."""
    chance = random.Random(seed)  # noqa: S311 - words, not secrets
    messages: list[dict[str, str]] = []
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
            for turn in range(turns):
                said = " ".join(chance.choices(WORDS, k=words if turn == 0 else QUESTION_WORDS))
                messages.append({"role": "user", "content": f"{said}?"})
                step.wait(TIMEOUT_S)
                messages.append({"role": "assistant", "content": _turn(client, model, messages, into)})
    except (httpx.HTTPError, ValueError, threading.BrokenBarrierError) as error:
        step.abort()
        into.fault = f"{type(error).__name__}: {error}"


def _turn(client: httpx.Client, model: str, messages: list[dict[str, str]], into: Talk) -> str:
    body = {"model": model, "messages": messages,
            "options": OPTIONS | {"num_predict": ANSWER_TOKENS}}  # fmt: skip
    began, first, text, done = time.monotonic(), None, "", False
    with client.stream("POST", "/api/chat", json=body) as answer:
        for line in answer.iter_lines():
            first = first or time.monotonic() - began
            part = json.loads(line)
            if "error" in part:
                raise ValueError(str(part["error"]))
            text += part.get("message", {}).get("content", "")
            done = done or bool(part.get("done"))
        into.workers.append(answer.headers.get("x-chimera-worker", ""))
    if first is None or not done:
        raise ValueError(f"no complete answer (status {answer.status_code})")
    into.first_token_s.append(first)
    return text or "yes"


def run_round(url: str, model: str, *, talks: int, turns: int, words: int, seed: int) -> Round:
    """Hold all conversations of a round at once. Raises RuntimeError when one of them was not answered."""
    held = [Talk() for _ in range(talks)]
    step = threading.Barrier(talks)
    threads = [
        threading.Thread(target=talk, args=(url, model, turns, words, seed * 1000 + number, step, one))
        for number, one in enumerate(held)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults := [one.fault for one in held if one.fault]:
        own = [fault for fault in faults if not fault.startswith("BrokenBarrier")]
        raise RuntimeError(f"{url}: {(own or faults)[0]}")
    return Round(tuple(held), time.monotonic() - began)


def warm_up(ports: Sequence[int], model: str) -> None:
    """Have each worker load the model as the conversations need it."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False,
            "options": OPTIONS | {"num_predict": 1}}  # fmt: skip
    for port in ports:
        url = f"http://127.0.0.1:{port}/api/chat"
        httpx.post(url, json=body, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


@dataclass(frozen=True, slots=True)
class Sides:
    """The rounds of both sides, which took turns."""

    theirs: list[Round]
    ours: list[Round]

    @property
    def times(self) -> float:
        """How many times sooner Chimera's first token came: the median of the rounds' ratios."""
        pairs = zip(self.theirs, self.ours, strict=True)
        return statistics.median(median_ms([theirs]) / median_ms([ours]) for theirs, ours in pairs)


def compare(
    rounds: int, say: Callable[[str], None], *, workers: int = SCENES[0][0], slots: int = SCENES[0][1],
    talks: int = TALKS, turns: int = TURNS, words: int = FIRST_WORDS,
) -> Sides:  # fmt: skip
    """Hold conversations through HAProxy and through Chimera, in turn, before the same workers.

    Raises NotInstalled without HAProxy, RuntimeError when one was not answered.
    """
    name, both = peer.version(), Sides([], [])
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        settings = {"OLLAMA_BIN": "", "WORKERS": f"cpu={workers}", "WORKER_SLOTS": str(slots), "CANARY_AFTER_S": "0"}
        with chimera(folder, **settings, OLLAMA_MODELS=f"{folder}/models") as made:
            made.start().ready(workers)
            ports = [int(row["port"]) for row in made.instances()]
            warm_up(ports, MODEL)
            (port,) = free_ports(1, PEER_PORT_FROM)
            with peer.haproxy(port, ports, slots, folder) as url:
                for number in range(rounds):
                    for side, where in ((both.theirs, url), (both.ours, made.url)):
                        seed = number * 2 + (side is both.ours)  # nobody finds the other's prompts in a cache
                        side.append(run_round(where, MODEL, talks=talks, turns=turns, words=words, seed=seed))
                        say(f"round {number + 1}: {'Chimera' if side is both.ours else name}: "
                            f"{median_ms(side[-1:]):.0f} ms, all in {side[-1].total_s:.1f} s")  # fmt: skip
    return both


def measure(options: Options) -> Record:
    """Measure it. Raises NotInstalled, RuntimeError."""
    rounds, talks = (1, 2) if options.quick else (options.rounds, TALKS)
    scenes: list[dict[str, Any]] = []
    criteria: dict[str, float] = {}
    for workers, slots, criterion in SCENES:
        options.say(f"{workers} workers, slots of each: {slots}")
        both = compare(rounds, options.say, workers=workers, slots=slots, talks=talks)
        criteria[criterion] = both.times
        sides = {"HAProxy": _figures(both.theirs), "Chimera": _figures(both.ours)}
        scenes.append({"workers": workers, "slots": slots, "sides": sides, "times_sooner": both.times})
    figures = {"scenes": scenes, "model": MODEL, "talks": talks, "turns": TURNS, "words": FIRST_WORDS,
               "criteria": criteria}  # fmt: skip
    return record("conversations", options, [HaProxy(), Chimera(Spec(SCENES[0][1]))], figures)


def _figures(held: Sequence[Round]) -> dict[str, Any]:
    return {
        "median_ms": median_ms(held),
        "longest_ms": max(seconds for one in held for seconds in one.later_s) * 1e3,
        "rounds_s": [one.total_s for one in held],
        "rounds_median_ms": [median_ms([one]) for one in held],
    }

"""The first part: what reads bytes, tried in this process with hypothesis.

Three things must hold of each target: its own properties (`check`), an end within HANG_S, and work in proportion to
the input: any small thing over and over is read within LINEAR_S of CPU time a megabyte, and in bounded memory.
"""

import random
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from scripts.fuzz import inputs, requests
from scripts.fuzz import targets_framing as framing
from scripts.fuzz import targets_gateway as gateway
from scripts.fuzz import targets_supervisor as supervisor
from scripts.fuzz.corpus import TOKENS, Notebook, kept, mutated
from scripts.fuzz.tally import Clock, Tally
from scripts.fuzz.targets_answers import check_answer

EXAMPLES = 200  # before the next target has its turn
HANG_S = 30.0
MIB = 1024**2
# What reading a megabyte, or anything at all, may take on a slow machine; more than that is no longer linear.
LINEAR_S, AT_LEAST_S = 5.0, 0.75
# Python objects for every few bytes of JSON, and what h11's patterns take for a head of 128 KiB; more than that is a
# copy for each of many steps.
MEMORY_TIMES, MEMORY_SPARE_BYTES = 100, 48 * MIB
TRACED_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes. `long_bytes`: how long its input may be, a megabyte where it has no bound."""

    check: Callable[[bytes], None]
    inputs: st.SearchStrategy[bytes]
    long_bytes: int = MIB


TARGETS: dict[str, Target] = {
    "ask": Target(gateway.check_ask, inputs.BODIES),
    "pull": Target(gateway.check_pull, inputs.BODIES, 8 * 1024),
    "options": Target(gateway.check_options, inputs.BODIES),
    "said": Target(gateway.check_said, inputs.SAID),
    "headers": Target(gateway.check_headers, inputs.HEADS, 8 * 1024),
    "auth": Target(gateway.check_auth, inputs.HEADS, 8 * 1024),
    "forwarded": Target(gateway.check_forwarded, inputs.PROXIED, 8 * 1024),
    "admin": Target(gateway.check_admin, inputs.ADMIN),
    "prefix": Target(gateway.check_prefix, inputs.NOISE),
    "ps": Target(gateway.check_ps, inputs.BODIES),
    "errors": Target(gateway.check_errors, inputs.NOISE),
    "answer": Target(check_answer, inputs.ANSWERS),
    "framing": Target(framing.check_framing, st.one_of(requests.requests(), requests.SPOILT)),
    "who": Target(framing.check_who, inputs.HEADS, 8 * 1024),
    "ending": Target(framing.check_ending, inputs.SAID, 8 * 1024),
    "settings": Target(supervisor.check_settings, inputs.DOTENV, 8 * 1024),
    "workers-log": Target(supervisor.check_workers_log, inputs.LOGGED, 64 * 1024),
    "proc": Target(supervisor.check_proc, inputs.NOISE, 8 * 1024),
    "cgroup": Target(supervisor.check_cgroup, inputs.KERNEL, 8 * 1024),
    "probe": Target(supervisor.check_probe, inputs.BODIES),
    "pull-line": Target(supervisor.check_pull_line, inputs.BODIES),
    "saved": Target(supervisor.check_saved, inputs.BODIES),
}


class Hang(BaseException):
    """A try does not come back. No Exception: nothing on its way may take it for one of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hang in the block when it lasts longer. In the main thread only."""

    def on_alarm(number: int, frame: object) -> None:
        del number, frame
        raise Hang(f"it did not come back within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left_s)  # a test's own limit, perhaps


class Failed(Exception):
    """A try has failed; made of whatever it raised, so that hypothesis takes it for a failure."""


def tried(target: Target, data: bytes) -> None:
    """Try one input. Raises Failed."""
    try:
        with at_most(HANG_S):
            target.check(data)
    except (Exception, Hang) as error:
        raise Failed(f"{type(error).__name__}: {_leaf(error)}"[:500]) from error


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def grown(unit: bytes, sample: bytes, length: int) -> bytes:
    """Return a long input: a sample with its middle filled up with a unit over and over."""
    middle = len(sample) // 2
    return sample[:middle] + unit * (max(0, length - len(sample)) // max(1, len(unit))) + sample[middle:]


def tried_grown(target: Target, data: bytes) -> None:
    """Try a long input. Raises Failed, also when that takes more than its length explains."""
    began = time.process_time()
    tried(target, data)
    spent_s = time.process_time() - began
    if spent_s > max(AT_LEAST_S, LINEAR_S * len(data) / MIB):
        raise Failed(f"{spent_s:.1f} s of CPU time for {len(data)} bytes")


def tried_traced(target: Target, data: bytes) -> None:
    """Try an input and see how much memory that takes at once. Raises Failed."""
    tracemalloc.start()
    try:
        tried(target, data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak_bytes > MEMORY_TIMES * len(data) + MEMORY_SPARE_BYTES:
        raise Failed(f"{peak_bytes // MIB} MiB of memory for {len(data)} bytes")


class Parsers:
    """The part: each target in turn until the time is spent."""

    def __init__(self, notebook: Notebook, chance: random.Random) -> None:
        self.tally = Tally("parsers")
        self._notebook = notebook
        self._chance = chance

    def run(self, clock: Clock) -> None:
        """Try until the clock is over. A target with a finding is not tried further: it would be found again."""
        for name, target in TARGETS.items():
            for file, data in kept(name):
                self._one(name, partial(tried, target, data), data, f"tests/corpus/{name}/{file}")
        while not clock.over:
            for name, target in TARGETS.items():
                if clock.left_s > 0 and all(finding.target != name for finding in self.tally.findings):
                    self._slice(name, target, clock)
                    self._long(name, target)

    def _slice(self, name: str, target: Target, clock: Clock) -> None:
        """Let hypothesis try one target for a while."""
        samples = [data for _, data in kept(name)] or [b""]
        last = b""

        @seed(self._chance.getrandbits(64))
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.generate, Phase.shrink], print_blob=False)  # fmt: skip
        @given(st.one_of(target.inputs, mutated(samples)))
        def attempt(data: bytes) -> None:
            nonlocal last
            if clock.over:
                return
            self._notebook.trying(name, data)
            self.tally.tried(name)
            try:
                tried(target, data)
            except Failed:
                last = data
                raise

        self._one(name, attempt, lambda: last, None)

    def _long(self, name: str, target: Target) -> None:
        """Try some long inputs."""
        samples = [data for _, data in kept(name)] or [b""]
        length = target.long_bytes
        unit = self._chance.choice([*TOKENS[1:], *samples]) or b"a"
        data = grown(unit, self._chance.choice(samples), length)
        self._notebook.trying(name, data)
        self.tally.tried(name)
        self._one(name, partial(tried_grown, target, data), data, f"{unit[:60]!r} over and over, {length} bytes")
        data = grown(unit, self._chance.choice(samples), min(length, TRACED_BYTES))
        self.tally.tried(name)
        self._one(name, partial(tried_traced, target, data), data, f"{unit[:60]!r} over and over, traced")

    def _one(self, name: str, attempt: Callable[[], None], data: bytes | Callable[[], bytes], what: str | None) -> None:
        try:
            attempt()
        except (Failed, BaseExceptionGroup) as error:
            known = data() if callable(data) else data
            path = self._notebook.found(name, known)
            self.tally.found(
                name, str(_leaf(error)), f"{what or repr(known[:300])}\npython -m scripts.fuzz --try {path}"
            )

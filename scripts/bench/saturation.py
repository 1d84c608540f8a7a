"""The highest rate of chunks that one core relays in time: 99 of 100 less than 10 ms after the worker sent them.

64 streams (and 256), ever faster; a rate that was too much is tried once more. The proxy has one core to itself;
workers and load share the others. What workers and load are late by themselves is in the delay, so `direct` says where
the measurement itself ends.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from scripts.bench.answers import Answer
from scripts.bench.guests import guests
from scripts.bench.load import quantile
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Running, installed
from scripts.bench.peers import peers
from scripts.bench.stage import Stage, ask, pin, stage
from scripts.bench.workers import Spec

WORKERS, SLOTS = 2, 256
STREAMS = (64, 256)
MOST_DELAY_S = 0.010
# What counts as keeping up: so much of the rate asked for has come.
LEAST_SHARE = 0.95
FIRST_RATE = 2_000.0
MOST_RATE = 60_000.0
RAMP, NEAR = 1.5, 1.1


@dataclass(frozen=True, slots=True)
class Step:
    """One rate that was tried: chunks a second, asked for and relayed; delay from the worker's sending."""

    asked_per_s: float
    per_s: float
    delay_p50_ms: float
    delay_p99_ms: float
    failed: int

    @property
    def good(self) -> bool:
        """Whether the proxy kept up."""
        in_time = self.delay_p99_ms < MOST_DELAY_S * 1e3
        return in_time and self.failed == 0 and self.per_s >= LEAST_SHARE * self.asked_per_s


@dataclass(frozen=True, slots=True)
class Row:
    """One side: the highest rate it kept up with (median over the rounds), the rounds, and all steps."""

    streams: int
    side: str
    chunks_per_s: float
    times_haproxy: float | None
    rounds_chunks_per_s: tuple[float, ...]
    steps: tuple[Step, ...]


def next_rate(tried: Mapping[float, bool], first: float) -> float | None:
    """Return the rate to try next, None: known well enough. `tried` says of each rate whether it was kept up with.

    Up by RAMP from `first` (down while it is too much), then halfway between the highest good rate and the lowest
    bad one above it, until these are within NEAR of each other.
    """
    bad = min((rate for rate, good in tried.items() if not good), default=None)
    good = max((rate for rate, fine in tried.items() if fine and (bad is None or rate < bad)), default=None)
    if bad is None:
        rate = first if good is None else good * RAMP
        return rate if rate <= MOST_RATE else None
    if good is None:
        return bad / RAMP if bad > 100 else None
    return (good * bad) ** 0.5 if bad / good > NEAR else None


def best(steps: Sequence[Step]) -> float:
    """Return the highest rate that was kept up with before the first that never was; 0 when none was."""
    kept = {step.asked_per_s for step in steps if step.good}
    bad = min((step.asked_per_s for step in steps if step.asked_per_s not in kept), default=float("inf"))
    return max((step.per_s for step in steps if step.good and step.asked_per_s < bad), default=0.0)


def measure(options: Options) -> Record:
    """Measure it. Raises RuntimeError when there are less than two cores, or Chimera does not start."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("needs two cores: one for the proxy, one for workers and load")
    spec = Spec(SLOTS)
    sides, left_out = installed(peers(spec))
    more, missing = guests(options.guests, options.say)
    sides = [*sides[:-1], *more, sides[-1]]
    rows: list[Row] = []
    with stage(sides, WORKERS, spec) as on:
        pin(on.worker_pids, cores[1:])
        for side in on.sides:
            pin(side.pids, cores[:1])
        for count in STREAMS[:1] if options.quick else STREAMS:
            rows += _rows(on, options, count, tuple(cores[1:]))
    figures = {"rows": [asdict(row) for row in rows], "criteria": criteria_of(rows), "workers": WORKERS,
               "most_delay_ms": MOST_DELAY_S * 1e3}  # fmt: skip
    return record("saturation", options, sides, figures, [*left_out, *missing, *on.left_out])


def _rows(on: Stage, options: Options, streams: int, cores: tuple[int, ...]) -> list[Row]:
    found: dict[str, list[float]] = {side.name: [] for side in on.sides}
    steps: dict[str, list[Step]] = {side.name: [] for side in on.sides}
    for number in range(options.rounds):
        for side in on.turns(number):
            before = found[side.name]
            # around what it was before, if that is known
            first = statistics.median(before) / RAMP**0.5 if before and all(before) else FIRST_RATE
            made = climb(side, streams, first, cores, 0.4 if options.quick else 1.2)
            found[side.name].append(best(made))
            steps[side.name] += made
            options.say(f"{streams} streams, round {number + 1}, {side.name}: {best(made):.0f} chunks/s")
    return rows_of(streams, found, steps)


def rows_of(streams: int, found: Mapping[str, Sequence[float]], steps: Mapping[str, Sequence[Step]]) -> list[Row]:
    """Return a row for each side of the rates that it had in each round."""
    made: list[Row] = []
    for side, rates in found.items():
        other = found.get("HAProxy", ())
        ratios = [mine / theirs for mine, theirs in zip(rates, other, strict=False) if theirs]
        times = statistics.median(ratios) if ratios else None
        made.append(Row(streams, side, statistics.median(rates), times, tuple(rates), tuple(steps[side])))
    return made


def climb(side: Running, streams: int, first: float, cores: tuple[int, ...], seconds: float) -> list[Step]:
    """Try ever higher rates, and then those between, until the highest good one is known."""
    tried: dict[float, bool] = {}
    steps: list[Step] = []
    while (rate := next_rate(tried, first)) is not None:
        step = one_step(side, streams, rate, cores, seconds)
        if not step.good:  # what else the machine does for a moment is not the proxy's: once more
            steps.append(step)
            step = one_step(side, streams, rate, cores, seconds)
        tried[rate] = step.good
        steps.append(step)
    return steps


def one_step(side: Running, streams: int, rate: float, cores: tuple[int, ...], seconds: float) -> Step:
    """Relay so many chunks a second in all, and see how late they come."""
    each = rate / streams
    spread_s = settle_s = 0.3
    answer = Answer(int(each * (spread_s + settle_s + seconds) * 3) + 10, each, 24)
    result = ask(side, answer.prompt("n{n}"), streams, stream=True, spread_s=spread_s, settle_s=settle_s,
                 seconds=seconds, cut=True, cpus=cores)  # fmt: skip
    return Step(rate, result.chunks / result.seconds, quantile(result.delay_s, 0.5) * 1e3,
                quantile(result.delay_s, 0.99) * 1e3, result.failed)  # fmt: skip


def criteria_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the criteria (criteria.py) ask of these rows."""
    ours = [row.chunks_per_s for row in rows if (row.streams, row.side) == (64, "Chimera")]
    return {"chunks_per_s": ours[0]} if ours else {}

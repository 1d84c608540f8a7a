"""What it costs: CPU of the proxy per unary request and per streamed chunk, and what it adds to the first byte.

Two workers. Unary: 16 kept connections, each asking again at once. Streams: 1 to 256 at once, of 50 chunks a second
each, counted while all are under way. Figures are medians over the rounds; ratios are taken within each round.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from scripts.bench.answers import Answer
from scripts.bench.guests import guests
from scripts.bench.load import Result, quantile
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Running, installed
from scripts.bench.peers import peers
from scripts.bench.stage import Stage, ask, stage
from scripts.bench.workers import Spec

WORKERS, SLOTS = 2, 256
UNARY_CONNECTIONS = 16
STREAMS = (1, 16, 64, 256)
RATE = 50.0
UNIT = {"unary": "request", "stream": "chunk"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one side. `cpu_us`: of the proxy, per request or chunk."""

    cpu_us: float
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    per_s: float
    failed: int
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `size`: connections or streams at once.

    `times_haproxy`: how many times HAProxy's CPU, None without it. `added_…`: beyond what the same takes without a
    proxy. `rounds_cpu_us`: each round's, in order.
    """

    what: str
    size: int
    side: str
    cpu_us: float
    times_haproxy: float | None
    added_first_byte_p50_ms: float
    added_first_byte_p99_ms: float
    per_s: float
    failed: int
    rounds_cpu_us: tuple[float, ...]
    faults: tuple[str, ...] = ()


Turn = Mapping[str, Sample]


def rows_of(what: str, size: int, rounds: Sequence[Turn]) -> list[Row]:
    """Return a row for each side of what its rounds, each a sample by side, have in the middle."""
    made: list[Row] = []
    for side in rounds[0]:
        mine = [turn[side] for turn in rounds]
        faults = tuple(dict.fromkeys(fault for one in mine for fault in one.faults))
        made.append(
            Row(
                what, size, side,
                cpu_us=statistics.median(one.cpu_us for one in mine),
                times_haproxy=ratio(rounds, side, "HAProxy"),
                added_first_byte_p50_ms=_added(rounds, side, lambda one: one.first_byte_p50_ms),
                added_first_byte_p99_ms=_added(rounds, side, lambda one: one.first_byte_p99_ms),
                per_s=statistics.median(one.per_s for one in mine),
                failed=sum(one.failed for one in mine),
                rounds_cpu_us=tuple(one.cpu_us for one in mine),
                faults=faults,
            )
        )  # fmt: skip
    return made


def ratio(rounds: Sequence[Turn], side: str, other: str) -> float | None:
    """Return how many times another side's CPU a side takes (median of each round's), None without the other."""
    ratios = [turn[side].cpu_us / turn[other].cpu_us for turn in rounds if other in turn and turn[other].cpu_us > 0]
    return statistics.median(ratios) if ratios else None


def _added(rounds: Sequence[Turn], side: str, of: Callable[[Sample], float]) -> float:
    """Return the median of what a side has beyond direct in the same round; its own where there is no direct."""
    return statistics.median(of(turn[side]) - (of(turn["direct"]) if "direct" in turn else 0.0) for turn in rounds)


def sample_of(result: Result, count: int) -> Sample:
    """Return what one turn comes to; `count` is of what it was about, and of nothing at all it has failed."""
    faults = tuple(result.faults) if count else (*result.faults, "nothing came while it was counted")
    return Sample(
        cpu_us=result.cpu_s / max(1, count) * 1e6,
        first_byte_p50_ms=quantile(result.first_byte_s, 0.5) * 1e3,
        first_byte_p99_ms=quantile(result.first_byte_s, 0.99) * 1e3,
        per_s=count / result.seconds,
        failed=result.failed if count else max(1, result.failed),
        faults=faults,
    )


def unary(side: Running, connections: int, seconds: float) -> Sample:
    """Ask for short answers over kept connections."""
    result = ask(side, Answer(size=200).prompt("n{n}"), connections, seconds=seconds)
    return sample_of(result, result.requests)


def streams(side: Running, count: int, seconds: float) -> Sample:
    """Read streams, and count while all are under way."""
    spread_s, settle_s = (0.5 if count > 1 else 0.0), 0.3
    answer = Answer(int(RATE * (spread_s + settle_s + seconds) * 2) + 50, RATE, 24)
    result = ask(side, answer.prompt("n{n}"), count, stream=True, seconds=seconds, spread_s=spread_s,
                 settle_s=settle_s, cut=True)  # fmt: skip
    return sample_of(result, result.chunks)


def measure(options: Options) -> Record:
    """Measure it. Raises RuntimeError when Chimera or the workers do not start."""
    spec = Spec(SLOTS)
    sides, left_out = installed(peers(spec))
    more, missing = guests(options.guests, options.say)
    sides = [*sides[:-1], *more, sides[-1]]
    seconds = 0.3 if options.quick else 1.2
    sizes = STREAMS[:2] if options.quick else STREAMS
    for line in left_out + missing:
        options.say(line)
    with stage(sides, WORKERS, spec) as on:
        rows = _turns(on, options, "unary", UNARY_CONNECTIONS, lambda side: unary(side, UNARY_CONNECTIONS, seconds))
        for size in sizes:
            rows += _turns(on, options, "stream", size, lambda side, size=size: streams(side, size, seconds))  # type: ignore[misc]
    figures = {"rows": [asdict(row) for row in rows], "criteria": criteria_of(rows), "workers": WORKERS,
               "slots": SLOTS, "rate": RATE}  # fmt: skip
    return record("cost", options, sides, figures, [*left_out, *missing, *on.left_out])


def _turns(on: Stage, options: Options, what: str, size: int, turn: Callable[[Running], Sample]) -> list[Row]:
    rounds = [{side.name: turn(side) for side in on.turns(number)} for number in range(options.rounds)]
    order = [side.name for side in on.sides]
    rows = sorted(rows_of(what, size, rounds), key=lambda row: order.index(row.side))
    for row in rows:
        times = f", {row.times_haproxy:.1f} times HAProxy's" if row.times_haproxy is not None else ""
        options.say(f"{what} {size:>3} {row.side:14} {row.cpu_us:8.0f} µs a {UNIT[what]}{times}, {row.per_s:.0f}/s"
                    f", first byte {row.added_first_byte_p50_ms:+.1f} ms (p99 {row.added_first_byte_p99_ms:+.1f})"
                    + (f", {row.failed} failed: {row.faults[0]}" if row.failed else ""))  # fmt: skip
    return rows


def criteria_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the criteria (criteria.py) ask of these rows, as far as it was measured."""
    by = {(row.what, row.size, row.side): row for row in rows}
    found: dict[str, float] = {}
    ours, plain = by.get(("stream", 64, "Chimera")), by.get(("stream", 64, "Quart + httpx"))
    if ours is not None and ours.times_haproxy is not None:
        found["chunk_times_haproxy"] = ours.times_haproxy
    if ours is not None and plain is not None:
        ratios = [theirs / mine for theirs, mine in zip(plain.rounds_cpu_us, ours.rounds_cpu_us, strict=True)]
        found["chunk_times_less_than_plain"] = statistics.median(ratios)
    request = by.get(("unary", UNARY_CONNECTIONS, "Chimera"))
    if request is not None and request.times_haproxy is not None:
        found["request_times_haproxy"] = request.times_haproxy
    return found

"""How Chimera's cost grows, HAProxy next to it: with the number of workers, and with the length of the queue.

Workers: short answers over 16 kept connections, then 64 streams of 50 chunks a second, before 2 to 256 workers. Queue:
short answers of 100 ms from 16 slots, while 0 to 10,000 more requests wait all the time (each that is answered is asked
again); CPU of everything per answer. What watching the workers costs is in it.
"""

import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict

from gateway.connections import bound_by_descriptors
from scripts.bench.answers import Answer
from scripts.bench.cost import UNARY_CONNECTIONS, Row, Sample, rows_of, sample_of, streams, unary
from scripts.bench.haproxy import most_connections
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peer import Peer, Running, installed
from scripts.bench.peers import MAX_CONNECTIONS, Chimera, HaProxy
from scripts.bench.stage import Stage, ask, stage
from scripts.bench.workers import Spec

WORKERS = (2, 16, 64, 256)
WAITING = (0, 100, 1_000, 10_000)
STREAMS = 64
QUEUE_WORKERS, QUEUE_SLOTS, QUEUE_ANSWER_S = 2, 8, 0.1
# How fast the queue is filled: requests a second.
FILL_RATE = 800.0
# More would take minutes; the figures of long queues are medians of fewer rounds.
MOST_ROUNDS = 3


def measure(options: Options) -> Record:
    """Measure it. Raises RuntimeError when Chimera does not start."""
    rounds = min(options.rounds, MOST_ROUNDS)
    seconds = 0.5 if options.quick else 2.0
    rows: list[Row] = []
    sides: list[Peer] = []
    left_out: list[str] = []
    for count in WORKERS[:1] if options.quick else WORKERS:
        spec = Spec(slots=max(8, 256 // count))
        sides, left_out = installed([HaProxy(), Chimera(spec)])
        with stage(sides, count, spec) as on:
            rows += _rows(on, options, rounds, "unary by workers", count,
                          lambda side: unary(side, UNARY_CONNECTIONS, seconds))  # fmt: skip
            rows += _rows(on, options, rounds, "stream by workers", count,
                          lambda side: streams(side, STREAMS, seconds))  # fmt: skip
    spec = Spec(QUEUE_SLOTS)
    sides = [peer if not isinstance(peer, Chimera) else Chimera(spec) for peer in sides]
    queues, shorter = fitting(WAITING[:2] if options.quick else WAITING, most_waiting())
    for line in (*left_out, *shorter):
        options.say(line)
    with stage(sides, QUEUE_WORKERS, spec) as on:
        for waiting in queues:
            times = 1 if waiting > 5_000 else rounds
            rows += _rows(on, options, times, "unary by queue", waiting,
                          lambda side, n=waiting: queued(side, n, seconds))  # type: ignore[misc] # fmt: skip
    return record("growth", options, sides, {"rows": [asdict(row) for row in rows], "criteria": {}},
                  [*left_out, *shorter])  # fmt: skip


def most_waiting() -> int:
    """Return how many requests may wait in either side, by the descriptors that it may have here."""
    most = MAX_CONNECTIONS, *resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = min(bound_by_descriptors(*most)[0], most_connections())
    return (connections - QUEUE_WORKERS * QUEUE_SLOTS) // 100 * 100


def fitting(lengths: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """Return the lengths of a queue, none longer than `most`; and a line if one would have been."""
    found = list(dict.fromkeys(min(length, most) for length in lengths))
    if max(lengths) <= most:
        return found, []
    return found, [f"the longest queue is of {most:,} and not {max(lengths):,}: the limit of open files (ulimit -Hn) "
                   "allows no more connections"]  # fmt: skip


def queued(side: Running, waiting: int, seconds: float) -> Sample:
    """Ask from so many connections that `waiting` of them wait at any time."""
    spread_s = waiting / FILL_RATE
    prompt = Answer(first_s=QUEUE_ANSWER_S).prompt("n{n}")
    result = ask(side, prompt, waiting + QUEUE_WORKERS * QUEUE_SLOTS, seconds=seconds, spread_s=spread_s,
                 settle_s=0.5 + spread_s / 4, cut=True, limit_s=spread_s * 2 + 60)  # fmt: skip
    return sample_of(result, result.requests)


def _rows(
    on: Stage, options: Options, rounds: int, what: str, size: int, turn: Callable[[Running], Sample]
) -> list[Row]:
    rows = rows_of(what, size, [{side.name: turn(side) for side in on.turns(number)} for number in range(rounds)])
    for row in rows:
        failed = f", {row.failed} failed: {row.faults[0]}" if row.failed else ""
        options.say(f"{row.what} {row.size:>6} {row.side:8} {row.cpu_us:8.0f} µs, {row.per_s:.0f}/s{failed}")
    return rows

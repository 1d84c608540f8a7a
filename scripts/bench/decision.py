"""What a decision of Chimera's dispatcher takes: 256 workers whose slots are all taken, 10,000 waiting tickets.

The dispatcher alone, no network: a slot is given back (the next ticket gets it), and a ticket comes. CPU of this one
thread; the median of the rounds.
"""

import random
import statistics
import time

from gateway.dispatch import Dispatcher
from gateway.slots import Lease, Ticket
from scripts.bench.measurement import Options, Record, record
from scripts.bench.peers import Chimera
from scripts.bench.workers import Spec

WORKERS, SLOTS, WAITING, CALLERS = 256, 1, 10_000, 50
DECISIONS = 4_000


def measure(options: Options) -> Record:
    """Measure it."""
    times = [decision_us(seed, 200 if options.quick else DECISIONS) for seed in range(options.rounds)]
    middle = statistics.median(times)
    options.say(f"a decision: {middle:.1f} µs ({WORKERS} workers, {WAITING:,} waiting)")
    figures = {"decision_us": middle, "rounds_us": times, "workers": WORKERS, "waiting": WAITING,
               "criteria": {"decision_us": middle}}  # fmt: skip
    return record("decision", options, [Chimera(Spec(SLOTS))], figures)


def decision_us(seed: int, decisions: int) -> float:
    """Return the microseconds of one decision: half of them slots given back, half of them tickets that come."""
    chance = random.Random(seed)  # noqa: S311 - ties, not secrets
    desk = Dispatcher(2 * WAITING, chance.random)
    for number in range(WORKERS):
        desk.worker_ready(f"w{number}", 11500 + number, SLOTS, frozenset({"bench"}))
    leases: list[Lease] = []
    for number in range(WORKERS * SLOTS + WAITING):
        leases += [one.lease for one in desk.arrive(_ticket(number)) if one.lease is not None]
    began = time.thread_time()
    for number in range(decisions // 2):
        lease = leases.pop(chance.randrange(len(leases)))
        leases += [one.lease for one in desk.release(lease) if one.lease is not None]
        desk.arrive(_ticket(number))
    took_s = time.thread_time() - began
    if len(leases) != WORKERS * SLOTS:
        raise RuntimeError(f"{len(leases)} leases where there should be {WORKERS * SLOTS}")
    return took_s / decisions * 1e6


def _ticket(number: int) -> Ticket:
    return Ticket("bench", caller=f"caller {number % CALLERS}", body_bytes=100)

"""Records of benchmarks that nobody has run, for what is made of them."""

from collections.abc import Sequence
from typing import Any

from scripts.bench.machine import Machine
from scripts.bench.measurement import Record

MACHINE = Machine("A Processor", 2, 8 * 2**30, "6.1.0", "3.11.7", "0123456789", 0.25)
SIDES = ("direct", "nginx", "HAProxy", "Quart + httpx", "Chimera")
VERSIONS = {
    "direct": "no proxy",
    "nginx": "nginx 1.22.1",
    "HAProxy": "2.6.12",
    "Quart + httpx": "quart 0.20, httpx 0.28",
    "Chimera": "0123456789",
}


def a_record(name: str, figures: dict[str, Any], left_out: Sequence[str] = ()) -> Record:
    """Return a record of so much of one."""
    return Record(name, f"python -m scripts.bench {name} --rounds 5", MACHINE, VERSIONS, figures, tuple(left_out))


def cost_row(what: str, size: int, side: str, cpu_us: float, **more: object) -> dict[str, Any]:
    """Return a row of `cost` or `growth`; HAProxy's CPU is 10 µs."""
    return {
        "what": what, "size": size, "side": side, "cpu_us": cpu_us, "times_haproxy": cpu_us / 10,
        "added_first_byte_p50_ms": 0.5, "added_first_byte_p99_ms": -0.25, "per_s": 1234.5, "failed": 0,
        "rounds_cpu_us": [cpu_us], "faults": [], **more,
    }  # fmt: skip


def all_records() -> dict[str, Record]:
    """Return a record of each measurement, with figures that tell the sides apart."""
    cpu = dict(zip(SIDES, (0.0, 9.0, 10.0, 130.0, 25.0), strict=True))
    cost = [cost_row("unary", 16, side, value * 2) for side, value in cpu.items()]
    cost += [cost_row("stream", size, side, value) for size in (1, 16, 64, 256) for side, value in cpu.items()]
    grown = [
        cost_row(what, size, side, cpu[side])
        for what, sizes in (
            ("unary by workers", (2, 256)),
            ("stream by workers", (2, 256)),
            ("unary by queue", (0, 100)),
        )
        for size in sizes
        for side in ("HAProxy", "Chimera")
    ]
    grown[-1] |= {"failed": 1200, "faults": ["status 503"]}
    steps = [
        {"asked_per_s": rate, "per_s": rate, "delay_p50_ms": 0.1, "delay_p99_ms": delay, "failed": 0}
        for rate, delay in ((2000.0, 1.0), (3000.0, 2.0), (2990.0, 4.0), (20_000.0, 1500.0), (30_000.0, float("nan")))
    ]
    full = [
        {"streams": streams, "side": side, "chunks_per_s": 3000.0, "times_haproxy": 1.0,
         "rounds_chunks_per_s": [3000.0, 2990.0], "steps": steps}
        for streams in (64, 256) for side in SIDES
    ]  # fmt: skip
    batches = [
        {"scene": scene, "side": side, "makespan_s": 5.0 + number, "times_haproxy": (5.0 + number) / 7.0,
         "answer_p50_s": 2.0, "loads": 4.0, "failed": 0, "rounds_makespan_s": [5.0 + number], "faults": []}
        for scene in ("mixed", "unequal", "two models") for number, side in enumerate(SIDES)
    ]  # fmt: skip
    killed = [
        {"side": side, "kills": 12, "answered": 995, "lost_unanswered": number, "lost_midway": 5 - number,
         "first_byte_p50_ms": 101.0, "first_byte_p99_ms": 1234.0, "answer_p50_s": 2.0, "answer_p99_s": 4.5,
         "rounds_lost": [5], "faults": ["closed in the middle of an answer"] if number else []}
        for number, side in enumerate(SIDES[1:])
    ]  # fmt: skip
    held = [
        {"what": what, "body_bytes": size, "side": side, "held": 1000, "rounds_bytes_each": [2048.0],
         "bytes_each": 2048.0 * (1000 if what == "idle" else 1 + number)}
        for what, size in (("idle", 0), ("idle connection", 0), ("waiting request", 1024), ("waiting request", 65536))
        for number, side in enumerate(SIDES[1:])
    ]  # fmt: skip
    talks = {
        side: {"median_ms": median, "longest_ms": median * 3, "rounds_s": [9.5], "rounds_median_ms": [median]}
        for side, median in (("HAProxy", 2874.0), ("Chimera", 410.0))
    }
    return {
        "cost": a_record("cost", {"rows": cost, "workers": 2, "slots": 256, "rate": 50.0,
                                  "criteria": {"chunk_times_haproxy": 2.5}}, ["LiteLLM is left out: no"]),
        "growth": a_record("growth", {"rows": grown, "criteria": {}}),
        "saturation": a_record("saturation", {"rows": full, "workers": 2, "most_delay_ms": 10.0,
                                              "criteria": {"chunks_per_s": 3000.0}}),
        "makespan": a_record("makespan", {"rows": batches, "workers": 4, "slots": 4, "requests": 192, "faster": 4.0,
                                          "load_s": 1.5, "slow": 0.25, "criteria": {}}),
        "conversations": a_record("conversations", {
            "scenes": [{"workers": workers, "slots": slots, "sides": talks, "times_sooner": 7.01}
                       for workers, slots in ((2, 2), (4, 1))],
            "model": "tiny", "talks": 4, "turns": 5, "words": 250,
            "criteria": {"turns_times_sooner_of_two": 7.01}}),
        "kills": a_record("kills", {"rows": killed, "criteria": {}, "workers": 4, "slots": 4, "clients": 8,
                                    "every_s": 10.0, "load_s": 1.5, "restart_pause_s": 1.0}),
        "memory": a_record("memory", {"rows": held, "criteria": {}, "count": 1000, "memory": "PSS"}),
        "decision": a_record("decision", {"decision_us": 22.4, "rounds_us": [22.4, 21.0], "workers": 256,
                                          "waiting": 10_000, "criteria": {"decision_us": 22.4}}),
    }  # fmt: skip

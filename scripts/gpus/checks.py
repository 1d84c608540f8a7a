"""The rows of `make test-gpu`, in their order: each check looks at what the one before it has left."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from scripts.gpus import judge
from scripts.gpus.judge import short
from scripts.gpus.row import MIB, Row, Seen
from scripts.gpus.stage import Stage, Stuck, read_gpus, staged
from supervisor.gpu import GpuReading

# CUDA contexts on eight GPUs whose driver is not kept loaded take their time.
START_S = 60.0
RESTART_S = 30.0
MEMORY_BACK_S = 10.0
OF_A_PROGRAM, OF_THE_GPU = 31, 79  # Xids: the first restarts a GPU's workers, the second quarantines it


def start(stage: Stage) -> None:
    """One worker for each GPU."""
    stage.chimera.start()
    count = len(stage.placements)
    expected = f"{count} ready worker{'s'[: count != 1]}, one per GPU"
    if not stage.see("a worker on every GPU", expected, lambda: judge.everywhere(stage.workers(), stage.placements),
                     START_S):  # fmt: skip
        raise Stuck(f"not every worker came up; Chimera's last words: {stage.chimera.err()[-600:]}")
    stage.reported(stage.workers())


def pinning(stage: Stage) -> None:
    """What CUDA shows, what NVML lists, what the worker's row says."""
    stage.see(
        "pinned by UUID", "each worker's CUDA program sees one device, its worker's",
        lambda: judge.pinned(stage.workers(), stage.programs()), 0.0,
    )  # fmt: skip
    stage.see(
        "NVML's process list", f"each program on its GPU with at least {stage.each_bytes // MIB} MiB, on no other",
        lambda: judge.listed(stage.workers(), stage.programs(), stage.chimera.gpus(), stage.each_bytes),
    )  # fmt: skip
    stage.see(
        "the worker's gpu_memory_bytes", "what NVML says of its program",
        lambda: judge.agreed(stage.workers(), stage.programs(), stage.chimera.gpus()),
    )  # fmt: skip


def telemetry(stage: Stage) -> None:
    """What each GPU tells of itself."""
    stage.see(
        "telemetry", "name, memory, utilisation, temperature and power of each GPU",
        lambda: judge.telemetry(stage.chimera.gpus()),
    )  # fmt: skip
    _grown(stage, dict.fromkeys(stage.placements, 1))


def on_the_cpu(stage: Stage) -> None:
    """A worker that must not see any GPU."""
    worker = stage.spawn("cpu")
    stage.reported([worker])
    stage.see("a worker on the CPU", "its program sees no GPU", lambda: judge.unseeing(worker, stage.programs()), 0.0)
    stage.chimera.client.post("/admin/instances/prune", json={"ids": [worker["id"]]}).raise_for_status()


def two_on_one(stage: Stage) -> None:
    """A second worker on the first GPU."""
    first = stage.placements[0]
    stage.reported([stage.spawn(first)])
    stage.see(
        f"two workers on {short(first)}", "both see it alone",
        lambda: _both(judge.pinned(stage.workers({first}), stage.programs()), len(stage.workers({first})) == 2), 0.0,
    )  # fmt: skip
    stage.see(
        "both in NVML's process list", "each with its memory, on no other GPU",
        lambda: judge.listed(stage.workers({first}), stage.programs(), stage.chimera.gpus(), stage.each_bytes),
    )  # fmt: skip
    _grown(stage, {first: 2})


def placement(stage: Stage, settle_s: float) -> None:
    """Chimera's own ladder has looked at where they compute, more than once."""

    def looked_at() -> bool:
        rows = stage.workers()
        return any(row["restarts"] for row in rows) or all((row["uptime_s"] or 0) >= settle_s for row in rows)

    stage.wait(looked_at, settle_s + RESTART_S)
    stage.see(
        f"placement, after {settle_s:.0f} s", "no worker degraded, none restarted",
        lambda: judge.proven(stage.workers(), stage.chimera.events()), 0.0,
    )  # fmt: skip


def xid_of_a_program(stage: Stage) -> None:
    """An Xid that is answered with a restart."""
    source, struck = stage.struck_by(stage.placements[0])
    old = {row["pid"] for row in stage.workers()}
    programs = {report.pid for report in stage.programs().values()}
    others = {row["id"]: row["pid"] for row in stage.workers() if row["placement"] not in struck}
    stage.inject(source, OF_A_PROGRAM)
    stage.see(
        f"Xid {OF_A_PROGRAM}, injected", f"the workers on {short(source)} start anew there",
        lambda: judge.again(stage.workers(struck), old, stage.programs(but=programs)), RESTART_S,
    )  # fmt: skip
    stage.see(
        f"the others, after Xid {OF_A_PROGRAM}", "untouched", lambda: judge.untouched(stage.workers(), others), 0.0
    )


def quarantine(stage: Stage) -> None:
    """An Xid that takes a GPU out of use, and the operator who gives it back."""
    source, struck = stage.struck_by(stage.placements[0])
    old = {row["pid"] for row in stage.workers(struck)}
    programs = {stage.programs()[row["id"]].pid for row in stage.workers(struck)}
    others = {row["id"]: row["pid"] for row in stage.workers() if row["placement"] not in struck}
    stage.inject(source, OF_THE_GPU)
    stage.see(
        f"Xid {OF_THE_GPU}, injected", f"{short(source)} and its workers are quarantined",
        lambda: _quarantined(stage, source, struck), RESTART_S,
    )  # fmt: skip
    stage.see(
        "its programs", "gone from the machine and from NVML's list",
        lambda: judge.gone(programs, stage.chimera.gpus(), stage.living(programs)), MEMORY_BACK_S,
    )  # fmt: skip
    stage.see(
        "its memory", f"as before any program, within {MEMORY_BACK_S:.0f} s",
        lambda: judge.returned(stage.used(), stage.before, struck), MEMORY_BACK_S,
    )  # fmt: skip
    stage.see(f"the others, after Xid {OF_THE_GPU}", "untouched", lambda: judge.untouched(stage.workers(), others), 0.0)
    stage.chimera.client.post(f"/admin/gpus/{source}/release").raise_for_status()
    stage.see(
        "released by the operator", "its workers are ready again, with new programs",
        lambda: judge.again(stage.workers(struck), old, stage.programs(but=programs)), RESTART_S,
    )  # fmt: skip


def end(stage: Stage) -> None:
    """Chimera is stopped as its users stop it."""
    status = stage.chimera.stop()
    stage.allow(MEMORY_BACK_S)

    def nothing() -> Seen:
        left = len(stage.chimera.marked())
        reading = read_gpus()
        used = {gpu.uuid: gpu.memory_used_bytes for gpu in reading.gpus} if reading.fault is None else {}
        memory = judge.returned(used, stage.before, stage.before)
        return Seen(f"exit status {status}, {left} processes left, {memory.text}",
                    status == 0 and left == 0 and memory.good)  # fmt: skip

    stage.see("stopped", "exit status 0, no process left, memory as before", nothing, MEMORY_BACK_S)


def _grown(stage: Stage, programs_on: dict[str, int]) -> None:
    least = ", ".join(sorted({f"{count * stage.each_bytes // MIB}" for count in programs_on.values()}))
    stage.see(
        f"memory in use, {max(programs_on.values())} on a GPU", f"grown by at least {least} MiB",
        lambda: judge.grown(stage.used(), stage.before, programs_on, stage.each_bytes),
    )  # fmt: skip


def _both(seen: Seen, also: bool) -> Seen:
    return Seen(seen.text, seen.good and also)


def _quarantined(stage: Stage, source: str, struck: set[str]) -> Seen:
    verdict = next(gpu["verdict"] for gpu in stage.chimera.gpus() if gpu["uuid"] == source)
    rows = stage.workers(struck)
    text = ", ".join([f"the GPU is {verdict}", *(f"{row['id']} {row['state']}" for row in rows)])
    return Seen(text, verdict == "quarantined" and bool(rows) and all(row["state"] == "QUARANTINED" for row in rows))


def carry_out(
    folder: Path, reading: GpuReading, *, mib: int, settle_s: float, tell: Callable[[Row], None]
) -> list[Row]:
    """Carry out every check, `tell` each row as it comes, and return them.

    What cannot be carried out is a broken row; if Chimera does not come up, nothing but its end is looked at.
    """
    steps = (pinning, telemetry, on_the_cpu, two_on_one, partial(placement, settle_s=settle_s), xid_of_a_program,
             quarantine)  # fmt: skip
    with staged(folder, reading, mib) as stage:
        if _attempt(stage, start, tell):
            for step in steps:
                _attempt(stage, step, tell)
        _attempt(stage, end, tell)
        return stage.rows


def _attempt(stage: Stage, step: Callable[[Stage], None], tell: Callable[[Row], None]) -> bool:
    told = len(stage.rows)
    try:
        step(stage)
        done = True
    except (Stuck, httpx.HTTPError, LookupError, ValueError, subprocess.TimeoutExpired) as error:
        stage.rows.append(Row("a check", "can be carried out", str(error) or repr(error), kept=False))
        done = False
    for row in stage.rows[told:]:
        tell(row)
    return done

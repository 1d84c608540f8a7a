"""What Chimera's own process costs: 2,000 restarts of workers in a row, and 64 workers that nobody asks (make soak).

Everything is seen from outside, in /proc. Exit status 1 when something has grown with the restarts, or when idling
costs too much.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.faults.load import wait_until
from scripts.faults.machine import cpu_s, signalled_pid
from tests.fakes.chimera import Chimera, chimera
from tests.fakes.fake_ollama import add_model

MIB = 1024**2
READY = ("IDLE", "BUSY")
# The allocator goes on growing for some hundred restarts, ever more slowly, until it has what it needs.
WARM_UP = 500
STEP_S = 0.1
# A restart that takes longer than this with nothing else happening: the soak is stuck.
STUCK_S = 60.0
# What may differ without a leak: connections that are being closed, a thread that idles out, the allocator's rest.
SPARE_FDS, SPARE_THREADS, SPARE_BYTES = 12, 4, 8 * MIB
SETTLE_S = 12.0  # trio's idle worker threads end after ten seconds
IDLE_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process holds: open descriptors, threads, memory that is its own (RssAnon), children."""

    fds: int
    threads: int
    anon_bytes: int
    zombies: int


def cost_of(pid: int) -> Cost:
    """Look at a process of this user."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    children = [
        child for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        if _state(child) == "Z"
    ]  # fmt: skip
    return Cost(
        len(list(Path(f"/proc/{pid}/fd").iterdir())), int(status["Threads"]),
        int(status["RssAnon"].split()[0]) * 1024, len(children),
    )  # fmt: skip


def _state(pid: str) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]
    return ""


def grown(before: Cost, after: Cost) -> list[str]:
    """What has grown beyond what comes and goes."""
    spare = {"fds": SPARE_FDS, "threads": SPARE_THREADS, "anon_bytes": SPARE_BYTES, "zombies": 0}
    return [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name, allowed in spare.items()
        if getattr(after, name) > getattr(before, name) + allowed
    ]


@dataclass(slots=True)
class Turn:
    """Where one worker is between two restarts: the process it had, and whether the next one is a kill."""

    pid: int | None = None
    kill_next: bool = False
    done: int = 0
    since: float = field(default_factory=time.monotonic)


def next_step(row: dict[str, Any], turn: Turn) -> str | None:
    """Say what to do with a worker: "kill", "restart", or nothing yet. A back-off is ended by a restart."""
    if row["state"] == "BACKOFF":
        return "restart"
    if row["state"] not in READY or row["pid"] is None or row["pid"] == turn.pid:
        return None
    return "kill" if turn.kill_next else "restart"


def restarts(made: Chimera, count: int, progress: Progress) -> None:
    """Restart workers in turn, by order and by SIGKILL, until `count` new processes have been ready.

    AssertionError when a worker does not come back.
    """
    turns: dict[str, Turn] = {}
    task = progress.add_task("restarts", total=count)
    while (done := sum(turn.done for turn in turns.values())) < count:
        progress.update(task, completed=done)
        for row in made.instances():
            turn = turns.setdefault(row["id"], Turn())
            step = next_step(row, turn)
            if step is None:
                assert time.monotonic() - turn.since < STUCK_S, f"{row['id']} is stuck: {row}"  # noqa: S101
                continue
            if row["state"] in READY:
                turn.done += turn.pid is not None
                turn.pid, turn.kill_next, turn.since = row["pid"], not turn.kill_next, time.monotonic()
            if step == "kill":
                signalled_pid(row["pid"], signal.SIGKILL)
            else:
                made.client.post(f"/admin/instances/{row['id']}/restart")
        wait_until(lambda: False, STEP_S)
    progress.update(task, completed=count)
    assert wait_until(lambda: all_back(made), STUCK_S, STEP_S), "not every worker came back"  # noqa: S101


def all_back(made: Chimera) -> bool:
    """Whether every worker is ready; ends the back-offs of those that are not."""
    rows = made.instances()
    for row in rows:
        if row["state"] == "BACKOFF":
            made.client.post(f"/admin/instances/{row['id']}/restart")
    return all(row["state"] in READY for row in rows)


def settled(made: Chimera, workers: int, settle_s: float) -> Cost:
    """What Chimera costs once all are ready and its idle threads have ended."""
    made.ready(workers)
    wait_until(lambda: False, settle_s)
    assert made.process is not None  # noqa: S101 - it was started
    return cost_of(made.process.pid)


def soak(folder: Path, *, count: int, workers: int, console: Console, settle_s: float = SETTLE_S) -> bool:
    """Restart, measure, print; return whether nothing has grown."""
    with prepared(folder, workers) as made, Progress(console=console, transient=True) as progress:
        made.start().ready(workers)
        restarts(made, min(WARM_UP, count // 3), progress)
        before = settled(made, workers, settle_s)
        began = time.monotonic()
        restarts(made, count, progress)
        took_s = time.monotonic() - began
        after = settled(made, workers, settle_s)
        left = made.stop() or len(made.marked())
    console.print(table(f"{count} restarts, {workers} workers at once, {took_s:.0f} s", before, after))
    faults = grown(before, after) + ([f"{left} processes left"] if left else [])
    for fault in faults:
        console.print(f"[red]{fault}[/red]")
    return not faults


def idle(folder: Path, *, workers: int, seconds: float, console: Console) -> bool:
    """Measure what workers that nobody asks cost; return whether that is little."""
    with prepared(folder, workers) as made:
        made.start().ready(workers)
        assert made.process is not None  # noqa: S101 - it was started
        wait_until(lambda: False, SETTLE_S)
        before_s, began = cpu_s(made.process.pid), time.monotonic()
        wait_until(lambda: False, seconds)
        share = (cpu_s(made.process.pid) - before_s) / (time.monotonic() - began)
    good = share < IDLE_SHARE
    console.print(f"{workers} idle workers: {share:.1%} of one core over {seconds:.0f} s (less than {IDLE_SHARE:.0%}"
                  f"{'' if good else ' was promised'})", style="" if good else "red")  # fmt: skip
    return good


def prepared(folder: Path, workers: int) -> Any:
    """Give a Chimera on fakes, with the model `tiny`, not yet started; afterwards nothing of it is left."""
    (folder / "models").mkdir(parents=True)
    add_model(folder / "models", "tiny")
    return chimera(folder, WORKERS=f"cpu={workers}", REQUIRED_MODEL="tiny", LOG_LEVEL="warning")


def table(title: str, before: Cost, after: Cost) -> Table:
    """What was held before and after."""
    made = Table(title=title, title_justify="left", min_width=len(title))
    for name in ("", "before", "after"):
        made.add_column(name, justify="right" if name else "left")
    rows: Iterable[tuple[str, object, object]] = (
        ("file descriptors", before.fds, after.fds),
        ("threads", before.threads, after.threads),
        ("own memory, MiB", f"{before.anon_bytes / MIB:.1f}", f"{after.anon_bytes / MIB:.1f}"),
        ("unreaped children", before.zombies, after.zombies),
    )
    for name, one, two in rows:
        made.add_row(name, str(one), str(two))
    return made


@click.command()
@click.option("--restarts", "count", type=click.IntRange(min=0), default=2000, show_default=True, help="0: none.")
@click.option("--at-once", type=click.IntRange(1, 64), default=16, show_default=True, help="Workers that restart.")
@click.option("--idle", "workers", type=click.IntRange(min=0), default=64, show_default=True, help="0: none.")
@click.option("--seconds", type=click.FloatRange(min=1), default=30.0, show_default=True, help="How long to idle.")
def main(count: int, at_once: int, workers: int, seconds: float) -> None:
    """Measure what many restarts, and many idle workers, cost Chimera's own process."""
    console, good = Console(), True
    with tempfile.TemporaryDirectory(prefix="chimera-soak-") as folder:
        if count:
            good = soak(Path(folder) / "soak", count=count, workers=at_once, console=console)
        if workers:
            good = idle(Path(folder) / "idle", workers=workers, seconds=seconds, console=console) and good
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()

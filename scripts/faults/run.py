"""Carries out scenarios, the real ones one at a time and those on fakes two at a time, and shows the table."""

import os
import queue
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.faults import gpus, processes, starts
from scripts.faults.row import COLUMNS, Row, cells
from scripts.faults.scenario import Scenario
from scripts.faults.trial import Trial
from tests.fakes.chimera import own_ports_from

SCENARIOS: tuple[Scenario, ...] = (*processes.SCENARIOS, *starts.SCENARIOS, *gpus.SCENARIOS)
AT_ONCE = 2
# Each scenario of those that run at once looks for its ports elsewhere; so do two runs on one machine.
PORTS_EACH = 700


def chosen(names: Sequence[str], kind: str | None = None) -> list[Scenario]:
    """Return the scenarios whose names contain one of `names` (all, if there are none). KeyError if nothing does."""
    for name in names:
        if not any(name.lower() in scenario.name.lower() for scenario in SCENARIOS):
            raise KeyError(name)
    return [
        scenario
        for scenario in SCENARIOS
        if (not names or any(name.lower() in scenario.name.lower() for name in names)) and kind in (None, scenario.kind)
    ]


def carry_out(scenarios: Sequence[Scenario], folder: Path, *, at_once: int = AT_ONCE) -> Iterator[Row]:
    """Carry out scenarios and yield each row as it comes: first the real ones, then those on fakes."""
    real = [scenario for scenario in scenarios if scenario.kind == "real"]
    fake = [scenario for scenario in scenarios if scenario.kind == "fake"]
    lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
    first = own_ports_from()
    for lane in range(at_once):
        lanes.put(first + lane * PORTS_EACH)

    def one(scenario: Scenario) -> Row:
        ports_from = lanes.get()
        try:
            own = folder / re.sub(r"\W+", "-", scenario.name).strip("-")
            return Trial(scenario, own, ports_from, folder / "models").carry_out()
        finally:
            lanes.put(ports_from)

    yield from map(one, real)
    with ThreadPoolExecutor(at_once) as pool:
        # the longest first: NVML's minute passes beside the others
        fake.sort(key=lambda scenario: not scenario.slow)
        for done in as_completed([pool.submit(one, scenario) for scenario in fake]):
            yield done.result()


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order of the scenarios."""
    names = [scenario.name for scenario in SCENARIOS]
    return sorted(rows, key=lambda row: names.index(row.fault))


def table(rows: Iterable[Row]) -> Table:
    """The table for a terminal."""
    made = Table(title="Faults", title_justify="left", show_lines=True)
    for name in COLUMNS:
        number = name not in ("fault", "with", "memory returned", "verdict")
        made.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        style = "" if row.kept else "red"
        made.add_row(*(Text(text, style) for text in cells(row)))
    return made


def line(row: Row) -> Text:
    """One line for a row that has just been measured."""
    return Text("  ".join(filter(None, ("kept  " if row.kept else "BROKEN", *cells(row)))), "" if row.kept else "red")


def preamble(rows: Sequence[Row], took_s: float) -> str:
    """What the page says before its table: what was measured, when, and on what."""
    model = next(
        (text.partition(":")[2].strip() for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
         if text.startswith("model name")), "unknown CPU",
    )  # fmt: skip
    memory_gib = psutil.virtual_memory().total / 1024**3
    machine = f"{os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, Linux {os.uname().release}"
    kept = sum(row.kept for row in rows)
    return (
        f"`make test-faults`, {datetime.now(UTC):%Y-%m-%d}, {machine}: {kept} of {len(rows)} rows keep every promise, "
        f"{took_s:.0f} s in all. Each row is a whole Chimera under load, two workers of two slots; `real` is Ollama "
        "with a real model, `fake` a stand-in for faults that it cannot be asked for, and a fake driver for GPUs. "
        "*detect* and *good answer* count from the moment of the fault, *lost* are requests that failed before a "
        "byte was sent, *cut* those that failed after it (and said so), *retried* Chimera's own further attempts, "
        "*left* the processes that outlived their worker or Chimera."
    )


def show(console: Console, rows: Iterable[Row]) -> None:
    """Print the table."""
    console.print(table(rows))

"""Shows on the machine's own NVIDIA GPUs what stand-ins cannot show (make test-gpu); needs no Ollama and no model.

A whole Chimera, whose runners are small CUDA programs: pinning by UUID, NVML's process list, telemetry, and what
injected Xids bring about. Exit status 1 if a row is not as expected, or if there is no GPU.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.gpus.checks import carry_out
from scripts.gpus.row import Row, broken, cards, markdown
from scripts.gpus.stage import read_gpus
from scripts.showing import ended, line, table, workshop
from supervisor.gpu import GpuReading


def preamble(rows: Sequence[Row], reading: GpuReading, took_s: float) -> str:
    """What the page says before its table: what was looked at, when, and on what."""
    stand_in = "on STAND-INS for the drivers (FAKE_NVML_STATE is set), " if os.environ.get("FAKE_NVML_STATE") else ""
    there = cards([(gpu.name, gpu.memory_total_bytes) for gpu in reading.gpus if gpu.mig_of is None])
    machine = f"{there}, NVIDIA driver {reading.driver_version}, Linux {platform.release()}, {os.cpu_count()} cores"
    kept = len(rows) - len(broken(rows))
    return (
        f"`make test-gpu`, {datetime.now(UTC):%Y-%m-%d}, {stand_in}{machine}: {kept} of {len(rows)} rows as expected, "
        f"{took_s:.0f} s in all. A whole Chimera, its workers a stand-in for Ollama whose runner is a CUDA program: "
        "it says which devices it sees and allocates memory on the first. Memory, processes and telemetry are what "
        "NVML says; the Xids are injected into Chimera, and no GPU was harmed."
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write the table as Markdown to this file.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and state in this (empty) folder.")
@click.option("--mib", type=click.IntRange(128), default=512, show_default=True, help="What each program allocates.")
@click.option("--settle", type=click.FloatRange(0, 60), default=25.0, show_default=True,
              help="Seconds that the workers run before their placement is judged; Chimera takes 20.")  # fmt: skip
def main(out: Path | None, keep: Path | None, mib: int, settle: float) -> None:
    """Show on the machine's own NVIDIA GPUs that pinning, telemetry and quarantine work."""
    signal.signal(signal.SIGTERM, ended)
    reading = read_gpus()
    if reading.fault is not None or not reading.gpus:
        raise SystemExit(f"test_gpu.py: this needs an NVIDIA GPU: {reading.fault or 'there is none'}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    began = time.monotonic()
    with workshop("chimera-gpu-", keep) as folder:
        rows = carry_out(folder, reading, mib=mib, settle_s=settle, tell=lambda row: console.print(line(row)))
    said = preamble(rows, reading, time.monotonic() - began)
    console.print(table("On real GPUs", rows))
    console.print(said.replace("`", ""))
    if out is not None:
        out.write_text(markdown(rows, said), encoding="utf-8")
    raise SystemExit(1 if broken(rows) else 0)


if __name__ == "__main__":
    main()

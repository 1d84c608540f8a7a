"""Breaks a running Chimera in every way of the list, under load, and measures what follows (make test-faults).

Exit status 1 if a row broke its promise: a request lost without a byte sent, a process left, memory not returned,
a fault not noticed in its time or not healed.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.faults.row import Row, markdown
from scripts.faults.run import SCENARIOS, carry_out, chosen, in_order, line, preamble, show
from scripts.showing import workshop
from supervisor.embedded import embedded_dir, find_embedded


@click.command()
@click.option("--list", "listing", is_flag=True, help="Print the scenarios and end.")
@click.option("--only", "names", multiple=True, metavar="TEXT", help="Scenarios whose name contains TEXT; repeatable.")
@click.option("--kind", type=click.Choice(["real", "fake"]), help="Those on real Ollama, or those on fakes.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table as Markdown to this file.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and state in this (empty) folder.")
@click.option("--at-once", type=click.IntRange(1, 8), default=2, show_default=True, help="Scenarios on fakes at once.")
def main(**options: Any) -> None:
    """Break a running Chimera in every way of the list, and measure what follows."""
    if options["listing"]:
        for scenario in SCENARIOS:
            print(f"{scenario.kind}  {scenario.name}")
        return
    try:
        scenarios = chosen(options["names"], options["kind"])
    except KeyError as error:
        raise SystemExit(f"test_faults.py: no scenario's name contains {error}; --list names them") from None
    if any(scenario.kind == "real" for scenario in scenarios) and not find_embedded(embedded_dir(os.environ)):
        raise SystemExit("test_faults.py: the CPU build of Ollama is not installed: run scripts/embedded.py install")
    console = Console(width=None if sys.stdout.isatty() else 200)
    began, rows = time.monotonic(), list[Row]()
    with workshop("chimera-faults-", options["keep"]) as folder:
        (folder / "models").mkdir(exist_ok=True)
        for row in carry_out(scenarios, folder, at_once=options["at_once"]):
            rows.append(row)
            console.print(line(row))
    rows, took_s = in_order(rows), time.monotonic() - began
    show(console, rows)
    kept = sum(row.kept for row in rows)
    console.print(f"{kept} of {len(rows)} rows keep every promise; {took_s:.0f} s")
    if options["out"]:
        options["out"].write_text(markdown(rows, preamble(rows, took_s)), encoding="utf-8")
    raise SystemExit(0 if kept == len(rows) else 1)


if __name__ == "__main__":
    main()

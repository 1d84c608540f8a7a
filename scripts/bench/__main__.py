"""Benchmarks: Chimera next to its peers, in one run on this machine (make bench).

Timing on a busy machine is noise: what counts are ratios within one run, the sides taking turns.
"""

import os
from importlib import import_module
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.table import Table

from scripts.bench import conversations as talks_module
from scripts.bench import haproxy as peer
from scripts.bench import report
from scripts.bench.conversations import Round, Sides, median_ms
from scripts.bench.criteria import found_in, verdicts
from scripts.bench.machine import ROOT, take_files
from scripts.bench.measurement import Measure, Options, Record, save

# Each is a module here with `measure(options) -> Record`; the text is what --help says of it.
MEASUREMENTS = {
    "cost": "CPU per request and per streamed chunk, added time to the first byte.",
    "growth": "How CPU per request and per chunk grows with workers, and per request with the queue.",
    "saturation": "The highest rate of chunks that one core relays in time.",
    "makespan": "How long a batch takes: mixed lengths, unequal workers, two models with room for one.",
    "kills": "A worker is killed every ten seconds: requests lost, latency.",
    "memory": "The proxy's memory: idle, per idle connection, per waiting request.",
    "decision": "A decision of Chimera's dispatcher: 256 workers, 10,000 waiting tickets.",
}
# The same, but its subcommand has options of its own.
_OWN_COMMAND = ("conversations",)
FOLDER = ROOT / "docs" / "bench"
QUICK_FOLDER = ROOT / "build" / "bench"  # not kept: figures of a quick run mean nothing
# What a measurement ends with when something that it needs is not there or does not start.
_NOT_MEASURED = (peer.NotInstalled, RuntimeError, AssertionError, OSError, httpx.HTTPError)


@click.group(help=__doc__)
@click.option("--nice", type=click.IntRange(-20, 19), help="Run all of it at this priority; below 0 needs root.")
def main(nice: int | None) -> None:
    """The command."""
    take_files()
    if nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, nice)  # whatever is started inherits it


def measure_of(name: str) -> Measure:
    """Return the measurement with this name."""
    found: Measure = import_module(f"scripts.bench.{name}").measure
    return found


def show(made: Record, console: Console) -> None:
    """Print what a measurement found."""
    console.print_json(data=made.figures)


def command_of(name: str, text: str) -> click.Command:
    """Return the subcommand of a measurement."""

    @click.command(name, help=text)
    @click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each side.")
    @click.option("--quick", is_flag=True, help="As short as can be, to see that it works; figures mean nothing.")
    @click.option("--with", "guests", multiple=True, type=click.Choice(["litellm", "herd"]), help="Install it too.")
    @click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Keep the figures here.")
    def run(rounds: int, quick: bool, guests: tuple[str, ...], file: Path | None) -> None:
        console = Console()
        try:
            made = measure_of(name)(Options(rounds, quick, guests, say_on(console)))
        except _NOT_MEASURED as error:
            raise click.ClickException(f"{name}: {error}") from error
        show(made, console)
        if file is not None:
            save(made, file)

    return run


def say_on(console: Console) -> "_Say":
    """Return what prints a line as it is, however long."""
    return _Say(console)


class _Say:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


for _name, _text in MEASUREMENTS.items():
    main.add_command(command_of(_name, _text))


@main.command("all")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each side.")
@click.option("--quick", is_flag=True, help="As short as can be, to see that it works; figures mean nothing.")
@click.option("--with", "guests", multiple=True, type=click.Choice(["litellm", "herd"]), help="Install it too.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path),
              help="Where the figures go, a JSON file for each measurement, and the report. "
                   "[default: docs/bench; with --quick build/bench]")  # fmt: skip
def everything(rounds: int, quick: bool, guests: tuple[str, ...], folder: Path | None) -> None:
    """Every measurement, one after the other; then the report, and what holds. Exit 1 when one could not be made."""
    console = Console()
    folder = folder or (QUICK_FOLDER if quick else FOLDER)
    say = say_on(console)
    made: list[Record] = []
    broken: list[str] = []
    for name in (*MEASUREMENTS, *_OWN_COMMAND):
        say(f"-- {name}")
        try:
            made.append(measure_of(name)(Options(rounds, quick, guests, say)))
            save(made[-1], folder / f"{name}.json")
        except _NOT_MEASURED as error:
            broken.append(name)
            say(f"{name} was not measured: {error}")
    write_report(folder, say)
    say("\nWhat is to hold:")
    for verdict in verdicts(found_in(made)):
        say(verdict.text)
    if broken:
        raise click.ClickException(f"not measured: {', '.join(broken)}")


@main.command("report")
@click.option("--from", "folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True,
              help="Where the records are, and the report goes.")  # fmt: skip
def report_again(folder: Path) -> None:
    """Tables and pictures of records that there are; of docs/bench, the table in README.md too."""
    write_report(folder, say_on(Console()))


def write_report(folder: Path, say: "_Say") -> None:
    """Write the report into a folder, and the project's own README if it is the folder that this one shows."""
    report.write(folder, ROOT / "README.md" if folder.resolve() == FOLDER else None, say)


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of each side.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Workers.")
@click.option("--slots", type=click.IntRange(1), default=2, show_default=True, help="Slots of each.")
@click.option("--talks", type=click.IntRange(1), default=4, show_default=True, help="Conversations at once.")
@click.option("--turns", type=click.IntRange(2), default=5, show_default=True, help="Turns of each.")
@click.option("--words", type=click.IntRange(1), default=250, show_default=True, help="Words that each begins with.")
@click.option("--least", type=float, default=5.0, show_default=True, help="Exit 1 if Chimera is less times as fast.")
def conversations(rounds: int, workers: int, slots: int, talks: int, turns: int, words: int, least: float) -> None:
    """First token of later turns, real Ollama: Chimera and HAProxy leastconn."""
    console = Console()
    try:
        both = talks_module.compare(
            rounds, say_on(console), workers=workers, slots=slots, talks=talks, turns=turns, words=words
        )
    except _NOT_MEASURED as error:
        raise click.ClickException(str(error)) from error
    console.print(_table(both, f"First token of turns 2 to {turns}: {talks} conversations, {workers} workers, "
                               f"slots of each: {slots}, {talks_module.MODEL}"))  # fmt: skip
    console.print(f"Chimera: {both.times:.1f} times as fast to the first token (median of the rounds)")
    if both.times < least:
        raise click.ClickException(f"less than {least:g} times")


def _table(both: Sides, title: str) -> Table:
    table = Table("gateway", "median ms", "longest ms", "round s", title=title, title_justify="left")
    sides: tuple[tuple[str, list[Round]], ...] = (("HAProxy leastconn", both.theirs), ("Chimera", both.ours))
    for who, rounds in sides:
        longest = max(seconds for one in rounds for seconds in one.later_s) * 1000
        took = ", ".join(f"{one.total_s:.1f}" for one in rounds)
        table.add_row(who, f"{median_ms(rounds):.0f}", f"{longest:.0f}", took)
    return table


if __name__ == "__main__":
    main()

"""The command: shares the time among the parts, reports tries and findings. Exit status 1 when there is a finding."""

import logging
import random
import secrets
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import click
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.fuzz.corpus import Notebook
from scripts.fuzz.parsers import TARGETS, Failed, Parsers, tried
from scripts.fuzz.published import Published
from scripts.fuzz.stage import staged
from scripts.fuzz.tally import Clock, Tally
from scripts.fuzz.wire import Wire

# How the time is shared.
SHARES = {"parsers": 0.4, "published": 0.25, "wire": 0.35}


def silent() -> None:
    """Let no parser's warnings of bad input through."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.ERROR)


def table(tallies: list[Tally]) -> Table:
    """The tries, by part and target."""
    made = Table(title="Fuzzing", title_justify="left")
    for name in ("part", "target", "tries", "findings"):
        made.add_column(name, justify="right" if name in ("tries", "findings") else "left")
    for tally in tallies:
        for target, count in sorted(tally.tries.items()):
            found = sum(finding.target == target for finding in tally.findings)
            made.add_row(tally.part, target, f"{count:,}", str(found), style="red" if found else "")
        made.add_row(tally.part, "all", f"{tally.total:,}", str(len(tally.findings)), style="bold")
    return made


def report(console: Console, tallies: list[Tally]) -> bool:
    """Print what was tried and found; return whether nothing was found."""
    console.print(table(tallies))
    for tally in tallies:
        for finding in tally.findings:
            console.print(Text(f"{tally.part} {finding.target}: {finding.what}", "red"))
            console.print(Text(finding.reproduction))
    return not any(tally.findings for tally in tallies)


def tried_once(path: Path) -> bool:
    """Try one file against the target that its folder is named after; return whether all is well."""
    silent()
    try:
        tried(TARGETS[path.resolve().parent.name], path.read_bytes())
    except Failed as error:
        raise error from error.__cause__
    return True


def fuzz(minutes: float, parts: tuple[str, ...], keep: Path, number: int, console: Console) -> bool:
    """Carry out the parts; return whether nothing was found."""
    tallies: list[Tally] = []
    whole = sum(SHARES[part] for part in parts)
    for part in parts:
        clock = Clock.of(minutes * 60 * SHARES[part] / whole)
        console.print(f"{part}: {clock.left_s:.0f} s, --seed {number}")
        tallies.append(carried_out(part, clock, keep, random.Random(number)))  # noqa: S311 - chance, not a secret
    return report(console, tallies)


def carried_out(part: str, clock: Clock, keep: Path, chance: random.Random) -> Tally:
    """Carry out one part."""
    notebook = Notebook(keep)
    runner: Parsers | Published | Wire
    with ExitStack() as held:
        held.callback(notebook.close)
        if part == "parsers":
            runner = Parsers(notebook, chance)
        else:
            folder = Path(
                held.enter_context(TemporaryDirectory(prefix="chimera-fuzz-stage-", ignore_cleanup_errors=True))
            )
            stage = held.enter_context(staged(folder / "stage"))
            runner = (Published if part == "published" else Wire)(stage, notebook, chance)
        runner.run(clock)
    return runner.tally


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="It then stops itself.")
@click.option("--part", "parts", multiple=True, type=click.Choice(sorted(SHARES)), help="Only these.")
@click.option("--seed", "number", type=int, default=None, help="The same tries again.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Where inputs with a finding are kept.")
@click.option("--try", "once", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Only this input.")
def main(minutes: float, parts: tuple[str, ...], number: int | None, keep: Path | None, once: Path | None) -> None:
    """Try Chimera with what nobody would send on purpose: parsers, the published document, the bytes on its port."""
    if once is not None:
        tried_once(once)
        return
    silent()
    folder = keep or Path(mkdtemp(prefix="chimera-fuzz-"))
    chosen = number if number is not None else secrets.randbits(32)
    good = fuzz(minutes, parts or tuple(SHARES), folder, chosen, Console())
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()

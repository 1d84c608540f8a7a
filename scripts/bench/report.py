"""The report: README.md and pictures beside the records, and a short table in the project's own README.

What cannot be shown, since a record is missing or of another form, is a line that says so.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from scripts.bench.criteria import found_in, verdicts
from scripts.bench.fleet_sections import conversations, decision, kills, makespan, memory
from scripts.bench.guests import Herd, LiteLlm
from scripts.bench.markdown import NONE, number, table
from scripts.bench.measurement import Record, load
from scripts.bench.peers import Chimera, Direct, HaProxy, Nginx, Plain
from scripts.bench.proxy_sections import cost, growth, saturation
from scripts.bench.section import Section, made_with, other
from scripts.bench.summary import summary

# In this order, whether there is a record or not.
SECTIONS: dict[str, Callable[[Record], Section]] = {
    "cost": cost,
    "growth": growth,
    "saturation": saturation,
    "makespan": makespan,
    "conversations": conversations,
    "kills": kills,
    "memory": memory,
    "decision": decision,
}
# What figures of another form end in.
_OTHER_FORM = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
HEAD = """\
# Chimera next to its peers

Written by `make bench` (or, from the records beside it, by `python -m scripts.bench report`); not by hand. All sides of
a measurement run in one run on one machine, and take turns; figures are medians of the rounds, and ratios are taken
within each round. Timing on a machine with other work is noise: what counts are the ratios.
"""


@dataclass(slots=True)
class Found:
    """The records of a folder by name; for those that are not there or cannot be read, why."""

    records: dict[str, Record] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def read(folder: Path) -> Found:
    """Read all records of a folder, those that have a section first."""
    found = Found()
    others = sorted({file.stem for file in folder.glob("*.json")} - set(SECTIONS))
    for name in (*SECTIONS, *others):
        try:
            found.records[name] = load(folder / f"{name}.json")
        except FileNotFoundError:
            found.faults[name] = f"not measured: there is no `{name}.json` here"
        except (OSError, ValueError) as error:
            found.faults[name] = f"not shown: `{name}.json` cannot be read: {error}"
    return found


def sections(found: Found) -> dict[str, Section]:
    """Return a section for each record; of one whose figures have another form, a section that says so."""
    made: dict[str, Section] = {}
    for name in (*SECTIONS, *(name for name in (found.records | found.faults) if name not in SECTIONS)):
        made[name] = section = Section(name.capitalize())
        if name in found.records:
            try:
                made[name] = section = SECTIONS.get(name, other)(found.records[name])
            except _OTHER_FORM as error:
                found.faults[name] = f"not shown: the figures in `{name}.json` have another form: {error!r}"
            else:
                section.text[:0] = [*about(name), ""]
                section.say(*_made(found.records[name]))
        if name in found.faults:
            section.say(f"{name}: {found.faults[name]}.")
    return made


def about(name: str) -> list[str]:
    """Return what a measurement does, in the words of its module."""
    if name not in SECTIONS:
        return []
    return inspect.cleandoc(import_module(f"scripts.bench.{name}").__doc__ or "").splitlines()


def sides() -> list[str]:
    """Return a line about each peer that there may be, the first of its class's words."""
    known = (Direct, Nginx, HaProxy, Plain, LiteLlm, Herd, Chimera)
    return [f"- **{peer.name}**: {inspect.cleandoc(peer.__doc__ or '').splitlines()[0]}" for peer in known]


def _made(record: Record) -> list[str]:
    command, versions, machine = made_with(record)
    lines = [f"Made with `{command}` on {machine}." + (f" Versions: {versions}." if versions else "")]
    if record.left_out:
        lines += ["", *(f"- {line}" for line in record.left_out)]
    return lines


def page(made: dict[str, Section], records: Sequence[Record]) -> str:
    """Return the whole README of the folder."""
    lines = [HEAD]
    if any("--quick" in record.command for record in records):
        lines += ["**Some of it is from a quick run (`--quick`), whose figures mean nothing.**", ""]
    lines += [*sides(), "", "## What is to hold", ""]
    lines += table(("criterion", "asked", "found", ""), [
        [one.criterion.text, one.criterion.bound,
         NONE if one.value is None else f"{number(one.value)}{one.criterion.unit}", one.word]
        for one in verdicts(found_in(records))
    ])  # fmt: skip
    for section in made.values():
        lines += ["", f"## {section.title}", "", *section.text]
        while lines[-1] == "":
            lines.pop()
    return "\n".join(lines) + "\n"


def between(text: str, made: str) -> str:
    """Return a text with what stands between the two marks replaced. Raises ValueError when they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there are no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{made}{END}{after}"


def write(folder: Path, readme: Path | None, say: Callable[[str], None]) -> None:
    """Write the report of a folder's records into it, and its table into `readme`, between two marks there."""
    found = read(folder)
    made = sections(found)
    for line in (f"{name}: {fault}" for name, fault in found.faults.items()):
        say(line)
    shown = [record for name, record in found.records.items() if name not in found.faults]
    folder.mkdir(parents=True, exist_ok=True)
    for section in made.values():
        for name, picture in section.pictures.items():
            (folder / name).write_text(picture, encoding="utf-8")
    (folder / "README.md").write_text(page(made, shown), encoding="utf-8")
    say(f"the report: {folder / 'README.md'}")
    if readme is not None:
        there = {name for section in made.values() for name in section.pictures}
        try:
            text = between(
                readme.read_text(encoding="utf-8"), summary(shown, there, folder.resolve().relative_to(readme.parent))
            )
        except (OSError, *_OTHER_FORM) as error:
            say(f"{readme} is as it was: {error}")
        else:
            readme.write_text(text, encoding="utf-8")
            say(f"its table: {readme}")

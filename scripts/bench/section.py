"""What the report says of one measurement, and what all its sections have in common. Pure.

A section is made by a function `(record) -> Section`, which raises KeyError, TypeError or ValueError for figures of
another form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.bench.markdown import NONE, number, table
from scripts.bench.measurement import Record

Row = Mapping[str, Any]


@dataclass(slots=True)
class Section:
    """What is said of one measurement, in Markdown, and its pictures by the name of their files."""

    title: str
    text: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)

    def say(self, *paragraph: str) -> None:
        """Add lines that belong together."""
        self.text += [*paragraph, ""]

    def show(self, file: str, picture: str, alt: str) -> None:
        """Add a picture."""
        self.pictures[file] = picture
        self.say(f"![{alt}]({file})")


def version_of(name: str, text: str) -> str:
    """Return a peer and its version; some say their names themselves."""
    return text if text.startswith(name) else f"{name}: {text}" if "," in text else f"{name} {text}"


def made_with(made: Record) -> tuple[str, ...]:
    """Return what stands at the foot of each picture and table: the command, the versions, the machine."""
    versions = ", ".join(version_of(name, text) for name, text in made.versions.items() if name != "direct")
    return (made.command, versions, made.machine.text())


def other(made: Record) -> Section:
    """A measurement that has no section of its own: its rows as they are."""
    section = Section(made.name.capitalize())
    rows: list[Row] = made.figures.get("rows", [])
    heads = [name for name in (rows[0] if rows else {}) if not isinstance(rows[0][name], list)]
    if heads:
        section.say(*table([head.replace("_", " ") for head in heads], [[_cell(row[name]) for name in heads]
                                                                       for row in rows]))  # fmt: skip
    plain = {name: value for name, value in made.figures.items() if isinstance(value, int | float | str)}
    if plain:
        section.say(", ".join(f"{name.replace('_', ' ')}: {_cell(value)}" for name, value in plain.items()))
    return section


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return NONE if value is None else str(value)


def sides_of(rows: Sequence[Row]) -> list[str]:
    """Return the sides, each once, in the order in which they stand."""
    return list(dict.fromkeys(row["side"] for row in rows))


def cpu_us(row: Row) -> float:
    """Return a row's CPU in µs."""
    return float(row["cpu_us"])


def bar_note(value: float, unit: str, ratio: float | None) -> str:
    """Return what is written at a bar: the value, and how many times HAProxy's that is."""
    return f"{number(value)} {unit}" + (f" · {number(ratio)} × HAProxy's" if ratio is not None else "")


def lost(row: Row, before: str = " · ", after: str = "") -> str:
    """Return what is said, beside a figure, of requests that failed, if any did."""
    return f"{before}{row['failed']:,} failed{after}" if row["failed"] else ""


def faults_of(section: Section, rows: Sequence[Row], by: str = "what") -> None:
    """Say what went wrong."""
    for row in rows:
        if row["failed"]:
            where = f"{row[by]} {row.get('size', '')}".strip()
            section.say(f"{row['side']}, {where}: {row['failed']:,} failed: {'; '.join(row['faults'])}")


def lost_share(row: Row) -> float:
    """Return which part of the requests was lost while workers were killed."""
    lost = int(row["lost_unanswered"]) + int(row["lost_midway"])
    return lost / max(1, lost + int(row["answered"]))

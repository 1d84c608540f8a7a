"""A row of the table of `make test-gpu`, and the page that is kept of it. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COLUMNS = ("what", "expected", "seen", "verdict")
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has shown, in words, and whether it is what was expected."""

    text: str
    good: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One check: what was looked at, what was to be seen, what was seen, and after how many seconds of waiting."""

    what: str
    expected: str
    seen: str
    kept: bool
    after_s: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """Return the row as the table's texts."""
        after = f" (after {self.after_s:.1f} s)" if self.kept and self.after_s >= 0.5 else ""
        return (self.what, self.expected, self.seen + after, "kept" if self.kept else "BROKEN")


def broken(rows: Iterable[Row]) -> list[str]:
    """Return the names of the rows that are not as expected."""
    return [row.what for row in rows if not row.kept]


def cards(names_and_bytes: Sequence[tuple[str, int]]) -> str:
    """Return the machine's cards in words: how many of each, with their memory."""
    counted = Counter(names_and_bytes)
    return ", ".join(f"{count} × {name} ({size / GIB:.0f} GiB)" for (name, size), count in counted.items())


def markdown(rows: Sequence[Row], preamble: str) -> str:
    """Return the table as a page in Markdown, `preamble` (a paragraph) before it."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    lines = ["| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) + " |" for line in table]
    return "\n".join(["# On real GPUs", "", preamble, "", *lines, ""])

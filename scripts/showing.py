"""What the scripts share that look at one thing after the other and show a table of it (make test-gpu and others)."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.table import Table
from rich.text import Text

from scripts.gpus.row import COLUMNS, Row


def line(row: Row) -> Text:
    """One line for a row that has just been seen."""
    return Text("  ".join(row.cells()), "" if row.kept else "red")


def table(title: str, rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    made = Table(title=title, title_justify="left", show_lines=True)
    for name in COLUMNS:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(text, "" if row.kept else "red") for text in row.cells()))
    return made


@contextmanager
def workshop(prefix: str, keep: Path | None) -> Iterator[Path]:
    """Give a folder for logs and state: `keep`, which stays, or one that goes, whose name begins with `prefix`."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def ended(number: int, _frame: FrameType | None) -> None:
    """A handler of SIGTERM that ends the run as Ctrl-C does: what was started is ended first."""
    raise SystemExit(128 + number)

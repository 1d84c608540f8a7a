"""Numbers and tables as the report writes them. Pure."""

import math
from collections.abc import Sequence

NONE = "–"


def number(value: float | None) -> str:
    """Return a figure with about three digits that count; a dash for none, and for what is not finite."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def times(value: float | None) -> str:
    """Return a ratio."""
    return NONE if value is None or not math.isfinite(value) else f"{number(value)} ×"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return a table; all columns but the first `left` are figures, and stand on the right."""
    rule = ["---" if place < left else "--:" for place in range(len(heads))]
    return [_row(heads), _row(rule), *(_row(cells) for cells in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"

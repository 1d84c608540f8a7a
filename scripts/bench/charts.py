"""What all pictures of the report have in common, and those of bars that compare sides. Pure.

What has no figure is named all the same, and has no bar.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.svg import Picture, text_width, wrapped

WIDTH = 760.0
EDGE = 18.0
TITLE_SIZE, SMALL_SIZE, FOOT_SIZE = 15.0, 11.5, 10.0
_BAR, _BAR_STEP = 20.0, 30.0
# Of a side, the same in every picture. Chimera's is the one warm one.
COLOURS = {
    "Chimera": "#d1570c",
    "HAProxy": "#1f77b4",
    "nginx": "#2a9158",
    "Quart + httpx": "#8c6bb1",
    "LiteLLM": "#a0762a",
    "Ollama Herd": "#c2528b",
    "direct": "#808a94",
}
_OTHER = "#808a94"


@dataclass(frozen=True, slots=True)
class Words:
    """What stands around a picture: its title, one sentence below it, and at the foot how and on what it was made."""

    title: str
    caption: str
    foot: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. `note` is written at its end, and is all there is where the value is not finite."""

    name: str
    value: float
    note: str


def colour(name: str) -> str:
    """Return a side's colour."""
    return COLOURS.get(name, _OTHER)


def bars(words: Words, rows: Sequence[Bar], strong: str = "Chimera") -> str:
    """Return a picture with a bar for each row, from nought; the one of `strong` stands out."""
    left = EDGE + max(text_width(row.name, bold=row.name == strong) for row in rows) + 10
    room = WIDTH - EDGE - left - max(text_width(row.note, bold=row.name == strong) for row in rows) - 8
    most = max((row.value for row in rows if math.isfinite(row.value)), default=0.0)
    picture, top = begun(words, len(rows) * _BAR_STEP)
    for number, row in enumerate(rows):
        y = top + number * _BAR_STEP
        long = room * row.value / most if most > 0 and math.isfinite(row.value) and row.value > 0 else 0.0
        mine = row.name == strong
        picture.text(left - 10, y + 15, row.name, anchor="end", bold=mine)
        if long:
            picture.box(left, y, max(1.5, long), _BAR, colour(row.name) if mine else _OTHER)
        picture.text(left + long + 8, y + 15, row.note, bold=mine)
    picture.line(left, top - 6, left, top + len(rows) * _BAR_STEP - 4, kind="axis")
    return picture.svg()


def begun(words: Words, height: float) -> tuple[Picture, float]:
    """Return a picture with its words, and where the room of this height begins that is left between them."""
    width = WIDTH - 2 * EDGE
    above = wrapped(words.caption, width, SMALL_SIZE)
    below = [line for text in words.foot for line in wrapped(text, width, FOOT_SIZE)]
    top = 44 + len(above) * 16
    picture = Picture(WIDTH, top + height + len(below) * 14 + 16, f"{words.title}. {words.caption}")
    picture.text(EDGE, 28, words.title, size=TITLE_SIZE, bold=True)
    for number, text in enumerate(above):
        picture.text(EDGE, 46 + number * 16, text, kind="soft", size=SMALL_SIZE)
    for number, text in enumerate(below):
        picture.text(EDGE, top + height + 14 + number * 14, text, kind="soft", size=FOOT_SIZE)
    return picture, top

"""Pictures of lines that show how something grows, on logarithmic axes: ratios look alike wherever they are. Pure.

What has no figure is named all the same, and has no line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.charts import EDGE, SMALL_SIZE, WIDTH, Words, begun, colour
from scripts.bench.svg import Picture, text_width

_PLOT_HEIGHT = 250.0
_LABEL_STEP = 18.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y), in the order of x.

    `dots` are further points that are shown beside it; `note` stands behind its name.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    dots: tuple[tuple[float, float], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says and how it runs.

    `kind`: `log`, or `steps`, the same distance between all values that there are. `most`: what lies beyond is cut off.
    """

    title: str
    kind: str = "log"
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Limit:
    """A line across that not all should pass."""

    value: float
    text: str


def lines(words: Words, x: Axis, y: Axis, series: Sequence[Series], limit: Limit | None = None) -> str:
    """Return a picture with a line for each series, and its name beside where it ends."""
    shown = [point for one in series for point in (*_finite(one, y.most), *_dots(one, y.most))]
    if not shown:
        picture, top = begun(words, 30)
        picture.text(EDGE, top + 15, "no figures", kind="soft")
        return picture.svg()
    xs = sorted({point[0] for point in shown})
    ys = [min(point[1], y.most) for point in shown] + ([limit.value] if limit else [])
    picture, top = begun(words, _PLOT_HEIGHT + 68)
    plot = _Plot(
        x_ticks=xs if x.kind == "steps" else log_ticks(xs[0], xs[-1]),
        y_ticks=log_ticks(min(ys), max(ys)),
        even=x.kind == "steps",
        right=WIDTH - EDGE - max(_name_width(one) for one in series) - 22,
        top=top + 18,
    )
    _axes(picture, plot, x, y)
    if limit is not None:
        picture.line(plot.left, plot.y(limit.value), plot.right, plot.y(limit.value), kind="axis", dashed=True)
    _series(picture, plot, series, y.most)
    if limit is not None:
        picture.text(plot.left + 6, plot.y(limit.value) - 5, limit.text, kind="soft over", size=SMALL_SIZE)
    return picture.svg()


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where values lie in a picture."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    even: bool
    right: float
    top: float

    @property
    def left(self) -> float:
        return EDGE + max(text_width(_tick(tick), SMALL_SIZE) for tick in self.y_ticks) + 8

    @property
    def bottom(self) -> float:
        return self.top + _PLOT_HEIGHT

    def x(self, value: float) -> float:
        if self.even:
            step = (self.right - self.left - 28) / max(1, len(self.x_ticks) - 1)
            return self.left + 14 + step * self.x_ticks.index(value)
        return self.left + (self.right - self.left) * _share(value, self.x_ticks)

    def y(self, value: float) -> float:
        return self.bottom - _PLOT_HEIGHT * _share(value, self.y_ticks)


def _share(value: float, ticks: Sequence[float]) -> float:
    """Return how far a value lies between the first tick and the last, in powers of ten."""
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    return (math.log10(value) - low) / (high - low)


def _axes(picture: Picture, plot: _Plot, x: Axis, y: Axis) -> None:
    picture.text(EDGE, plot.top - 12, f"{y.title} (logarithmic)", kind="soft", size=SMALL_SIZE)
    for tick in plot.y_ticks:
        picture.line(plot.left, plot.y(tick), plot.right, plot.y(tick))
        picture.text(plot.left - 6, plot.y(tick) + 4, _tick(tick), anchor="end", kind="soft", size=SMALL_SIZE)
    picture.line(plot.left, plot.bottom, plot.right, plot.bottom, kind="axis")
    for tick in plot.x_ticks:
        picture.line(plot.x(tick), plot.bottom, plot.x(tick), plot.bottom + 4, kind="axis")
        picture.text(plot.x(tick), plot.bottom + 18, _tick(tick), anchor="middle", kind="soft", size=SMALL_SIZE)
    middle = (plot.left + plot.right) / 2
    picture.text(middle, plot.bottom + 38, x.title, anchor="middle", kind="soft", size=SMALL_SIZE)


def _series(picture: Picture, plot: _Plot, series: Sequence[Series], most: float) -> None:
    """Draw the lines, and their names in the order in which they end."""
    ends: list[tuple[float, Series]] = []
    for one in series:
        points = [(plot.x(x), plot.y(min(y, most))) for x, y in _finite(one, most)]
        for x, y in _dots(one, most):
            picture.dot(plot.x(x), plot.y(y), colour(one.name), radius=1.8)
        if points:
            picture.path(points, colour(one.name), thick=3.0 if one.name == "Chimera" else 2.0)
            if not one.dots:
                for x, y in points:
                    picture.dot(x, y, colour(one.name))
        ends.append((points[-1][1] if points else plot.bottom, one))
    ends.sort(key=lambda end: end[0])
    places = apart([end for end, _ in ends], _LABEL_STEP, plot.top, plot.bottom)
    for y, (_, one) in zip(places, ends, strict=True):
        picture.dot(plot.right + 12, y, colour(one.name), radius=4)
        picture.text(plot.right + 21, y + 4.5, one.name, bold=one.name == "Chimera")
        if one.note:
            picture.text(WIDTH - EDGE, y + 4.5, one.note, anchor="end", kind="soft", size=SMALL_SIZE)


def _name_width(one: Series) -> float:
    return text_width(one.name, bold=True) + (text_width(one.note, SMALL_SIZE) + 12 if one.note else 0)


def apart(wanted: Sequence[float], step: float, first: float, last: float) -> list[float]:
    """Return places near the wanted ones (in rising order), at least `step` apart, from `first` to `last`.

    Where there is not room enough, they go on beyond `last`.
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, first, places[-1] + step if places else first))
    over = last
    for number in range(len(places) - 1, -1, -1):
        places[number] = max(min(places[number], over), first + number * step)
        over = places[number] - step
    return places


def log_ticks(least: float, most: float) -> list[float]:
    """Return the values to write at a logarithmic axis from at most `least` to at least `most`: 1, 2, 5, 10, …

    Powers of ten alone, where there would be more than eight.
    """
    low, high = math.floor(math.log10(least) + 1e-9), math.ceil(math.log10(most) - 1e-9)
    fine = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]
    from_here = max(tick for tick in fine if tick <= least * 1.000001)
    to_here = min(tick for tick in fine if tick >= most / 1.000001)
    found = [tick for tick in fine if from_here <= tick <= to_here]
    if len(found) > 8:
        found = [10.0**power for power in range(low, high + 1)]
    return found if len(found) > 1 else [found[0], found[0] * 10]


def _finite(one: Series, most: float) -> list[tuple[float, float]]:
    """Return the points that can be shown, none after the first that lies beyond `most`."""
    found: list[tuple[float, float]] = []
    for x, y in one.points:
        if not math.isfinite(y) or y <= 0:
            continue
        found.append((x, y))
        if y > most:
            break
    return found


def _dots(one: Series, most: float) -> list[tuple[float, float]]:
    return [(x, y) for x, y in one.dots if math.isfinite(y) and 0 < y <= most]


def _tick(value: float) -> str:
    return f"{value:,.10g}"

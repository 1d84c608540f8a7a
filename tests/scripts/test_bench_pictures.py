"""The report's pictures: XML that is well-formed, every label there, nothing outside the picture."""

import math
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench.charts import COLOURS, Bar, Words, bars
from scripts.bench.plot import Axis, Limit, Series, apart, lines, log_ticks
from scripts.bench.svg import STYLE, Picture, text_width, wrapped

SVG = "{http://www.w3.org/2000/svg}"
FOOT = ("python -m scripts.bench cost --rounds 5", "A Processor " * 20)
WORDS = Words(
    'A <title> & "more"', "What it shows, in a caption that says a little more than there is room for. " * 2, FOOT
)


def texts_of(picture: str) -> list[str]:
    return [str(one.text) for one in Xml.fromstring(picture).iter(f"{SVG}text")]


def extents(picture: str) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield what each element covers: its tag, left, top, right, bottom."""
    for one in Xml.fromstring(picture).iter():
        tag, at = one.tag.removeprefix(SVG), {name: one.get(name, "") for name in one.keys()}  # noqa: SIM118
        if tag == "text":
            wide = text_width(str(one.text), float(at["font-size"]), bold="font-weight" in at)
            left = float(at["x"]) - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[at["text-anchor"]]
            yield str(one.text), left, float(at["y"]) - float(at["font-size"]), left + wide, float(at["y"]) + 3
        elif tag == "rect":
            x, y = float(at["x"]), float(at["y"])
            yield tag, x, y, x + float(at["width"]), y + float(at["height"])
        elif tag == "line":
            yield tag, float(at["x1"]), float(at["y1"]), float(at["x2"]), float(at["y2"])
        elif tag == "circle":
            x, y, r = (float(at[name]) for name in ("cx", "cy", "r"))
            yield tag, x - r, y - r, x + r, y + r
        elif tag == "polyline":
            points = [[float(part) for part in point.split(",")] for point in at["points"].split()]
            xs, ys = zip(*points, strict=True)
            yield tag, min(xs), min(ys), max(xs), max(ys)


def inside(picture: str) -> None:
    """Nothing is outside the view box."""
    root = Xml.fromstring(picture)
    width, height = (float(text) for text in root.get("viewBox", "").split()[2:])
    assert (root.get("width"), root.get("height")) == tuple(root.get("viewBox", "").split()[2:])
    for what, left, top, right, bottom in extents(picture):
        assert 0 <= min(left, right) <= max(left, right) <= width, f"{what}: {left} to {right} of {width}"
        assert 0 <= min(top, bottom) <= max(top, bottom) <= height, f"{what}: {top} to {bottom} of {height}"


def apart_from_each_other(picture: str) -> None:
    """No text lies on another."""
    boxes = [box for box in extents(picture) if box[0] not in ("rect", "line", "circle", "polyline")]
    for number, (text, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[number + 1 :]:
            free = right <= left2 or right2 <= left or bottom - 3 <= top2 + 3 or bottom2 - 3 <= top + 3
            assert free, f"{text!r} and {other!r} lie on each other"


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_wide_letter_is_wider_and_bold_too() -> None:
    assert text_width("iii") < text_width("aaa") < text_width("mmm")
    assert text_width("a", 26) == 2 * text_width("a", 13)
    assert text_width("a", bold=True) > text_width("a")


@given(st.text(alphabet="ab m", max_size=80), st.integers(20, 300))
def test_wrapped_text_has_all_its_words_and_fits(text: str, width: int) -> None:
    made = wrapped(text, width)
    assert " ".join(made) == " ".join(text.split())
    assert all(text_width(line) <= width or " " not in line for line in made)


def test_text_is_text_whatever_is_in_it() -> None:
    picture = Picture(200, 100, "<&>")
    picture.text(10, 20, 'a < b & "c"')
    assert texts_of(picture.svg()) == ['a < b & "c"']
    title = Xml.fromstring(picture.svg()).find(f"{SVG}title")
    assert title is not None
    assert title.text == "<&>"


def test_on_a_dark_page_the_card_and_what_stands_on_it_change_together() -> None:
    light, _, dark = STYLE.partition("@media (prefers-color-scheme: dark)")
    for name in (".card", ".text", ".soft", ".grid"):
        assert name in light
        assert name in dark


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("card", ["#ffffff", "#0d1117"])
@pytest.mark.parametrize("colour", sorted(set(COLOURS.values())))
def test_every_colour_is_seen_on_both_cards(colour: str, card: str) -> None:
    assert card in STYLE
    dark, bright = sorted((luminance(colour), luminance(card)))
    assert (bright + 0.05) / (dark + 0.05) >= 3


# -- bars --------------------------------------------------------------------------------------------------------------

BARS = [
    Bar("nginx", 14.0, "14 µs · 0.95 × HAProxy's"),
    Bar("HAProxy", 14.4, "14.4 µs"),
    Bar("Chimera", 1340.0, "1,340 µs"),
]


def widths(picture: str) -> list[float]:
    boxes = Xml.fromstring(picture).iter(f"{SVG}rect")
    return [float(box.get("width", "")) for box in boxes if box.get("class") != "card"]


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars(WORDS, BARS)
    short, _, long = widths(picture)
    assert long / short == pytest.approx(1340 / 14, rel=0.02)
    assert {one for bar in BARS for one in (bar.name, bar.note)} <= set(texts_of(picture))
    assert WORDS.title in texts_of(picture)
    assert " ".join(FOOT).strip() in " ".join(texts_of(picture)), "in as many lines as it needs"


def test_the_bar_that_stands_out_is_chimeras() -> None:
    boxes = [box.get("fill") for box in Xml.fromstring(bars(WORDS, BARS)).iter(f"{SVG}rect") if box.get("fill")]
    assert boxes[2] == COLOURS["Chimera"]
    assert COLOURS["Chimera"] not in boxes[:2]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_what_has_no_length_has_no_bar_but_a_name(value: float) -> None:
    picture = bars(WORDS, [*BARS, Bar("LiteLLM", value, "–")])
    assert len(widths(picture)) == 3
    assert "LiteLLM" in texts_of(picture)
    assert widths(bars(WORDS, [Bar("LiteLLM", value, "–")])) == []


NAMES = st.sampled_from(["Chimera", "HAProxy", "a peer with a long name", "x"])
VALUES = st.floats(0, 1e9) | st.just(math.nan)


@given(
    st.lists(
        st.builds(Bar, name=NAMES, value=VALUES, note=st.sampled_from(["–", "1,234 µs · 17 × HAProxy's"])), min_size=1
    )
)
def test_bars_are_inside_and_no_text_lies_on_another(rows: list[Bar]) -> None:
    picture = bars(WORDS, rows)
    inside(picture)
    apart_from_each_other(picture)


# -- lines -------------------------------------------------------------------------------------------------------------

SERIES = [
    Series("HAProxy", ((2.0, 10.0), (16.0, 11.0), (256.0, 12.0))),
    Series("Chimera", ((2.0, 100.0), (16.0, 110.0), (256.0, 120.0)), note="120 / s"),
    Series("nginx", ((2.0, 10.0), (16.0, 11.0), (256.0, 12.1))),
]
STEPS, LOG = Axis("workers", "steps"), Axis("µs")


def paths(picture: str) -> list[list[tuple[float, float]]]:
    found = [one.get("points", "").split() for one in Xml.fromstring(picture).iter(f"{SVG}polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in points)] for points in found]


def test_lines_run_as_their_points_do() -> None:
    picture = lines(WORDS, STEPS, LOG, SERIES)
    low, high, _ = paths(picture)
    assert [x for x, _ in low] == [x for x, _ in high]
    assert low[1][0] - low[0][0] == pytest.approx(low[2][0] - low[1][0], abs=0.2), "steps are alike"
    assert all(above[1] < below[1] for above, below in zip(high, low, strict=True))
    assert {"HAProxy", "Chimera", "120 / s", "nginx", "2", "16", "256", "workers", "µs (logarithmic)"} <= set(
        texts_of(picture)
    )


def test_names_of_lines_that_end_together_stand_below_each_other() -> None:
    places = {one[0]: one[2] for one in extents(lines(WORDS, STEPS, LOG, SERIES))}
    assert places["Chimera"] < places["nginx"] < places["HAProxy"]
    assert places["HAProxy"] - places["nginx"] >= 15


def test_a_limit_is_a_line_with_its_text() -> None:
    picture = lines(WORDS, LOG, Axis("ms"), SERIES, Limit(50.0, "50 ms"))
    assert "50 ms" in texts_of(picture)
    (dashed,) = [one for one in Xml.fromstring(picture).iter(f"{SVG}line") if one.get("stroke-dasharray")]
    low, high, _ = paths(picture)
    assert high[0][1] < float(dashed.get("y1", "")) < low[0][1]


def test_a_line_ends_with_the_first_point_that_is_too_much() -> None:
    rising = Series("Chimera", ((1.0, 10.0), (2.0, 5000.0), (3.0, 20.0)), dots=((1.5, 7000.0), (1.5, 12.0)))
    picture = lines(WORDS, LOG, Axis("ms", most=100.0), [rising])
    (path,) = paths(picture)
    assert len(path) == 2
    inside(picture)


def test_a_point_that_is_none_is_left_out() -> None:
    picture = lines(WORDS, STEPS, LOG, [Series("Chimera", ((1.0, 10.0), (2.0, math.nan), (3.0, 20.0), (4.0, 0.0)))])
    assert [len(path) for path in paths(picture)] == [2]


def test_without_a_single_figure_it_says_so() -> None:
    picture = lines(WORDS, STEPS, LOG, [Series("Chimera", ((1.0, math.nan),))])
    assert "no figures" in texts_of(picture)
    inside(picture)


POINTS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 16.0, 10_000.0]), st.floats(1e-3, 1e6)), max_size=4, unique_by=lambda p: p[0]
)


LINE = st.builds(Series, NAMES, POINTS.map(lambda made: tuple(sorted(made))), note=st.sampled_from(["", "51,224 / s"]))


@given(st.lists(LINE, min_size=1, max_size=6), st.sampled_from([math.inf, 100.0]))
def test_lines_are_inside_and_no_text_lies_on_another(series: list[Series], most: float) -> None:
    picture = lines(WORDS, STEPS, Axis("ms", most=most), series, Limit(10.0, "10 ms"))
    inside(picture)
    labels = [one.name for one in series]
    assert [text for text in texts_of(picture) if text in labels].count(labels[0]) >= 1 or "no figures" in picture


def test_names_get_as_much_room_as_they_need() -> None:
    picture = lines(WORDS, STEPS, LOG, [Series(f"peer {n}", ((1.0, 5.0), (2.0, 5.0 + n / 100))) for n in range(6)])
    apart_from_each_other(picture)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=8))
def test_places_are_apart_in_order_and_within(wanted: list[float]) -> None:
    places = apart(sorted(wanted), 18.0, 50.0, 250.0)
    assert all(second - first >= 18 - 1e-6 for first, second in pairwise(places))
    assert 50.0 <= places[0] <= places[-1] <= 250.0 + 1e-6


@pytest.mark.parametrize(
    ("least", "most", "ticks"),
    [
        (12, 480, [10, 20, 50, 100, 200, 500]),
        (2000, 51_000, [2000, 5000, 10_000, 20_000, 50_000, 100_000]),
        (0.1, 100_000, [0.1, 1, 10, 100, 1000, 10_000, 100_000]),
        (10, 10, [10, 100]),
        (10, 100, [10, 20, 50, 100]),
        (0.3, 0.4, [0.2, 0.5]),
    ],
)
def test_ticks_hold_all_values_between_them(least: float, most: float, ticks: list[float]) -> None:
    assert log_ticks(least, most) == pytest.approx(ticks)


@given(st.floats(1e-6, 1e9), st.floats(1, 1e6))
def test_there_are_always_a_few_ticks_around_all_values(least: float, times: float) -> None:
    ticks = log_ticks(least, least * times)
    assert ticks[0] <= least * 1.001
    assert ticks[-1] >= least * times / 1.001
    assert 2 <= len(ticks) <= 9

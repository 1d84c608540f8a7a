"""What the report says of the proxy alone: its cost, how that grows, and where it is full. Pure."""

import math
import statistics
from collections.abc import Sequence

from scripts.bench.charts import Bar, Words, bars
from scripts.bench.markdown import NONE, number, table, times
from scripts.bench.measurement import Record
from scripts.bench.plot import Axis, Limit, Series, lines
from scripts.bench.section import Row, Section, bar_note, cpu_us, faults_of, lost, made_with, sides_of

# Streams at once of the picture and of the criterion.
STREAMS = 64
# Beyond this no delay is shown: it has long been too much.
_MOST_SHOWN_MS = 100.0
# Nor any rate below this: those that fail here have failed.
_LEAST_RATE = 1_000.0
_LEFT_OUT = "Where requests failed there is no point."
# Rates that are nearer to each other than this are one point of a line.
_BIN = 1.3


def cost(made: Record) -> Section:
    """CPU of the proxy, and what it adds to the first byte."""
    section = Section("Cost: CPU per request and per chunk")
    rows: list[Row] = made.figures["rows"]
    unary = [row for row in rows if row["what"] == "unary"]
    streams = [row for row in rows if row["what"] == "stream"]
    for file, what, some in (("cost-request.svg", "request", unary), ("cost-chunk.svg", "chunk", _best(streams))):
        if some:
            section.show(file, _cost_bars(made, what, some), f"CPU of the proxy per {what}")
    if streams:
        series = _series([row for row in streams if row["side"] != "direct"])
        words = Words(
            "CPU of the proxy per streamed chunk, by streams at once",
            f"{made.figures['rate']:g} chunks a second each. Less is better. {_LEFT_OUT}", made_with(made),
        )  # fmt: skip
        picture = lines(words, Axis("streams at once", "steps"), Axis("µs a chunk"), series)
        section.show("cost-streams.svg", picture, "CPU per chunk against the number of streams")
    heads = ("at once", "through", "CPU, µs", "× HAProxy's", "a second", "first byte +ms, p50", "p99", "failed")
    for what, some in (("A short answer, connections kept, per request:", unary), ("Streams, per chunk:", streams)):
        if some:
            section.say(what)
            section.say(*table(heads, [_cost_cells(row) for row in some], left=2))
    faults_of(section, rows)
    return section


def _best(streams: Sequence[Row]) -> list[Row]:
    """Return the rows of 64 streams, else those of the most streams that there are."""
    sizes = {row["size"] for row in streams}
    size = STREAMS if STREAMS in sizes else max(sizes, default=0)
    return [row for row in streams if row["size"] == size]


def _cost_bars(made: Record, what: str, rows: Sequence[Row]) -> str:
    at_once = f"{rows[0]['size']} {'streams' if what == 'chunk' else 'connections'} at once"
    through = f"{made.figures['workers']} workers"
    words = Words(f"CPU of the proxy per {'streamed chunk' if what == 'chunk' else 'request'}",
                  f"µs; {at_once}, {through}. Less is better.", made_with(made))  # fmt: skip
    shown = [row for row in rows if row["side"] != "direct"]
    return bars(
        words,
        [Bar(row["side"], cpu_us(row), bar_note(cpu_us(row), "µs", row["times_haproxy"]) + lost(row)) for row in shown],
    )


def _cost_cells(row: Row) -> list[str]:
    direct = row["side"] == "direct"
    added = [NONE, NONE] if direct else [number(row[f"added_first_byte_{share}_ms"]) for share in ("p50", "p99")]
    cpu = [NONE, NONE] if direct else [number(cpu_us(row)), times(row["times_haproxy"])]
    return [str(row["size"]), row["side"], *cpu, number(row["per_s"]), *added, str(row["failed"])]


def growth(made: Record) -> Section:
    """How the cost grows."""
    section = Section("How the cost grows")
    rows: list[Row] = made.figures["rows"]
    for what, file, title, x_title, unit in (
        ("stream by workers", "growth-workers-chunk.svg", "CPU per streamed chunk, by workers", "workers", "chunk"),
        ("unary by workers", "growth-workers-request.svg", "CPU per request, by workers", "workers", "request"),
        ("unary by queue", "growth-queue.svg", "CPU per request, by length of the queue", "requests that wait",
         "request"),
    ):  # fmt: skip
        some = [row for row in rows if row["what"] == what]
        if not some:
            continue
        words = Words(title, f"µs of the proxy's CPU a {unit}. Less is better. {_LEFT_OUT}", made_with(made))
        picture = lines(words, Axis(x_title, "steps"), Axis(f"µs a {unit}"), _series(some))
        section.show(file, picture, title)
        section.say(*_by_size(x_title, some))
    faults_of(section, rows)
    return section


def _series(rows: Sequence[Row]) -> list[Series]:
    """Return a line of CPU by size for each side, without what requests failed in."""
    good = [row for row in rows if not row["failed"]]
    return [
        Series(side, tuple((float(row["size"]), cpu_us(row)) for row in good if row["side"] == side))
        for side in sides_of(rows)
    ]


def _by_size(head: str, rows: Sequence[Row]) -> list[str]:
    """Return a table with a line for each size, and a column for each side."""
    sides = sides_of(rows)
    cells: list[list[str]] = []
    for size in dict.fromkeys(row["size"] for row in rows):
        by = {row["side"]: row for row in rows if row["size"] == size}
        cpu = [f"{number(cpu_us(by[side]))}{lost(by[side], ' (', ')')}" if side in by else NONE for side in sides]
        cells.append([f"{size:,}", *cpu, times(by["Chimera"]["times_haproxy"] if "Chimera" in by else None)])
    return table((head, *(f"{side}, µs" for side in sides), "Chimera in HAProxy's"), cells)


def saturation(made: Record) -> Section:
    """How fast, in time."""
    section = Section("Saturation: chunks a second on one core")
    rows: list[Row] = made.figures["rows"]
    limit = float(made.figures["most_delay_ms"])
    for streams in dict.fromkeys(row["streams"] for row in rows):
        some = [row for row in rows if row["streams"] == streams]
        words = Words(f"Delay of chunks, p99, by rate: {streams} streams",
                      f"From the worker's sending to the client, the proxy on one core; {limit:g} ms is the limit. "
                      "What direct has is the measurement's own. "
                      "Each dot is one try; at the names: the highest rate in time.",
                      made_with(made))  # fmt: skip
        series = [Series(row["side"], middles(row["steps"]), _dots(row["steps"]), f"{number(row['chunks_per_s'])} / s")
                  for row in some]  # fmt: skip
        picture = lines(words, Axis("chunks a second that are sent"), Axis("ms, p99", most=_MOST_SHOWN_MS), series,
                        Limit(limit, f"{limit:g} ms"))  # fmt: skip
        section.show(f"saturation-{streams}.svg", picture, f"Delay p99 against rate, {streams} streams")
    heads = ("streams", "through", "chunks a second in time", "× HAProxy's", "the rounds")
    section.say(*table(heads, [
        [str(row["streams"]), row["side"], number(row["chunks_per_s"]), times(row["times_haproxy"]),
         ", ".join(number(rate) for rate in row["rounds_chunks_per_s"])]
        for row in rows
    ], left=2))  # fmt: skip
    return section


def middles(steps: Sequence[Row]) -> tuple[tuple[float, float], ...]:
    """Return a line through what was tried: rates that are near to each other are one point, in their middle.

    Of a rate that was tried once more, what came of that counts.
    """
    after: Sequence[Row | None] = [*steps[1:], None]
    last = [step for step, more in zip(steps, after, strict=True)
            if more is None or more["asked_per_s"] != step["asked_per_s"]]  # fmt: skip
    groups: list[list[tuple[float, float]]] = []
    for rate, delay in sorted(_dots(last)):
        if not groups or rate > groups[-1][0][0] * _BIN:
            groups.append([])
        groups[-1].append((rate, delay))
    return tuple(
        (statistics.median(rate for rate, _ in one), statistics.median(delay for _, delay in one)) for one in groups
    )


def _dots(steps: Sequence[Row]) -> tuple[tuple[float, float], ...]:
    found = ((float(step["asked_per_s"]), float(step["delay_p99_ms"])) for step in steps)
    return tuple((rate, delay) for rate, delay in found if math.isfinite(delay) and rate >= _LEAST_RATE)

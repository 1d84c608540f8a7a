"""What the report says of the whole: batches, conversations, decisions. Pure."""

from collections.abc import Mapping

from scripts.bench.charts import Bar, Words, bars
from scripts.bench.markdown import NONE, number, table, times
from scripts.bench.measurement import Record
from scripts.bench.section import Row, Section, bar_note, faults_of, lost, lost_share, made_with


def makespan(made: Record) -> Section:
    """How long a batch takes."""
    section = Section("Makespan: how long a batch takes")
    rows: list[Row] = made.figures["rows"]
    about = f"{made.figures['requests']} requests at once, {made.figures['workers']} workers"
    for scene in dict.fromkeys(row["scene"] for row in rows):
        some = [row for row in rows if row["scene"] == scene]
        words = Words(f"Makespan: {_SCENES.get(scene, scene)}", f"Seconds; {about}. Less is better.", made_with(made))
        picture = bars(words, [
            Bar(row["side"], row["makespan_s"], bar_note(row["makespan_s"], "s", row["times_haproxy"]) + lost(row))
            for row in some
        ])  # fmt: skip
        section.show(f"makespan-{scene.replace(' ', '-')}.svg", picture, f"Makespan: {_SCENES.get(scene, scene)}")
    heads = ("scene", "through", "makespan, s", "× HAProxy's", "half of the answers in, s", "loads", "failed")
    section.say(*table(heads, [
        [row["scene"], row["side"], number(row["makespan_s"]), times(row["times_haproxy"]),
         number(row["answer_p50_s"]), number(row["loads"]), str(row["failed"])]
        for row in rows
    ], left=2))  # fmt: skip
    faults_of(section, rows, "scene")
    return section


_SCENES = {
    "mixed": "short and long answers",
    "unequal": "one of the workers is slower",
    "two models": "two models, room for one in each worker",
}


def conversations(made: Record) -> Section:
    """How soon later turns begin."""
    section = Section("Conversations: the first token of later turns")
    figures = made.figures
    for scene in figures["scenes"]:
        sides: Mapping[str, Row] = scene["sides"]
        workers = f"{scene['workers']} workers of {scene['slots']} slot{'s' * (scene['slots'] > 1)}"
        words = Words(
            f"Time to the first token of later turns, {workers}",
            f"Median, ms; real Ollama, {figures['model']}, {figures['talks']} conversations in step. Less is better.",
            made_with(made),
        )  # fmt: skip
        picture = bars(
            words, [Bar(side, one["median_ms"], f"{number(one['median_ms'])} ms") for side, one in sides.items()]
        )
        section.show(f"conversations-{scene['workers']}.svg", picture, words.title)
        heads = (workers, "median, ms", "longest, ms", "each round's median, ms", "a round took, s")
        section.say(*table(heads, [
            [side, number(one["median_ms"]), number(one["longest_ms"]),
             ", ".join(number(value) for value in one["rounds_median_ms"]),
             ", ".join(number(value) for value in one["rounds_s"])]
            for side, one in sides.items()
        ]))  # fmt: skip
        sooner = number(scene["times_sooner"])
        section.say(f"Through Chimera the first token comes {sooner} times sooner (median of the rounds' ratios).")
    return section


def kills(made: Record) -> Section:
    """What is lost while workers die."""
    section = Section("Workers that die: what is lost")
    figures = made.figures
    rows: list[Row] = figures["rows"]
    words = Words(
        f"Requests lost while a worker is killed every {figures['every_s']:g} seconds",
        f"Of 1,000; {figures['clients']} clients, {figures['workers']} workers of {figures['slots']} slots. "
        "Less is better.", made_with(made),
    )  # fmt: skip
    picture = bars(words, [Bar(row["side"], 1000 * lost_share(row), _lost_note(row)) for row in rows])
    section.show("kills.svg", picture, "Requests lost while workers are killed")
    heads = ("through", "kills", "answered", "lost before a byte", "lost midway", "first byte, ms, p50", "p99",
             "whole answer, s, p50", "p99")  # fmt: skip
    section.say(*table(heads, [
        [row["side"], *(f"{row[name]:,}" for name in ("kills", "answered", "lost_unanswered", "lost_midway")),
         *(number(row[name]) for name in ("first_byte_p50_ms", "first_byte_p99_ms", "answer_p50_s", "answer_p99_s"))]
        for row in rows
    ]))  # fmt: skip
    for row in rows:
        if row["faults"]:
            section.say(f"{row['side']}: {'; '.join(row['faults'])}")
    return section


def _lost_note(row: Row) -> str:
    lost = f"{row['lost_unanswered']} before a byte, {row['lost_midway']} midway"
    return f"{number(1000 * lost_share(row))} · {lost} · {row['kills']} kills"


def memory(made: Record) -> Section:
    """What is held for each connection and request."""
    section = Section("Memory of the proxy")
    rows: list[Row] = made.figures["rows"]
    count, kind = made.figures["count"], made.figures["memory"]
    for what, size in dict.fromkeys((row["what"], row["body_bytes"]) for row in rows):
        some = [row for row in rows if (row["what"], row["body_bytes"]) == (what, size)]
        title = _held(what, size)
        of = "" if what == "idle" else f" each, {count:,} at once"
        words = Words(f"Memory of the proxy: {title}", f"{kind}{of}. Less is better.", made_with(made))
        picture = bars(words, [Bar(row["side"], row["bytes_each"], kib(row["bytes_each"])) for row in some])
        section.show(f"memory-{title.replace(' ', '-')}.svg", picture, f"Memory of the proxy: {title}")
    theirs = {(row["what"], row["body_bytes"]): float(row["bytes_each"]) for row in rows if row["side"] == "HAProxy"}
    cells = []
    for row in rows:
        other = theirs.get((row["what"], row["body_bytes"]), 0.0)
        ratio = times(float(row["bytes_each"]) / other) if other > 0 else NONE
        held = NONE if row["what"] == "idle" else f"{row['held']:,}"
        cells.append([_held(row["what"], row["body_bytes"]), row["side"], kib(row["bytes_each"]), ratio, held])
    section.say(*table(("", "through", f"{kind}, KiB or MiB", "× HAProxy's", "held"), cells, left=2))
    return section


def _held(what: str, size: int) -> str:
    return f"{what} of {size / 1024:g} KiB" if size else what


def kib(size: float) -> str:
    """Return a size in KiB or, from one on, in MiB."""
    return f"{number(size / 2**20)} MiB" if abs(size) >= 2**20 else f"{number(size / 1024)} KiB"


def decision(made: Record) -> Section:
    """The dispatcher alone."""
    section = Section("A decision of the dispatcher")
    figures = made.figures
    rounds = ", ".join(number(value) for value in figures["rounds_us"])
    section.say(f"{number(figures['decision_us'])} µs of CPU, {figures['workers']} workers and {figures['waiting']:,} "
                f"waiting tickets (the rounds: {rounds}).")  # fmt: skip
    return section

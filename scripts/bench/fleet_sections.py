"""What the report says of the whole: batches, conversations, decisions. Pure."""

from collections.abc import Mapping

from scripts.bench.charts import Bar, Words, bars
from scripts.bench.markdown import number, table, times
from scripts.bench.measurement import Record
from scripts.bench.section import Row, Section, bar_note, faults_of, lost, made_with


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
    sides: Mapping[str, Row] = figures["sides"]
    about = f"{figures['talks']} conversations in step, {figures['workers']} workers of {figures['slots']} slots"
    words = Words("Time to the first token of later turns, real Ollama",
                  f"Median, ms; {figures['model']}, {about}. Less is better.", made_with(made))  # fmt: skip
    picture = bars(
        words, [Bar(side, one["median_ms"], f"{number(one['median_ms'])} ms") for side, one in sides.items()]
    )
    section.show("conversations.svg", picture, "Time to the first token of later turns")
    heads = ("through", "median, ms", "longest, ms", "each round's median, ms", "a round took, s")
    section.say(*table(heads, [
        [side, number(one["median_ms"]), number(one["longest_ms"]),
         ", ".join(number(value) for value in one["rounds_median_ms"]),
         ", ".join(number(value) for value in one["rounds_s"])]
        for side, one in sides.items()
    ]))  # fmt: skip
    sooner = figures["criteria"]["turns_times_sooner"]
    section.say(f"Through Chimera the first token comes {number(sooner)} times sooner (median of the rounds' ratios).")
    return section


def decision(made: Record) -> Section:
    """The dispatcher alone."""
    section = Section("A decision of the dispatcher")
    figures = made.figures
    rounds = ", ".join(number(value) for value in figures["rounds_us"])
    section.say(f"{number(figures['decision_us'])} µs of CPU, {figures['workers']} workers and {figures['waiting']:,} "
                f"waiting tickets (the rounds: {rounds}).")  # fmt: skip
    return section

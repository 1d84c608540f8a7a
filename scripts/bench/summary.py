"""The table of the project's README: one line for each thing measured, one column for each side. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from scripts.bench.markdown import NONE, number, table
from scripts.bench.measurement import Record
from scripts.bench.section import Row, lost_share, version_of

# Of those that are there, the first two are shown.
PICTURES = {
    "cost-chunk.svg": "CPU of the proxy per streamed chunk",
    "makespan-two-models.svg": "Makespan of a batch for two models",
    "conversations-4.svg": "Time to the first token of later turns",
    "cost-request.svg": "CPU of the proxy per request",
}
_MOST_PICTURES = 2
# What `make bench` does when nothing is said.
USUAL = "--rounds 5"


@dataclass(slots=True)
class Line:
    """One line of the table: what, and what each side has; with HAProxy's, each as a ratio to that.

    `failed`: how many requests of a side were not answered, if any were not.
    """

    what: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def cell(self, side: str) -> str:
        """Return what stands in a side's column."""
        if side not in self.values:
            return NONE
        value, theirs = self.values[side], self.values.get("HAProxy", 0.0)
        ratio = f" ({number(value / theirs)} ×)" if theirs and side != "HAProxy" else ""
        failed = f", {self.failed[side]:,} failed" if self.failed.get(side) else ""
        return f"{number(value)} {self.unit}".rstrip() + ratio + failed


def lines_of(records: Mapping[str, Record]) -> list[Line]:
    """Return the table's lines, as far as it was measured."""
    found: list[Line] = []
    if "cost" in records:
        rows = records["cost"].figures["rows"]
        found.append(_line("CPU per streamed chunk, 64 streams", "µs", rows, "cpu_us", what="stream", size=64))
        found.append(_line("CPU per request", "µs", rows, "cpu_us", what="unary"))
    if "saturation" in records:
        found.append(_line("chunks a second on one core, p99 delay under 10 ms", "",
                           records["saturation"].figures["rows"], "chunks_per_s", streams=64))  # fmt: skip
    if "makespan" in records:
        for scene, text in (("mixed", "short and long answers"), ("unequal", "unequal workers"),
                            ("two models", "two models, room for one")):  # fmt: skip
            found.append(
                _line(f"makespan: {text}", "s", records["makespan"].figures["rows"], "makespan_s", scene=scene)
            )
    if "conversations" in records:
        for scene in records["conversations"].figures["scenes"]:
            rows = [{"side": side, **one} for side, one in scene["sides"].items()]
            text = f"first token of a conversation's later turns, real Ollama, {scene['workers']} workers"
            found.append(_line(text, "ms", rows, "median_ms"))
    if "kills" in records:
        figures = records["kills"].figures
        rows = [{"side": row["side"], "lost": 1000 * lost_share(row)} for row in figures["rows"]]
        text = f"requests lost or answers cut, of 1,000, a worker killed every {figures['every_s']:g} s"
        found.append(_line(text, "", rows, "lost"))
        found.append(_line("first byte meanwhile, p99", "ms", figures["rows"], "first_byte_p99_ms"))
    if "memory" in records:
        rows = [row | {"kib": float(row["bytes_each"]) / 1024} for row in records["memory"].figures["rows"]]
        found.append(_line("memory of an idle connection", "KiB", rows, "kib", what="idle connection"))
        found.append(_line("memory of a waiting request of 1 KiB", "KiB", rows, "kib", what="waiting request",
                           body_bytes=1024))  # fmt: skip
    return [line for line in found if line.values]


def _line(text: str, unit: str, rows: Iterable[Row], name: str, **where: object) -> Line:
    some = [row for row in rows if all(row[key] == value for key, value in where.items())]
    if name == "cpu_us":  # there is no proxy whose CPU that could be
        some = [row for row in some if row["side"] != "direct"]
    return Line(text, unit, {row["side"]: float(row[name]) for row in some},
                {row["side"]: int(row.get("failed", 0)) for row in some})  # fmt: skip


def summary(records: Sequence[Record], pictures: Iterable[str], folder: PurePath) -> str:
    """Return the section: the table, pictures that there are in `folder`, and on what it was made."""
    by = {record.name: record for record in records}
    rows = lines_of(by)
    if not rows:
        return f"Nothing is measured yet: `make bench` does, and writes its report to {folder}/.\n"
    sides = [side for side in _sides(rows) if side != "direct"]
    lines = table(("", *sides), [[row.what, *(row.cell(side) for side in sides)] for row in rows])
    there = [name for name in PICTURES if name in set(pictures)][:_MOST_PICTURES]
    lines += ["", "In brackets: how many times HAProxy's. "
              f"All figures, and what each peer is: [{folder}/README.md]({folder}/README.md)."]  # fmt: skip
    lines += [text for name in there for text in ("", f"![{PICTURES[name]}]({folder}/{name})")]
    lines += ["", *_made(records)]
    return "\n".join(lines) + "\n"


def _sides(rows: Sequence[Line]) -> list[str]:
    found = list(dict.fromkeys(side for row in rows for side in row.values))
    return [side for side in found if side != "Chimera"] + [side for side in found if side == "Chimera"]


def _made(records: Sequence[Record]) -> list[str]:
    """Return how it was made: once for each command, machine and commit that there is among the records."""
    runs: dict[str, list[str]] = {}
    for record in records:
        runs.setdefault(f"`{_command(record)}` on {record.machine.what}", []).append(record.name)
    versions = {version_of(name, text) for record in records for name, text in record.versions.items()
                if name not in ("direct", "Chimera")}  # fmt: skip
    made = [run + (f" ({', '.join(names)})" if len(runs) > 1 else "") for run, names in runs.items()]
    return ["; ".join(made) + (f"; {', '.join(sorted(versions, key=str.lower))}" if versions else "") + "."]


def _command(record: Record) -> str:
    """Return the `make bench` that makes such a record."""
    options = record.command.partition(f" {record.name} ")[2]
    return "make bench" if options == USUAL else f'make bench ARGS="{options}"'

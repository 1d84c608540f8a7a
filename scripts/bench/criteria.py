"""What Chimera has set itself to hold next to its peers, and whether a run shows that it does. Pure.

Each measurement's record has what it knows of them in `figures["criteria"]`, by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scripts.bench.markdown import number
from scripts.bench.measurement import Record


@dataclass(frozen=True, slots=True)
class Criterion:
    """One of them. `name` in the records; `most` or `least` is what still holds."""

    name: str
    text: str
    unit: str = ""
    most: float | None = None
    least: float | None = None

    def holds(self, value: float) -> bool:
        """Say whether a value is within the bound."""
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.most is not None:
            return f"at most {self.most:,g}{self.unit}"
        return f"at least {self.least:,g}{self.unit}"


CRITERIA = (
    Criterion("chunk_times_haproxy", "CPU per streamed chunk, 64 streams, in HAProxy's", " times", most=3),
    Criterion("chunk_times_less_than_plain", "the same, times less than a plain Quart and httpx proxy", least=3.5),
    Criterion("request_times_haproxy", "CPU per unary request in HAProxy's", " times", most=8),
    Criterion("chunks_per_s", "chunks a second on one core, p99 delay under 10 ms", least=12_000),
    Criterion("makespan_two_models", "makespan with two models, in HAProxy leastconn's", " times", most=0.5),
    Criterion("makespan_unequal", "makespan with unequal workers, in the best peer's", " times", most=1),
    Criterion(
        "turns_times_sooner_of_two",
        "first token of later turns, two workers, sooner than HAProxy leastconn",
        " times",
        least=6,
    ),
    Criterion("turns_times_sooner_of_four", "the same, four workers", " times", least=6),
    Criterion("decision_us", "a dispatch decision, 256 workers and 10,000 waiting", " µs", most=50),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says of one criterion; `value` None: it was not measured."""

    criterion: Criterion
    value: float | None

    @property
    def word(self) -> str:
        """The verdict alone."""
        if self.value is None:
            return "not measured"
        return "holds" if self.criterion.holds(self.value) else "does not hold"

    @property
    def text(self) -> str:
        """One line."""
        asked = self.criterion
        found = f"{asked.bound}" if self.value is None else f"{number(self.value)}{asked.unit} ({asked.bound})"
        return f"{self.word:14} {asked.text}: {found}"


def verdicts(found: Mapping[str, float]) -> list[Verdict]:
    """Return a verdict on every criterion, from what was found by name."""
    return [Verdict(one, found.get(one.name)) for one in CRITERIA]


def found_in(records: Iterable[Record]) -> dict[str, float]:
    """Return what records know of the criteria; a later one's word counts."""
    found: dict[str, float] = {}
    for made in records:
        found |= made.figures.get("criteria", {})
    return found

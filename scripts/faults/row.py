"""What is known of one fault in the end: a row of the table, and whether a promise was broken. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

COLUMNS = (
    "fault", "with", "detect s", "good answer s", "lost", "cut", "retried", "left", "memory returned", "verdict",
)  # fmt: skip
MIB = 1024**2


class Fate(Enum):
    """What became of one request."""

    GOOD = "good"
    LOST = "lost"  # it failed, and not a byte of an answer had been sent
    CUT = "cut"  # it failed after its first byte, and said so
    RESENT = "resent"  # there was no gateway; its client sent it again


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request of the load. Times are monotonic seconds; `why` is None for a good answer."""

    began: float
    ended: float
    fate: Fate
    worker: str | None = None
    attempts: int = 1
    why: str | None = None


@dataclass(slots=True)
class Row:
    """One fault: what was measured, and which promises were broken.

    `detect_s` and `good_s` count from the injection, in seconds; None: not measured. `good_worker_s` is the first
    good answer of the worker that had the fault. `left` counts processes that outlived their worker's life or
    Chimera's. Of `held_bytes`, the memory that the fault's processes had, `returned_bytes` came back.
    """

    fault: str
    kind: str
    detect_s: float | None = None
    good_s: float | None = None
    good_worker_s: float | None = None
    good: int = 0
    lost: int = 0
    cut: int = 0
    retried: int = 0
    left: int = 0
    held_bytes: int = 0
    returned_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken


def count(row: Row, outcomes: Iterable[Outcome]) -> None:
    """Add what became of the load to a row. Retries are those that Chimera made, whatever came of them."""
    resent = 0
    for outcome in outcomes:
        row.good += outcome.fate is Fate.GOOD
        row.lost += outcome.fate is Fate.LOST
        row.cut += outcome.fate is Fate.CUT
        resent += outcome.fate is Fate.RESENT
        row.retried += outcome.attempts - 1
    if resent:
        row.notes.append(f"{resent} sent again by their clients, since no gateway listened")


def first_good(outcomes: Iterable[Outcome], since: float, worker: str | None = None) -> float | None:
    """When the first good answer to a request that began after `since` was complete; by `worker`, if one is named."""
    ends = [
        outcome.ended
        for outcome in outcomes
        if outcome.fate is Fate.GOOD and outcome.began >= since and worker in (None, outcome.worker)
    ]
    return min(ends, default=None)


def judge(row: Row, *, cuts: bool, why_lost: Sequence[str] = ()) -> None:
    """Add to `broken` what holds for every fault: nothing lost without a byte, nothing left, all memory back.

    `cuts` says whether the fault strikes answers under way; where it does not, none may be cut.
    """
    if row.lost:
        row.broken.append(f"{row.lost} lost ({why_lost[0] if why_lost else 'no reason given'})")
    if row.cut and not cuts:
        row.broken.append(f"{row.cut} cut, though no answer's worker was struck")
    if row.left:
        row.broken.append(f"{row.left} processes left")
    if row.returned_bytes < row.held_bytes:
        row.broken.append(f"{(row.held_bytes - row.returned_bytes) // MIB} MiB not returned")
    if not row.good:
        row.broken.append("no request was answered at all")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as the table's texts."""
    good = seconds(row.good_s)
    if row.good_worker_s is not None:
        good += f" ({seconds(row.good_worker_s)} by its worker)"
    returned = f"{row.returned_bytes // MIB} of {row.held_bytes // MIB} MiB" if row.held_bytes else "-"
    verdict = "; ".join(["kept" if row.kept else "BROKEN: " + "; ".join(row.broken), *row.notes])
    numbers = map(str, (row.lost, row.cut, row.retried, row.left))
    return (row.fault, row.kind, seconds(row.detect_s), good, *numbers, returned, verdict)


def seconds(value: float | None) -> str:
    """A time for people: milliseconds matter below a second only."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def markdown(rows: Iterable[Row], preamble: str) -> str:
    """Return the table as a page in Markdown, `preamble` (a paragraph) before it."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows)]
    lines = ["| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) + " |" for line in table]
    return "\n".join(["# Faults", "", preamble, "", *lines, ""])

"""What was tried and what was found."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: in which target, what, and how to have it again."""

    target: str
    what: str
    reproduction: str


@dataclass(slots=True)
class Tally:
    """The tries of one part, by target, and its findings: at most one per target and kind of fault."""

    part: str
    tries: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def tried(self, target: str, count: int = 1) -> None:
        """Count tries."""
        self.tries[target] = self.tries.get(target, 0) + count

    def found(self, target: str, what: str, reproduction: str) -> None:
        """Note a finding; the same one again is noted once."""
        if all((one.target, one.what[:60]) != (target, what[:60]) for one in self.findings):
            self.findings.append(Finding(target, what, reproduction))

    @property
    def total(self) -> int:
        """All tries."""
        return sum(self.tries.values())


@dataclass(frozen=True, slots=True)
class Clock:
    """A share of the time: `over` once it is spent."""

    ends: float

    @staticmethod
    def of(seconds: float) -> "Clock":
        """Return a clock that runs from now on."""
        return Clock(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds left, none when over."""
        return max(0.0, self.ends - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the time is spent."""
        return self.left_s <= 0

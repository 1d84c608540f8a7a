"""What the probes' answers add up to. Pure."""

from dataclasses import dataclass

# One missed probe is a busy machine; three in a row, each with five seconds of patience, is a hung server.
FAILURES_ALLOWED = 3


@dataclass(frozen=True, slots=True)
class Health:
    """How many probes in a row went unanswered. A value: every change makes a new one."""

    failures: int = 0

    def after(self, *, answered: bool) -> "Health":
        """Return the health after one more probe."""
        return Health() if answered else Health(self.failures + 1)

    @property
    def hung(self) -> bool:
        """Whether the worker is to be replaced."""
        return self.failures >= FAILURES_ALLOWED

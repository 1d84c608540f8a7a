"""Models that end the workers that load them. Pure.

A damaged file can make `ollama serve` itself end while it loads it. Tried on one worker after the other, once for each
request, such a model would take the whole fleet down and keep it there. So after two deaths in a row, while nobody has
it loaded, a model is not tried for a while, and for longer each time.
"""

from dataclasses import dataclass, field

# One may be chance: somebody killed it, memory ran out.
DEATHS = 2
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
# What was so long ago says nothing about now.
FORGOTTEN_S = 3600.0


@dataclass(slots=True)
class _Record:
    at: float
    deaths: int = 0
    pause_s: float = 0.0
    until: float | None = None


@dataclass(slots=True)
class LethalModels:
    """What is known of each model under suspicion; `now` is any steady clock."""

    _records: dict[str, _Record] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether any model is under suspicion."""
        return bool(self._records)

    def ended_a_worker(self, model: str, now: float) -> None:
        """A worker was lost while it was loading a model that nobody has loaded."""
        for name in [name for name, record in self._records.items() if now - record.at > FORGOTTEN_S]:
            del self._records[name]
        record = self._records.setdefault(model, _Record(now))
        record.at, record.deaths = now, record.deaths + 1
        if record.deaths >= DEATHS:
            record.pause_s = min(LONGEST_PAUSE_S, record.pause_s * 2) if record.pause_s else FIRST_PAUSE_S
            record.until = now + record.pause_s
            record.deaths = DEATHS - 1  # after the pause one more is enough

    def paused_s(self, model: str, now: float) -> float | None:
        """Return for how long a model is not to be tried; None when it may be."""
        record = self._records.get(model)
        if record is None or record.until is None or record.until <= now:
            return None
        return record.until - now

    def answered(self, model: str) -> None:
        """A worker has it loaded and answers: it is well."""
        self._records.pop(model, None)

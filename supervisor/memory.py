"""A worker's memory over time: how fast it grows, and whether it stays over a limit. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

SAMPLE_S = 60.0
KEPT = 62  # an hour of full minutes, and the minute that is filling
# A slope over less says more about the last request than about a leak.
YOUNG_S = 600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The least that was in use within one minute: what requests need in between is no leak."""

    at: float
    private_bytes: int
    vram_bytes: int | None


@dataclass(frozen=True, slots=True)
class MemoryTrack:
    """What one process group of a worker has used, minute by minute, for an hour. A value."""

    samples: tuple[Sample, ...] = ()

    def sampled(self, now: float, private_bytes: int, vram_bytes: int | None) -> "MemoryTrack":
        """Return the track with one more look; `now` is monotonic, looks come several times a minute."""
        if self.samples and now - self.samples[-1].at < SAMPLE_S:
            last = self.samples[-1]
            least = Sample(last.at, min(last.private_bytes, private_bytes), _least(last.vram_bytes, vram_bytes))
            return MemoryTrack((*self.samples[:-1], least))
        return MemoryTrack((*self.samples, Sample(now, private_bytes, vram_bytes))[-KEPT:])

    @property
    def growth_bytes_per_h(self) -> int | None:
        """How fast the host memory grows: from the oldest full minute kept to the newest. None while too young."""
        return self._growth(lambda sample: sample.private_bytes)

    @property
    def vram_growth_bytes_per_h(self) -> int | None:
        """The same of the GPU's memory."""
        return self._growth(lambda sample: sample.vram_bytes)

    def over(self, limit_bytes: int) -> bool:
        """Say whether the host memory has not been down to the limit for a full minute, the last one, and since."""
        return len(self.samples) > 1 and all(sample.private_bytes > limit_bytes for sample in self.samples[-2:])

    def _growth(self, size_of: Callable[[Sample], int | None]) -> int | None:
        # not the last minute: what it has had so far may be nothing but a request
        known = [(sample.at, size) for sample in self.samples[:-1] if (size := size_of(sample)) is not None]
        if len(known) < 2:
            return None
        (began, first), (ended, last) = known[0], known[-1]
        return round((last - first) * 3600 / (ended - began)) if ended - began >= YOUNG_S else None


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)

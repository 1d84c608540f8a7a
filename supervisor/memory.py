"""A worker's memory over time. Pure."""

from dataclasses import dataclass

SAMPLE_S = 60.0
KEPT = 61  # an hour, and the minute that is filling
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
        """Return the track with one more look; `now` is monotonic."""
        if self.samples and now - self.samples[-1].at < SAMPLE_S:
            last = self.samples[-1]
            least = Sample(last.at, min(last.private_bytes, private_bytes), _least(last.vram_bytes, vram_bytes))
            return MemoryTrack((*self.samples[:-1], least))
        return MemoryTrack((*self.samples, Sample(now, private_bytes, vram_bytes))[-KEPT:])

    @property
    def growth_bytes_per_h(self) -> int | None:
        """How fast the host memory grows: from the oldest minute kept to the newest. None while that is too short."""
        if not self.samples:
            return None
        first, last = self.samples[0], self.samples[-1]
        spent_s = last.at - first.at
        if spent_s < YOUNG_S:
            return None
        return round((last.private_bytes - first.private_bytes) * 3600 / spent_s)


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)

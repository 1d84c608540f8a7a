"""Memory over time: the least of each minute, an hour of them, and how fast that grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.memory import KEPT, YOUNG_S, MemoryTrack


def track(*looks: tuple[float, int]) -> MemoryTrack:
    found = MemoryTrack()
    for at, size in looks:
        found = found.sampled(at, size, None)
    return found


@pytest.mark.parametrize(
    ("looks", "growth"),
    [
        ([], None),
        ([(0, 100)], None),
        ([(0, 100), (YOUNG_S - 60, 9000)], None),  # that may be one request
        ([(0, 100), (1800, 1100)], 2000),
        ([(0, 100), (10, 50), (1800, 1050)], 2000),  # what requests need in between is no leak
        ([(0, 100), (3600, 100)], 0),
        ([(0, 100), (3600, 40)], -60),
    ],
)
def test_growth_is_from_the_oldest_minute_to_the_newest(looks: list[tuple[float, int]], growth: int | None) -> None:
    assert track(*looks).growth_bytes_per_h == growth


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 10**12)), max_size=300))
def test_an_hour_is_kept_and_never_more(pauses: list[tuple[float, int]]) -> None:
    now, found = 0.0, MemoryTrack()
    for pause_s, size in pauses:
        now += pause_s
        found = found.sampled(now, size, size)
    assert len(found.samples) <= KEPT
    assert [sample.at for sample in found.samples] == sorted(sample.at for sample in found.samples)


def test_memory_of_the_gpu_is_kept_beside_it() -> None:
    found = MemoryTrack().sampled(0, 5, None).sampled(1, 4, 70).sampled(2, 9, 80)
    assert (found.samples[0].private_bytes, found.samples[0].vram_bytes) == (4, 70)

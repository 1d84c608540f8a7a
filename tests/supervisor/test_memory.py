"""Memory over time: the least of each minute, an hour of them, how fast that grows, whether it stays over a limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.memory import KEPT, YOUNG_S, MemoryTrack

HOUR = 3600.0


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
        ([(0, 100), (YOUNG_S - 60, 9000), (YOUNG_S, 9000)], None),  # that may be one request
        ([(0, 100), (1800, 1100), (1860, 1100)], 2000),
        ([(0, 100), (10, 50), (1800, 1050), (1860, 1050)], 2000),  # what requests need in between is no leak
        ([(0, 100), (1800, 100), (1860, 9000)], 0),  # the minute that has just begun began with a request
        ([(0, 100), (3540, 100), (HOUR, 100)], 0),
        ([(0, 100), (HOUR, 40), (HOUR + 60, 40)], -60),
    ],
)
def test_growth_is_from_the_oldest_full_minute_to_the_newest(
    looks: list[tuple[float, int]], growth: int | None
) -> None:
    assert track(*looks).growth_bytes_per_h == growth


def test_a_leak_is_told_from_what_requests_need() -> None:
    found = MemoryTrack()
    for look in range(360):  # each ten seconds of an hour: 1000 bytes an hour are lost, requests need 5000 for a while
        found = found.sampled(look * 10.0, 700 + look * 1000 // 360 + (5000 if look % 6 < 4 else 0), None)
    growth = found.growth_bytes_per_h
    assert growth is not None
    assert 950 <= growth <= 1050


@pytest.mark.parametrize(
    ("looks", "over"),
    [
        ([], False),
        ([(0, 200)], False),  # not for a minute yet
        ([(0, 200), (10, 90), (60, 200)], False),  # it was down meanwhile
        ([(0, 200), (50, 150), (60, 101)], True),
        ([(0, 200), (60, 200), (70, 100)], False),  # it is down now
        ([(0, 50), (60, 200), (120, 200)], True),
    ],
)
def test_over_a_limit_is_what_stays_over_it(looks: list[tuple[float, int]], over: bool) -> None:
    assert track(*looks).over(100) is over


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 10**12)), max_size=300))
def test_an_hour_is_kept_and_never_more(pauses: list[tuple[float, int]]) -> None:
    now, found = 0.0, MemoryTrack()
    for pause_s, size in pauses:
        now += pause_s
        found = found.sampled(now, size, size)
    assert len(found.samples) <= KEPT
    assert [sample.at for sample in found.samples] == sorted(sample.at for sample in found.samples)
    assert found.growth_bytes_per_h == found.vram_growth_bytes_per_h


def test_memory_of_the_gpu_is_kept_beside_it_where_it_is_known() -> None:
    found = MemoryTrack().sampled(0, 5, None).sampled(1, 4, 70).sampled(2, 9, 80)
    assert (found.samples[0].private_bytes, found.samples[0].vram_bytes) == (4, 70)
    found = found.sampled(900, 4, None).sampled(1800, 4, 170).sampled(1860, 4, 170)
    assert (found.growth_bytes_per_h, found.vram_growth_bytes_per_h) == (0, 200)

"""Whoever sleeps by the beat wakes at the same moments, wherever they begin."""

import pytest
import trio
import trio.testing

from supervisor.beat import beat


@pytest.mark.parametrize(("begin", "after_s", "moments"), [(0.3, 0.0, [2, 4, 6]), (2.0, 0.0, [4, 6, 8]),
                                                            (0.3, 0.5, [0.5, 2.5, 4.5])])  # fmt: skip
def test_moments_are_multiples_of_the_interval(begin: float, after_s: float, moments: list[float]) -> None:
    woken: list[float] = []

    async def sleeper() -> None:
        origin = trio.current_time()
        assert origin == 0.0
        await trio.sleep(begin)
        for _ in range(3):
            await beat(2.0, after_s)
            woken.append(trio.current_time())

    trio.run(sleeper, clock=trio.testing.MockClock(autojump_threshold=0))
    assert woken == moments

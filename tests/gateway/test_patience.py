"""Who waits, and is woken when his time is over: then, never before, and once."""

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.patience import Patience


class Waiting:
    """One who writes down when he was woken."""

    def __init__(self) -> None:
        self.due = math.inf
        self.woken_at: list[float] = []

    def give_up(self) -> None:
        self.woken_at.append(trio.current_time())
        self.due = math.inf


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8))
def test_each_is_woken_at_his_time(plan: list[tuple[int, int]]) -> None:
    """Each begins to wait some seconds after the start, for some seconds."""

    async def wait(patience: Patience, one: Waiting, after_s: int, for_s: int) -> None:
        patience.join(one)
        await trio.sleep(after_s)
        one.due = trio.current_time() + for_s
        patience.until(one.due)

    async def run() -> None:
        patience, waiting, begin = Patience(), [Waiting() for _ in plan], trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(patience.run)
            for one, (after_s, for_s) in zip(waiting, plan, strict=True):
                nursery.start_soon(wait, patience, one, after_s, for_s)
            await trio.sleep(50)
            nursery.cancel_scope.cancel()
        assert [one.woken_at for one in waiting] == [[begin + after_s + for_s] for after_s, for_s in plan]

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def patience(nursery: trio.Nursery) -> Patience:
    made = Patience()
    nursery.start_soon(made.run)
    return made


async def test_who_has_left_or_waits_no_more_is_not_woken(patience: Patience, autojump_clock: MockClock) -> None:
    gone, done = Waiting(), Waiting()
    for one in (gone, done):
        patience.join(one)
        one.due = trio.current_time() + 5
        patience.until(one.due)
    patience.leave(gone)
    patience.leave(gone)
    done.due = math.inf
    await trio.sleep(20)
    assert (gone.woken_at, done.woken_at) == ([], [])


async def test_who_waits_longer_after_all_is_woken_later(patience: Patience, autojump_clock: MockClock) -> None:
    class Longer(Waiting):
        def give_up(self) -> None:
            super().give_up()
            if len(self.woken_at) == 1:
                self.due = trio.current_time() + 7

    one, begin = Longer(), trio.current_time()
    patience.join(one)
    one.due = begin + 5
    patience.until(one.due)
    await trio.sleep(30)
    assert one.woken_at == [begin + 5, begin + 12]

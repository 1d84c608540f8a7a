"""Word from plain calls to a task that waits for it."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor.news import News


async def test_what_was_told_before_is_not_lost_and_told_twice_is_one() -> None:
    news = News()
    news.tell()
    news.tell()
    await news.wait()
    with trio.move_on_after(0) as once:
        await news.wait()
    assert once.cancelled_caught


async def test_whoever_waits_is_woken_each_time(autojump_clock: MockClock) -> None:
    news, heard = News(), []

    async def listen() -> None:
        while True:
            await news.wait()
            heard.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for _ in range(3):
            await wait_all_tasks_blocked()
            news.tell()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(heard) == 3

"""What happened: kept in order, bounded, and followed without a gap."""

import trio
import trio.testing
from structlog.testing import capture_logs

from supervisor import events
from supervisor.events import KEPT, EventLog


def test_an_event_is_kept_and_logged_once() -> None:
    it = EventLog()
    with capture_logs() as logged:
        it.record("worker_ready", level="warning", worker="w1", by="warmed")
    (event,) = it.newest()
    assert event.pop("at").endswith("+00:00")
    assert event == {"event": "worker_ready", "worker": "w1", "by": "warmed"}
    assert logged == [{"event": "worker ready", "log_level": "warning", "worker": "w1", "by": "warmed"}]


def test_only_the_newest_are_kept() -> None:
    it = EventLog()
    with capture_logs():
        for number in range(KEPT + 5):
            it.record("e", number=number)
    assert [event["number"] for event in it.newest()] == list(range(5, KEPT + 5))


async def test_a_follower_gets_what_was_and_each_that_comes() -> None:
    it, seen = EventLog(), []
    it.record("e", number=0)
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            async for event in it.follow():
                seen.append(event["number"])
                if event["number"] == 1:
                    it.record("e", number=2)  # while the follower is at work

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [0]
        it.record("e", number=1)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_a_slow_follower_misses_old_events_and_never_the_order() -> None:
    it, seen = EventLog(), []
    slow = trio.Event()
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            async for event in it.follow():
                seen.append(event["number"])
                await slow.wait()

        nursery.start_soon(follow)
        with capture_logs():
            it.record("e", number=-1)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(events.KEPT + 10):
                it.record("e", number=number)
        slow.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [-1, *range(10, events.KEPT + 10)]

"""A task that waits where it is, and goes as soon as anybody else of its trio run has something to do."""

import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio._core import _run as trio_run
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import stay
from gateway.readiness import Readiness
from gateway.stay import Stay

PARTS = 50


class Pair:
    """A connection whose other end writes on from a thread, as another process would: each part answers the last."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.heard = 0

    def tell(self, _now: float) -> None:
        """Take a part, and ask for the next."""
        if self.ours.recv(1):
            self.heard += 1
            self.ours.send(b"x")

    def writes(self) -> None:
        """Write a part whenever one is asked for."""
        while self.heard < PARTS:
            self.theirs.send(b"x")
            self.theirs.recv(1)


@pytest.fixture(autouse=True)
def _in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is forgotten is not saved by the second that a turn takes at most."""
    monkeypatch.setattr(stay, "MOST_S", 60.0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.ours.close()
    made.theirs.close()


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        """One more."""
        self.count += 1


async def _turns_for(pair: Pair, nursery: trio.Nursery) -> int:
    readiness, turns_taken = Readiness(stays=True), Turns()
    nursery.start_soon(readiness.run)
    await trio.lowlevel.checkpoint()
    readiness.join(pair.ours.fileno(), select.EPOLLIN, pair.tell)
    trio.lowlevel.add_instrument(turns_taken)
    await trio.to_thread.run_sync(pair.writes)
    trio.lowlevel.remove_instrument(turns_taken)
    assert pair.heard == PARTS
    return turns_taken.count


async def test_what_comes_part_by_part_costs_hardly_a_turn(pair: Pair, nursery: trio.Nursery) -> None:
    """That it is so with the trio that is locked: the next one may keep its things elsewhere."""
    assert await _turns_for(pair, nursery) < PARTS / 2


@pytest.mark.parametrize("there", [None, object()], ids=["no run", "another run"])
async def test_with_a_trio_that_is_not_as_expected_each_part_costs_a_turn(
    pair: Pair, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, there: object
) -> None:
    monkeypatch.setattr(trio_run, "GLOBAL_RUN_CONTEXT", there)
    made = Stay(select.epoll())
    monkeypatch.undo()
    made.close()
    assert not made.wait()
    monkeypatch.setattr(stay, "_runner", lambda: None)
    assert await _turns_for(pair, nursery) >= PARTS


async def test_under_a_clock_that_is_not_the_real_one_nothing_is_waited_for(autojump_clock: MockClock) -> None:
    with select.epoll() as own:
        made = Stay(own)
        await trio.lowlevel.checkpoint()
        assert not made.wait()
        made.close()


# -- who else has something to do --------------------------------------------------------------------------------------


async def _wakes_another_task(told: trio.Event) -> None:
    told.set()


async def _sleeps(told: trio.Event) -> None:
    await trio.sleep(0.02)
    told.set()


async def _hears_of_a_thread(told: trio.Event) -> None:
    await trio.to_thread.run_sync(threading.Event().wait, 0.02)
    told.set()


async def _hears_of_a_socket(told: trio.Event) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        timer = threading.Timer(0.02, lambda: theirs._sock.send(b"x"))  # type: ignore[attr-defined]
        timer.start()
        await ours.recv(1)
        told.set()


async def _is_told_from_elsewhere(told: trio.Event) -> None:
    token = trio.lowlevel.current_trio_token()
    threading.Timer(0.02, token.run_sync_soon, [told.set]).start()


@pytest.mark.parametrize(
    "other", [_wakes_another_task, _sleeps, _hears_of_a_thread, _hears_of_a_socket, _is_told_from_elsewhere]
)
async def test_nobody_else_waits_for_it(
    pair: Pair, nursery: trio.Nursery, other: Callable[[trio.Event], Awaitable[object]]
) -> None:
    """While it stays where it is, everything else of the run happens: here the silence after one part is its turn."""
    readiness, told = Readiness(stays=True), trio.Event()
    nursery.start_soon(readiness.run)
    await trio.lowlevel.checkpoint()
    readiness.join(pair.ours.fileno(), select.EPOLLIN, pair.tell)
    nursery.start_soon(other, told)
    pair.theirs.send(b"x")
    with trio.fail_after(20):
        await told.wait()
        while not pair.heard:
            await trio.sleep(0.001)


async def test_whom_it_wakes_runs_before_it_waits_on(pair: Pair, nursery: trio.Nursery) -> None:
    readiness, woken = Readiness(stays=True), trio.Event()
    nursery.start_soon(readiness.run)
    await trio.lowlevel.checkpoint()

    def wake(now: float) -> None:
        pair.tell(now)
        woken.set()

    readiness.join(pair.ours.fileno(), select.EPOLLIN, wake)
    with trio.fail_after(20):
        for _ in range(3):
            woken = trio.Event()
            pair.theirs.send(b"x")
            await woken.wait()


async def test_whom_a_deadline_wakes_in_the_same_turn_is_not_forgotten(pair: Pair, nursery: trio.Nursery) -> None:
    readiness = Readiness(stays=True)
    nursery.start_soon(readiness.run)
    readiness.join(pair.ours.fileno(), select.EPOLLIN, pair.tell)
    for _ in range(20):  # which of the two comes first in their turn is chance
        slept = trio.Event()

        async def sleeps(slept: trio.Event = slept) -> None:
            await trio.sleep(0.001)
            slept.set()

        nursery.start_soon(sleeps)
        await trio.lowlevel.checkpoint()
        pair.theirs.send(b"x")
        threading.Event().wait(0.003)  # so that both have come when the turn begins
        with trio.fail_after(20):
            await slept.wait()


async def test_whose_time_it_brings_forward_is_not_kept_waiting(pair: Pair, nursery: trio.Nursery) -> None:
    readiness, sleep = Readiness(stays=True), trio.CancelScope()
    nursery.start_soon(readiness.run)
    await trio.lowlevel.checkpoint()

    def bring_forward(now: float) -> None:
        pair.tell(now)
        sleep.deadline = now + 0.01

    readiness.join(pair.ours.fileno(), select.EPOLLIN, bring_forward)
    with trio.fail_after(20):
        for _ in range(2):
            pair.theirs.send(b"x")
            with trio.CancelScope() as sleep:
                await trio.sleep_forever()


async def test_who_waits_until_all_are_idle_is_not_kept(pair: Pair, nursery: trio.Nursery) -> None:
    readiness = Readiness(stays=True)
    nursery.start_soon(readiness.run)
    readiness.join(pair.ours.fileno(), select.EPOLLIN, pair.tell)
    pair.theirs.send(b"x")
    with trio.fail_after(20):
        await wait_all_tasks_blocked(0.01)
    assert pair.heard == 1


async def test_it_ends_like_any_other_task(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        readiness = Readiness(stays=True)
        nursery.start_soon(readiness.run)
        await trio.lowlevel.checkpoint()
        readiness.join(pair.ours.fileno(), select.EPOLLIN, pair.tell)
        pair.theirs.send(b"x")
        await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert pair.heard == 1

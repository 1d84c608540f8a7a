"""One connection to a worker, and whoever waits for it too long."""

import math
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.errors import ConnectFailed
from gateway.link import IDLE_CONNECTION_S, Late, Link, connect
from gateway.patience import Patience
from gateway.readiness import Readiness


class Pair:
    """A link and its other end."""

    def __init__(self, patience: Patience) -> None:
        ours, self.theirs = socket.socketpair()
        for sock in (ours, self.theirs):
            sock.setblocking(False)
        self.readiness = Readiness()
        self.link = Link(ours, 1, patience, self.readiness)
        patience.join(self.link)


@pytest.fixture
def patience(nursery: trio.Nursery) -> Patience:
    made = Patience()
    nursery.start_soon(made.run)
    return made


@pytest.fixture
def pair(patience: Patience) -> Iterator[Pair]:
    made = Pair(patience)
    yield made
    made.link.close()
    made.theirs.close()


async def test_what_comes_is_returned_and_then_the_end(pair: Pair) -> None:
    pair.theirs.send(b"hello")
    assert await pair.link.receive(math.inf) == b"hello"
    pair.theirs.close()
    assert await pair.link.receive(math.inf) == b""


async def test_all_of_it_is_sent_however_little_fits(pair: Pair, nursery: trio.Nursery) -> None:
    data = bytes(range(256)) * 8192
    got = b""
    nursery.start_soon(pair.link.send, data, math.inf)
    while len(got) < len(data):
        await trio.lowlevel.wait_readable(pair.theirs)
        got += pair.theirs.recv(1 << 20)
    assert got == data


async def late_at(link: Link, due: float) -> float:
    with pytest.raises(Late):
        await link.receive(due)
    return trio.current_time()


async def test_whoever_waits_is_late_at_the_moment_agreed(pair: Pair, autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    assert await late_at(pair.link, begin + 7.0) == begin + 7.0


async def test_one_that_comes_later_may_be_due_sooner(
    patience: Patience, pair: Pair, autojump_clock: MockClock
) -> None:
    other = Pair(patience)
    begin, ended = trio.current_time(), {}

    async def wait(name: str, link: Link, after_s: float, due_s: float) -> None:
        await trio.sleep(after_s)
        ended[name] = await late_at(link, begin + due_s) - begin

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "patient", pair.link, 0.0, 100.0)
        nursery.start_soon(wait, "impatient", other.link, 1.0, 3.0)
    assert ended == {"patient": 100.0, "impatient": 3.0}
    other.link.close()
    other.theirs.close()


async def test_the_next_wait_has_its_own_time(pair: Pair, autojump_clock: MockClock) -> None:
    for _ in range(5):
        with trio.move_on_after(0.9):
            await pair.link.receive(trio.current_time() + 1.0)
        await trio.sleep(10)
    begin = trio.current_time()
    assert await late_at(pair.link, begin + 1.0) == begin + 1.0


async def test_sending_to_one_that_does_not_read_is_late_too(pair: Pair, autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    with pytest.raises(Late):
        await pair.link.send(b"x" * 10_000_000, begin + 5.0)
    assert trio.current_time() == begin + 5.0


async def test_a_cancelled_wait_is_nobodys(pair: Pair, nursery: trio.Nursery) -> None:
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel, scope)
        await pair.link.receive(math.inf)
    assert (pair.link.due, pair.link.late) == (math.inf, False)
    pair.theirs.send(b"still good")
    assert await pair.link.receive(math.inf) == b"still good"


async def _cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_an_idle_connection_is_good_while_it_is_young_open_and_silent(pair: Pair) -> None:
    now = pair.link.idle_since = trio.current_time()
    assert pair.link.reusable(now)
    assert not pair.link.reusable(now + IDLE_CONNECTION_S + 1)
    pair.theirs.send(b"?")
    assert not pair.link.reusable(now)


async def test_an_idle_connection_that_was_closed_is_not(pair: Pair) -> None:
    pair.theirs.close()
    assert not pair.link.reusable(pair.link.idle_since)


async def test_nobody_listens(patience: Patience) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed, match="refused"):
            await connect(taken.getsockname()[1], patience, Readiness())


# -- each part as it comes ---------------------------------------------------------------------------------------------


class Taking:
    """Takes what comes until it has had enough."""

    def __init__(self, enough: bytes = b"enough") -> None:
        self.parts: list[bytes] = []
        self._enough = enough
        self.more = trio.Event()

    def __call__(self, part: bytes, now: float) -> bool:
        self.parts.append(part)
        self.more.set()
        return part in (self._enough, b"")


@pytest.fixture
def watched(pair: Pair, nursery: trio.Nursery) -> Pair:
    nursery.start_soon(pair.readiness.run)
    return pair


async def test_each_part_is_taken_as_it_comes_until_there_is_enough(watched: Pair, nursery: trio.Nursery) -> None:
    taking = Taking()

    async def sends() -> None:
        for part in (b"some", b"more", b"enough", b"too much"):
            await wait_all_tasks_blocked(0.01)
            watched.theirs.send(part)

    nursery.start_soon(sends)
    await watched.link.each(taking, math.inf)
    await wait_all_tasks_blocked(0.02)
    assert taking.parts == [b"some", b"more", b"enough"]
    assert await watched.link.receive(math.inf) == b"too much"


async def test_the_end_is_taken_too(watched: Pair) -> None:
    taking = Taking()
    watched.theirs.close()
    await watched.link.each(taking, math.inf)
    assert taking.parts == [b""]


async def test_what_taking_raises_is_raised(watched: Pair) -> None:
    def take(part: bytes, now: float) -> bool:
        raise ZeroDivisionError

    watched.theirs.send(b"x")
    with pytest.raises(ZeroDivisionError):
        await watched.link.each(take, math.inf)
    assert watched.readiness._told == {}


async def test_each_part_has_its_own_time(watched: Pair, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    taking = Taking()

    async def sends() -> None:
        for _ in range(3):
            await trio.sleep(4)
            watched.theirs.send(b"x")

    nursery.start_soon(sends)
    begin = trio.current_time()
    with pytest.raises(Late):
        await watched.link.each(taking, 5.0)
    assert (trio.current_time(), taking.parts) == (begin + 17.0, [b"x"] * 3)


async def test_cancelled_it_takes_nothing_more(watched: Pair, nursery: trio.Nursery) -> None:
    taking = Taking()
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel, scope)
        await watched.link.each(taking, math.inf)
    watched.theirs.send(b"x")
    await wait_all_tasks_blocked(0.02)
    assert (taking.parts, watched.link.due, watched.readiness._told) == ([], math.inf, {})
    assert await watched.link.receive(math.inf) == b"x"

"""Descriptors that one task hears of."""

import select
import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.readiness import Readiness


def _nothing(_now: float) -> None:
    pass


@pytest.fixture
def readiness(nursery: trio.Nursery) -> Readiness:
    made = Readiness()
    nursery.start_soon(made.run)
    return made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_who_has_joined_is_told_until_it_leaves(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    heard: list[bytes] = []

    def tell(_now: float) -> None:
        heard.append(ours.recv(100))

    readiness.join(ours.fileno(), select.EPOLLIN, tell)
    for part in (b"one", b"two"):
        theirs.send(part)
        await wait_all_tasks_blocked(0.01)
    readiness.leave(ours.fileno(), tell)
    theirs.send(b"three")
    await wait_all_tasks_blocked(0.01)
    assert heard == [b"one", b"two"]


async def test_what_was_there_before_is_told_of(
    readiness: Readiness, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    told = trio.Event()

    def tell(_now: float) -> None:
        readiness.leave(ours.fileno(), tell)
        told.set()

    readiness.join(ours.fileno(), select.EPOLLIN, tell)
    with trio.fail_after(5):
        await told.wait()


async def test_a_closed_descriptor_cannot_join_and_may_leave(readiness: Readiness) -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    readiness.join(number, select.EPOLLIN, _nothing)
    ours.close()
    theirs.close()
    with pytest.raises(OSError, match="descriptor"):
        readiness.join(number, select.EPOLLIN, _nothing)
    readiness.leave(number, _nothing)  # somebody else's word


async def test_one_that_leaves_while_others_are_told_is_not_told(readiness: Readiness) -> None:
    """Two are ready at once; the first to be told takes the other out."""
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[int] = []
    tells: list[Callable[[float], None]] = []

    def take_all_out(number: int, _now: float) -> None:
        told.append(number)
        for (ours, _), other in zip(pairs, tells, strict=True):
            readiness.leave(ours.fileno(), other)

    tells += [partial(take_all_out, number) for number in range(2)]
    for (ours, theirs), tell in zip(pairs, tells, strict=True):
        theirs.send(b"x")
        readiness.join(ours.fileno(), select.EPOLLIN, tell)
    await wait_all_tasks_blocked(0.01)
    assert len(told) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_who_leaves_when_all_is_over_has_left(pair: tuple[socket.socket, socket.socket]) -> None:
    """At the gateway's end nobody knows who ends first: the one task, or those that it told."""
    readiness, descriptor = Readiness(), pair[0].fileno()
    readiness.join(descriptor, select.EPOLLIN, print)
    with trio.CancelScope() as life:
        life.cancel()
        await readiness.run()
    readiness.leave(descriptor, print)
    assert readiness._told == {}

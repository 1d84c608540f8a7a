"""Who hears that a client has left, and that nobody else does."""

import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.leaving import Leaving


@pytest.fixture
async def leaving(nursery: trio.Nursery) -> AsyncIterator[Leaving]:
    made = Leaving()
    nursery.start_soon(made.run)
    yield made
    assert made._readiness._told == {}


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_closes(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("how", [socket.socket.close, resets, half_closes], ids=["closes", "resets", "half closes"])
@pytest.mark.parametrize("ahead", [b"", b"GET / HTTP/1.1"], ids=["", "with bytes that nobody has read"])
async def test_a_client_that_leaves_is_told_of_once(leaving: Leaving, how: object, ahead: bytes) -> None:
    ours, theirs = connected()
    told = []
    with ours, theirs, leaving.watched(ours.fileno()) as client:
        client.tell(lambda: told.append("left"))
        theirs.send(ahead)
        await wait_all_tasks_blocked(0.01)
        assert told == []
        how(theirs)  # type: ignore[operator]
        await wait_all_tasks_blocked(0.01)
        assert told == ["left"]


async def test_one_that_had_left_before_is_told_of(leaving: Leaving) -> None:
    ours, theirs = connected()
    theirs.close()
    left = trio.Event()
    with ours, leaving.watched(ours.fileno()) as client, trio.fail_after(5):
        client.tell(left.set)
        await left.wait()
        assert client.gone


async def test_who_asks_when_it_has_left_hears_of_it_at_once(leaving: Leaving) -> None:
    ours, theirs = connected()
    told: list[str] = []
    with ours, leaving.watched(ours.fileno()) as client:
        theirs.close()
        await wait_all_tasks_blocked(0.01)
        client.tell(lambda: told.append("left"))
        assert told == ["left"]


async def test_who_wants_to_know_no_more_is_not_told(leaving: Leaving) -> None:
    ours, theirs = connected()
    told: list[str] = []
    with ours, leaving.watched(ours.fileno()) as client:
        client.tell(lambda: told.append("left"))
        client.tell(None)
        theirs.close()
        await wait_all_tasks_blocked(0.01)
        assert (told, client.gone) == ([], True)


async def test_after_the_block_nobody_is_told(leaving: Leaving) -> None:
    ours, theirs = connected()
    told: list[str] = []
    with ours:
        with leaving.watched(ours.fileno()) as client:
            client.tell(lambda: told.append("left"))
        theirs.close()
        await wait_all_tasks_blocked(0.01)
    assert told == []


async def test_a_descriptor_that_is_anothers_by_now_is_left_to_it(leaving: Leaving) -> None:
    """A connection is cut within the block, and the next one gets its number."""
    first, first_client = connected()
    number = first.fileno()
    told: list[str] = []
    with leaving.watched(number) as one:
        one.tell(lambda: told.append("first"))
        first.close()
        second, second_client = connected()
        assert number in (second.fileno(), second_client.fileno())
        if second.fileno() != number:
            second, second_client = second_client, second
        watching = leaving.watched(number)
        watching.__enter__().tell(lambda: told.append("second"))
    second_client.close()
    await wait_all_tasks_blocked(0.01)
    assert told == ["second"]
    watching.__exit__(None, None, None)
    first_client.close()
    second.close()


async def test_a_connection_that_is_closed_already_is_nobodys(leaving: Leaving) -> None:
    ours, theirs = connected()
    number = ours.fileno()
    ours.close()
    with leaving.watched(number):
        await wait_all_tasks_blocked(0.01)
    theirs.close()

"""Who gets in, who makes room, who is waited for; and how many connections the open files allow."""

import math
import resource

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.connections import (
    OTHER_DESCRIPTORS,
    RESERVE,
    Connections,
    Place,
    Standing,
    bound_by_descriptors,
    fit_descriptors,
)

BOUND = 3


class Client:
    """A connection as `Connections` knows it."""

    def __init__(self) -> None:
        self.standing = Standing.IDLE
        self.is_cut = False
        self.due = math.inf

    def give_up(self) -> None:
        self.cut()

    def cut(self) -> None:
        self.is_cut = True

    def retire(self) -> None:
        self.is_cut = self.standing is Standing.IDLE


def arrive(connections: Connections, *, own: bool = False, now: float = 0.0, works: bool = False) -> Client | None:
    """One more client, if there is a place."""
    place = connections.place(now, own=own)
    if place is None:
        return None
    client = Client()
    client.standing = Standing.BUSY if works else Standing.IDLE
    connections.joined(client, place)
    return client


def rest(connections: Connections, client: Client, *, idle: bool) -> None:
    client.standing = Standing.IDLE if idle else Standing.BEGUN
    connections.changed(client)


def test_up_to_the_bound_everybody_gets_in() -> None:
    connections = Connections(BOUND)
    assert [arrive(connections) is not None for _ in range(BOUND)] == [True] * BOUND
    assert len(connections) == BOUND


def test_at_the_bound_the_one_that_was_idle_longest_makes_room() -> None:
    connections = Connections(BOUND)
    first, second, third = (arrive(connections) for _ in range(BOUND))
    assert first
    assert second
    assert third
    rest(connections, first, idle=False)
    rest(connections, first, idle=True)  # idle again, but not for long
    assert connections.place(0.0, own=False) is Place.OPEN
    assert (first.is_cut, second.is_cut, third.is_cut) == (False, True, False)
    assert len(connections) == BOUND - 1


def test_when_none_is_idle_there_is_the_reserve_half_of_it_for_this_machine() -> None:
    connections = Connections(BOUND)
    for _ in range(BOUND):
        arrive(connections, works=True)
    from_afar = [arrive(connections, works=True) for _ in range(RESERVE)]
    own = [arrive(connections, own=True, works=True) for _ in range(RESERVE)]
    assert sum(client is not None for client in from_afar) == RESERVE // 2
    assert sum(client is not None for client in own) == RESERVE // 2
    assert connections.place(0.0, own=True) is None
    left = next(client for client in own if client)
    connections.left(left)
    connections.left(left)
    assert connections.place(0.0, own=True) is Place.RESERVE


def test_who_is_idle_in_the_reserve_makes_room_there() -> None:
    connections = Connections(BOUND)
    for _ in range(BOUND):
        arrive(connections, works=True)
    silent = [arrive(connections) for _ in range(RESERVE // 2)]
    assert connections.place(0.0, own=False) is Place.RESERVE
    assert [client is not None and client.is_cut for client in silent] == [True] + [False] * (RESERVE // 2 - 1)


def test_a_place_within_the_bound_is_not_given_for_one_in_the_reserve() -> None:
    connections = Connections(BOUND)
    busy = [arrive(connections, works=True) for _ in range(BOUND)]
    arrive(connections)
    assert busy[0]
    connections.left(busy[0])
    assert connections.place(0.0, own=False) is Place.OPEN


def test_that_the_bound_is_reached_is_said_once_a_minute() -> None:
    connections = Connections(BOUND)
    for _ in range(BOUND):
        arrive(connections, works=True)
    with capture_logs() as said:
        for now in (0.0, 1.0, 59.0, 60.0, 61.0):
            connections.place(now, own=False)
    assert ["MAX_CONNECTIONS" in line["hint"] for line in said] == [True, True]


async def test_only_the_busy_are_waited_for(autojump_clock: trio.abc.Clock) -> None:
    connections = Connections(BOUND)
    await connections.wait_quiet()
    answered, leaves, idle = (arrive(connections, works=works) for works in (True, True, False))
    assert answered
    assert leaves
    assert idle
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.wait_quiet)
        await wait_all_tasks_blocked()
        rest(connections, answered, idle=True)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        connections.left(leaves)
    assert not idle.is_cut


def test_all_can_be_cut() -> None:
    connections = Connections(BOUND)
    clients = [arrive(connections, works=works) for works in (True, False)]
    connections.cut()
    assert all(client and client.is_cut for client in clients)


@given(st.lists(st.tuples(st.sampled_from(["arrive", "own", "work", "rest", "leave"]), st.integers(0, 99))))
def test_there_are_never_more_than_there_may_be(steps: list[tuple[str, int]]) -> None:
    connections = Connections(BOUND)
    here: list[Client] = []
    for step, number in steps:
        here = [client for client in here if not client.is_cut]
        if step in ("arrive", "own"):
            came = arrive(connections, own=step == "own")
            here += [came] if came else []
        elif here:
            client = here[number % len(here)]
            client.standing = {"rest": Standing.IDLE, "work": Standing.BUSY}.get(step, Standing.BEGUN)
            connections.changed(client)
            if step == "leave":
                connections.left(client)
                here.remove(client)
        here = [client for client in here if not client.is_cut]
        assert len(connections) == len(here) <= BOUND + RESERVE
        assert set(connections._idle) == {client for client in here if client.standing is Standing.IDLE}
        assert connections._busy == sum(client.standing is Standing.BUSY for client in here)


# -- open files --------------------------------------------------------------------------------------------------------

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("wanted", "soft", "hard", "bound", "reached"),
    [
        (4096, 1_048_576, 1_048_576, 4096, 1_048_576),
        (4096, 1024, 524_288, 4096, 2 * (4096 + RESERVE) + OTHER_DESCRIPTORS),
        (4096, 1024, NO_LIMIT, 4096, 2 * (4096 + RESERVE) + OTHER_DESCRIPTORS),
        (4096, NO_LIMIT, NO_LIMIT, 4096, NO_LIMIT),
        (4096, 1024, 4096, (4096 - OTHER_DESCRIPTORS) // 2 - RESERVE, 4096),
        (100, 256, 256, 1, 256),
    ],
)
def test_there_are_as_many_connections_as_open_files_allow(
    wanted: int, soft: int, hard: int, bound: int, reached: int
) -> None:
    assert bound_by_descriptors(wanted, soft, hard) == (bound, reached)


def test_the_limit_is_raised_as_far_as_needed_and_said_when_that_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 2048)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    with capture_logs() as said:
        assert fit_descriptors(100) == 100
        assert (limits, said) == ([(1024, 2048)], [])
        assert fit_descriptors(1000) == (2048 - OTHER_DESCRIPTORS) // 2 - RESERVE
    assert limits[-1] == (2048, 2048)
    assert ["LimitNOFILE" in line["hint"] for line in said] == [True]

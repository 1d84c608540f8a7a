"""Whatever befalls a worker, and whatever it is asked for, it never ends in a state with no way on.

Random sequences of faults and orders against the real `Worker` and `Watch` under the virtual clock; the process, its
port and its answers are the only things that are not real. Afterwards the world is made well, and the worker has to
be ready again, or gone if it was removed.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.house import WorkerSpec
from supervisor.lifecycle import TRANSITIONS, Event, State
from supervisor.standing import Goal
from supervisor.trouble import trouble_of
from supervisor.worker import Worker
from tests.fakes.examples import examples
from tests.fakes.world import CARD, World

# Longer than any wait of the worker's own: the longest back-off, a start, a drain and a stop after each other.
PATIENCE_S = 1200.0


FAULTS: dict[str, Callable[[World], object]] = {
    "exits": lambda world: world.exits(),
    "is stopped": lambda world: setattr(world, "stopped", True),
    "hangs": lambda world: setattr(world, "answers", False),
    "answers": lambda world: setattr(world, "answers", True),
    "cannot load": lambda world: setattr(world, "loads", False),
    "cannot start": lambda world: setattr(world, "starts", False),
    "can start": lambda world: setattr(world, "starts", True),
    "computes on the CPU": lambda world: setattr(world, "vram", 0),
    "stops slowly": lambda world: setattr(world, "stop_s", 9.0),
    "loses its GPU": lambda world: world.gpus.problems.update({CARD: "the GPU is lost"}),
    "has its GPU back": lambda world: world.gpus.problems.clear(),
}
ORDERS: dict[str, Callable[[Worker], object]] = {
    "cordon": lambda it: it.cordon(),
    "uncordon": lambda it: it.uncordon(),
    "drain": lambda it: it.drain(),
    "restart": lambda it: it.restart() if it.goal is not Goal.QUARANTINE else None,
    "quarantine": lambda it: it.end(Goal.QUARANTINE, cause="a test"),
    "quarantine at once": lambda it: it.end(Goal.QUARANTINE, force=True, cause="a test"),
    "release": lambda it: it.release(),
    "move": lambda it: it.move(CARD, force=False, cause="a test"),
    "heal": lambda it: it.healed(),
    "stall": lambda it: it.stalled(it.ready_since or 0.0, "stall", 1.0),
    "remove": lambda it: it.end(Goal.REMOVE),
    "remove at once": lambda it: it.end(Goal.REMOVE, force=True),
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*FAULTS, *ORDERS, "a request comes", "requests end"]),
        st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 17.0, 61.0, 400.0]),
    ),
    max_size=12,
)


async def live(world: World, steps: list[tuple[str, float]], folder: Path) -> None:
    leases, events = world.leases, world.events
    it = Worker(WorkerSpec("w1", CARD, 2), world.house(folder, REQUIRED_MODEL="here", CANARY_AFTER_S="100"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        for name, pause_s in steps:
            if name == "a request comes":
                if leases.takes_leases("w1"):
                    leases.hold("w1")
            elif name == "requests end":
                leases.free("w1")
            elif name in FAULTS:
                FAULTS[name](world)
            else:
                ORDERS[name](it)
            await trio.sleep(pause_s)
        world.well()
        leases.free("w1")
        removed = it.goal is Goal.REMOVE or it.state is State.GONE
        it.uncordon()
        it.release()
        with trio.move_on_after(PATIENCE_S):
            while it.state is not (State.GONE if removed else State.READY):
                await it.wait_changed()
        assert it.state is (State.GONE if removed else State.READY), f"stays {it.state}: {trouble_of(it)}"
        for event in events.newest():
            assert event["cause"] if "was" in event else True, "a transition without a cause"
        it.end(Goal.REMOVE)
        with trio.move_on_after(PATIENCE_S):
            while it.state is not State.GONE:
                await it.wait_changed()
        assert it.state is State.GONE
        assert leases.serving == {}


@given(STEPS)
@settings(max_examples=examples(150), deadline=None)
def test_a_worker_always_finds_its_way_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]]
) -> None:
    world = World()
    with world.patched():
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(live, world, steps, tmp_path_factory.getbasetemp(), clock=clock)


def ways_on(state: State) -> set[State]:
    """Every state that can follow, however often removed."""
    found: set[State] = set()
    edge = {state}
    while edge:
        edge = {after for before in edge for after in TRANSITIONS[before].values()} - found
        found |= edge
    return found


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_from_every_state_a_worker_can_become_ready_and_can_be_removed(state: State) -> None:
    assert {State.READY, State.GONE} <= ways_on(state)


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_any_sequence_of_events_leads_to_a_state_with_a_way_on(events: list[Event]) -> None:
    state = State.STARTING
    for event in events:
        state = TRANSITIONS[state].get(event, state)  # what the table does not have, nobody does
    assert state is State.GONE or {State.READY, State.GONE} <= ways_on(state)

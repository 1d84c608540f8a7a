"""The table of a worker's states: no dead ends, one way out of running, and a picture that shows all of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.lifecycle import RUNNING, TRANSITIONS, Event, IllegalTransition, State, after, diagram, shown

ALIVE = [state for state in State if state is not State.GONE]


def reachable(start: State) -> set[State]:
    seen = {start}
    while new := {target for state in seen for target in TRANSITIONS[state].values()} - seen:
        seen |= new
    return seen


def test_the_table_has_every_state_and_uses_every_event() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(Event)


@pytest.mark.parametrize("state", ALIVE)
def test_every_state_but_the_end_has_a_way_to_ready_and_a_way_to_gone(state: State) -> None:
    assert {State.READY, State.GONE} <= reachable(state)


def test_gone_is_the_end() -> None:
    assert reachable(State.GONE) == {State.GONE}


@pytest.mark.parametrize("state", sorted(RUNNING - {State.STOPPING}))
def test_stopping_is_the_one_way_out_of_running(state: State) -> None:
    assert {target for target in TRANSITIONS[state].values() if target not in RUNNING} == set()
    assert TRANSITIONS[state][Event.EXITED] is State.STOPPING
    assert TRANSITIONS[state][Event.STOP] is State.STOPPING


def test_nothing_but_starting_begins_a_process() -> None:
    entries = {t for state in set(State) - RUNNING for t in TRANSITIONS[state].values() if t in RUNNING}
    assert entries == {State.STARTING}
    assert set(TRANSITIONS[State.STOPPING].values()) & RUNNING == {State.STARTING}


@pytest.mark.parametrize("state", ALIVE)
def test_a_worker_that_is_not_ready_becomes_ready_by_named_ways_only(state: State) -> None:
    ways = {event for event, target in TRANSITIONS[state].items() if target is State.READY}
    assert ways <= {Event.WARMED, Event.UNCORDON}


@given(st.data())
def test_any_walk_by_legal_events_stays_within_the_rules(data: st.DataObject) -> None:
    state, was_running = State.STARTING, True
    for _ in range(data.draw(st.integers(0, 60))):
        if not TRANSITIONS[state]:
            break
        event = data.draw(st.sampled_from(sorted(TRANSITIONS[state])))
        before, state = state, after(state, event)
        assert state is TRANSITIONS[before][event]
        if was_running and state not in RUNNING:
            assert before is State.STOPPING
        was_running = state in RUNNING
    assert (state is State.GONE) == (not TRANSITIONS[state])


@given(st.sampled_from(State), st.sampled_from(Event))
def test_any_other_event_is_refused_and_named(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        assert after(state, event) is TRANSITIONS[state][event]
        return
    with pytest.raises(IllegalTransition, match=f"^{event} in {state}$"):
        after(state, event)


@pytest.mark.parametrize("state", State)
def test_operators_see_idle_and_busy_for_ready_and_the_rest_as_it_is(state: State) -> None:
    if state is State.READY:
        assert (shown(state, 0), shown(state, 2)) == ("IDLE", "BUSY")
    else:
        assert shown(state, 0) == shown(state, 2) == state.value


def test_the_diagram_has_each_transition_once_and_no_other() -> None:
    head, *lines = diagram().split("\n")
    assert head == "stateDiagram-v2"
    drawn: list[tuple[str, str, str]] = []
    for line in lines:
        found = re.fullmatch(r"    (\S+) --> (\S+?)(?:: (.+))?", line)
        assert found, line
        drawn += [(found[1], event, found[2]) for event in (found[3] or "").split(", ")]
    table = [(s.value, e.value, t.value) for s, moves in TRANSITIONS.items() for e, t in moves.items()]
    assert sorted(drawn) == sorted([*table, ("[*]", "", "STARTING"), ("GONE", "", "[*]")])

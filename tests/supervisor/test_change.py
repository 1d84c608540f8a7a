"""The difference between two configurations, as a plan."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.change import REACH, Reach, Seat, Turn, next_to_restart, plan, refit
from supervisor.config import Settings
from supervisor.config_load import load_settings

BASE = {"STATE_DIR": "/state"}


def settings(**names: str) -> Settings:
    return load_settings(BASE | names, {})


def test_every_setting_has_its_reach() -> None:
    assert set(REACH) == set(Settings.model_fields)


def test_the_same_configuration_changes_nothing() -> None:
    same = plan(settings(), settings())
    assert (same.by_reach, same.settings, same.lines) == ({}, settings(), ["nothing has changed"])


def test_a_plan_says_what_counts_now_what_restarts_workers_and_what_waits() -> None:
    now = settings()
    change = plan(now, settings(QUEUE_SIZE="7", ADMIN_TOKEN="s3cret", WORKER_SLOTS="2", WORKERS="cpu=1",
                                GATEWAY_PORT="9000", STATE_DIR="/other", LOG_DIR="/state/logs"))  # fmt: skip
    assert change.lines == [
        "in force: ADMIN_TOKEN, QUEUE_SIZE",
        "the fleet is changed to fit: WORKERS",
        "workers restart one after the other, drained, for: WORKER_SLOTS",
        "not in force until Chimera is restarted (systemctl restart chimera): GATEWAY_PORT, STATE_DIR",
    ]
    assert (change.settings.queue_size, change.settings.worker_slots) == (7, 2)
    assert (change.settings.gateway_port, change.settings.state_dir) == (now.gateway_port, now.state_dir)


def test_what_waits_is_said_again_by_the_next_reload_and_taken_back_without_a_word() -> None:
    now = settings()
    first = plan(now, settings(GATEWAY_PORT="9000"))
    again = plan(first.settings, settings(GATEWAY_PORT="9000", QUEUE_SIZE="7"))
    assert again.names(Reach.CHIMERA) == ("GATEWAY_PORT",)
    assert plan(again.settings, now).by_reach == {Reach.NOW: ("QUEUE_SIZE",)}


# -- the fleet -------------------------------------------------------------------------------------------------------


def test_a_fleet_is_refitted_with_the_fewest_changes() -> None:
    seats = [Seat("w1", "A", True), Seat("w2", "A", True), Seat("w3", "A", False), Seat("w4", "cpu", True)]
    assert refit(seats, ["A", "A", "B"]) == (["w3", "w4"], ["B"])
    assert refit(seats, ["A", "cpu"]) == (["w3", "w2"], [])
    assert refit(seats, ["A", "A", "A", "cpu"]) == ([], [])
    assert refit([], ["cpu", "cpu"]) == ([], ["cpu", "cpu"])


PLACES = st.sampled_from(["A", "B", "cpu"])


@given(st.lists(st.tuples(PLACES, st.booleans()), max_size=8), st.lists(PLACES, max_size=8))
def test_a_refitted_fleet_is_the_wanted_one(there: list[tuple[str, bool]], wanted: list[str]) -> None:
    seats = [Seat(f"w{number}", *seat) for number, seat in enumerate(there)]
    going, coming = refit(seats, wanted)
    left = [seat.placement for seat in seats if seat.id not in going]
    assert Counter(left + coming) == Counter(wanted)
    assert not {seat.placement for seat in seats if seat.id in going} & set(coming)


# -- one after the other ---------------------------------------------------------------------------------------------


def turn(name: str, *, stale: bool = False, ready: bool = True, served: bool = True, held: bool = False) -> Turn:
    return Turn(name, stale, ready, served, held)


@pytest.mark.parametrize(
    ("turns", "chosen"),
    [
        ([], None),
        ([turn("w1"), turn("w2")], None),
        ([turn("w1", stale=True), turn("w2", stale=True)], "w1"),
        # one that serves nobody costs nobody anything
        ([turn("w1", stale=True), turn("w2", stale=True, ready=False, served=False)], "w2"),
        # the first is on its way back
        ([turn("w1", ready=False), turn("w2", stale=True)], None),
        # it failed before the change already, and may do so for ever
        ([turn("w1", ready=False, served=False), turn("w2", stale=True)], "w2"),
        # the operator keeps it away
        ([turn("w1", ready=False, held=True), turn("w2", stale=True)], "w2"),
    ],
)
def test_which_worker_restarts_next(turns: list[Turn], chosen: str | None) -> None:
    assert next_to_restart(turns) == chosen


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_all_come_by_turns_and_never_two_that_serve_are_away(ready: list[bool]) -> None:
    """A fleet that comes back each time: each worker restarts once."""
    state = {f"w{number}": turn(f"w{number}", stale=True, ready=one, served=one) for number, one in enumerate(ready)}
    order: list[str] = []
    while any(one.stale or not one.ready for one in state.values()):
        chosen = next_to_restart(list(state.values()))
        if chosen is not None:
            order.append(chosen)
            state[chosen] = turn(chosen, ready=False, served=state[chosen].served)
        else:  # those that are away come back
            state = {name: turn(name, stale=one.stale) for name, one in state.items()}
        assert sum(one.served and not one.ready for one in state.values()) <= 1
    assert sorted(order) == sorted(state)

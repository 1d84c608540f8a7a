"""Callers take turns: a thousand requests of one do not stand before the first of another."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.fair import Turns


def test_one_caller_stands_in_line_with_itself() -> None:
    turns = Turns()
    assert [turns.turn_of("a") for _ in range(4)] == [0, 1, 2, 3]


def test_another_callers_first_stands_before_the_rest() -> None:
    turns = Turns()
    many = [turns.turn_of("a") for _ in range(200)]
    for turn in many[:50]:
        turns.served(turn, waiting=True)
    assert many[49] <= turns.turn_of("b") < many[51]


def test_nobody_saves_up_turns_by_staying_away() -> None:
    turns = Turns()
    many = [turns.turn_of("a") for _ in range(100)]
    for turn in many[:90]:
        turns.served(turn, waiting=True)
    late = [turns.turn_of("b") for _ in range(5)]
    assert late == sorted(late)
    assert late[0] >= many[89], "a hundred turns that it did not ask for are not its own"


def test_a_refused_ticket_costs_its_caller_no_turn() -> None:
    turns = Turns()
    first = turns.turn_of("a")
    turns.turn_of("a")
    turns.refused("a")
    assert turns.turn_of("a") == first + 1


def test_whoever_leaves_the_queue_is_remembered_no_longer() -> None:
    turns = Turns()
    turns.turn_of("somebody else")
    for caller in ("a", "b", "a"):
        turns.turn_of(caller)
        turns.refused(caller)
    assert set(turns._next) == {"somebody else"}


def test_nothing_is_remembered_when_nobody_waits() -> None:
    turns = Turns()
    turns.served(turns.turn_of("a"), waiting=False)
    assert turns == Turns()


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_between_two_of_ones_own_everybody_elses_turn_comes(callers: list[str]) -> None:
    """Whoever waits is served at most once more than anybody else who waits all the time."""
    turns = Turns()
    waiting = sorted((turns.turn_of(caller), number, caller) for number, caller in enumerate(callers))
    left = {caller: callers.count(caller) for caller in set(callers)}
    served = dict.fromkeys(left, 0)
    while all(left.values()) and waiting:
        turn, _, caller = waiting.pop(0)
        served[caller] += 1
        left[caller] -= 1
        turns.served(turn, waiting=bool(waiting))
        assert max(served.values()) - min(served.values()) <= 1

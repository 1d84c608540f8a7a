"""A worker that fails is passed over, tried with one request after a pause, and the pause grows while that fails."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


def test_one_failure_is_forgiven_two_in_a_row_are_not() -> None:
    once = Breaker().failed(10.0)
    assert once.open_until is None
    assert once.answered() == Breaker()
    assert once.failed(10.0).open_until == 10.0 + FIRST_PAUSE_S


def test_a_failed_trial_doubles_the_pause_and_a_good_one_ends_it() -> None:
    breaker, now, pauses = Breaker(1).failed(0.0), 0.0, []
    for _ in range(7):
        assert breaker.open_until is not None
        assert breaker.at(breaker.open_until - 0.01) == breaker
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
        trial = breaker.at(now)
        assert (trial.trial, trial.open_until) == (True, None)
        breaker = trial.failed(now)
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert breaker.at(1e9).answered() == Breaker()


def test_what_still_fails_while_it_is_passed_over_does_not_lengthen_the_pause() -> None:
    breaker = Breaker(1).failed(0.0)
    assert breaker.failed(0.5).open_until == breaker.open_until


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 60)), max_size=60))
def test_it_always_ends_up_open_for_a_bounded_time_or_usable(steps: list[tuple[bool, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for good, pause_s in steps:
        now += pause_s
        breaker = breaker.at(now)
        breaker = breaker.answered() if good else breaker.failed(now)
        assert breaker.open_until is None or now < breaker.open_until <= now + LONGEST_PAUSE_S
        assert breaker.failures < FAILURES or breaker.open_until is not None or breaker.trial

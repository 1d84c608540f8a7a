"""What probes add up to: hung after three misses in a row, never sooner."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.health import FAILURES_ALLOWED, Health


def after(*answers: bool) -> Health:
    health = Health()
    for answered in answers:
        health = health.after(answered=answered)
    return health


def test_three_misses_in_a_row_are_a_hung_server() -> None:
    assert not after(False, False).hung
    assert after(False, False, False).hung
    assert not after(False, False, True, False, False).hung


@given(st.lists(st.booleans(), max_size=30))
def test_hung_means_that_the_last_probes_all_went_unanswered(answers: list[bool]) -> None:
    last = answers[-FAILURES_ALLOWED:]
    assert after(*answers).hung == (len(last) == FAILURES_ALLOWED and not any(last))

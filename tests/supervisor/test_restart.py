"""Back-off: doubling, bounded, varied, and forgiven after a minute of health."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.restart import BUDGET_HELD_S, HEALTHY_AFTER_S, JITTER, LONGEST_DELAY_S, BackOff, RestartBudget

UNIT = st.floats(0, 1, exclude_max=True)


def failed(times: int) -> BackOff:
    back_off = BackOff()
    for _ in range(times):
        back_off = back_off.failed(ready_for_s=0)
    return back_off


@pytest.mark.parametrize(
    ("failures", "delay_s"), [(0, 0), (1, 0.5), (2, 1), (3, 2), (7, 32), (8, 60), (9, 60), (10_000, 60)]
)
def test_delays_double_from_half_a_second_to_a_minute(failures: int, delay_s: float) -> None:
    assert BackOff(failures).delay_s(0.5) == pytest.approx(delay_s)


def test_the_delay_varies_by_a_fifth_either_way() -> None:
    assert BackOff(3).delay_s(0.0) == pytest.approx(1.6)
    assert BackOff(3).delay_s(0.999999) == pytest.approx(2.4, rel=1e-4)


@pytest.mark.parametrize(
    ("ready_for_s", "failures"), [(0, 6), (HEALTHY_AFTER_S - 0.1, 6), (HEALTHY_AFTER_S, 1), (1e6, 1)]
)
def test_a_minute_of_health_makes_the_next_failure_a_first_one(ready_for_s: float, failures: int) -> None:
    assert failed(5).failed(ready_for_s=ready_for_s).failures == failures


@given(st.integers(1, 10**9), UNIT)
def test_no_delay_is_nothing_or_endless(failures: int, unit: float) -> None:
    assert 0.3 < BackOff(failures).delay_s(unit) <= LONGEST_DELAY_S * (1 + JITTER)


@given(st.integers(1, 40), UNIT)
def test_one_more_failure_never_shortens_the_delay(failures: int, unit: float) -> None:
    assert BackOff(failures + 1).delay_s(unit) >= BackOff(failures).delay_s(unit)


@given(st.lists(st.floats(0, 1000), max_size=30))
def test_failures_are_counted_since_the_last_health(ready_for: list[float]) -> None:
    back_off, expected = BackOff(), 0
    for ready_for_s in ready_for:
        back_off = back_off.failed(ready_for_s=ready_for_s)
        expected = 1 if ready_for_s >= HEALTHY_AFTER_S else expected + 1
        assert back_off.failures == expected


# -- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fleet", "most"), [(1, 1), (2, 1), (7, 1), (8, 2), (64, 16)])
def test_a_bad_probe_round_takes_down_at_most_a_quarter_of_the_fleet(fleet: int, most: int) -> None:
    budget = RestartBudget()
    assert [budget.take(f"w{number}", fleet, 0.0) for number in range(fleet)].count(True) == most


def test_a_worker_that_is_ready_again_makes_room_for_the_next() -> None:
    budget = RestartBudget()
    assert budget.take("w1", 2, 0.0)
    assert budget.take("w1", 2, 1.0), "one that has a place keeps it"
    assert not budget.take("w2", 2, 1.0)
    budget.give_back("w1")
    assert budget.take("w2", 2, 1.0)


def test_a_worker_that_never_comes_back_does_not_keep_the_others_sick() -> None:
    budget = RestartBudget()
    assert budget.take("w1", 2, 0.0)
    assert not budget.take("w2", 2, BUDGET_HELD_S - 1)
    assert budget.take("w2", 2, BUDGET_HELD_S)


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 63), st.booleans(), st.floats(0, 20)), max_size=80))
def test_never_more_than_a_quarter_at_a_time(fleet: int, orders: list[tuple[int, bool, float]]) -> None:
    budget, now, down = RestartBudget(), 0.0, dict[str, float]()
    for number, ready, pause_s in orders:
        now += pause_s
        name = f"w{number % fleet}"
        down = {known: at for known, at in down.items() if now - at < BUDGET_HELD_S}
        if ready:
            budget.give_back(name)
            down.pop(name, None)
        elif budget.take(name, fleet, now):
            down[name] = now
        assert len(down) <= max(1, fleet // 4)

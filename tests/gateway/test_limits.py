"""What a key may take: tables of single steps, and what holds for any sequence of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Bucket, Limits, Over, Use


def test_without_limits_everything_may() -> None:
    use = Use(Limits())
    for _ in range(1000):
        assert use.enter(0.0) is None
    use.spent(10**9, 0.0)
    assert use.left(0.0) == {"inflight": 1000, "requests_left": None, "tokens_left": None}


def test_requests_at_the_same_time() -> None:
    use = Use(Limits(concurrency=2))
    assert [use.enter(0.0), use.enter(0.0), use.enter(0.0)] == [None, None, Over("concurrency", 2, 1.0)]
    use.leave()
    assert use.enter(0.0) is None
    assert use.inflight == 2


def test_a_minutes_requests_may_come_at_once_and_then_one_for_each_that_is_filled_up() -> None:
    use = Use(Limits(requests_per_minute=6))
    assert [use.enter(100.0) for _ in range(7)] == [None] * 6 + [Over("requests", 6, 10.0)]
    assert use.enter(105.0) == Over("requests", 6, 5.0)
    assert use.enter(110.0) is None
    assert use.enter(110.0) == Over("requests", 6, 10.0)
    assert use.left(1000.0)["requests_left"] == 6, "no more than a minute's is saved up"


def test_tokens_are_taken_at_an_answers_end_and_what_is_overdrawn_must_be_filled_up_first() -> None:
    use = Use(Limits(tokens_per_minute=60))
    assert use.enter(0.0) is None
    use.spent(90, 0.0)
    assert use.left(0.0)["tokens_left"] == -30
    assert use.enter(0.0) == Over("tokens", 60, 31.0)
    assert use.enter(30.5) == Over("tokens", 60, 0.5)
    assert use.enter(31.0) is None


def test_of_two_limits_the_longer_wait_is_told() -> None:
    use = Use(Limits(requests_per_minute=60, tokens_per_minute=60))
    for _ in range(60):
        assert use.enter(0.0) is None
    use.spent(100, 0.0)
    assert use.enter(0.0) == Over("tokens", 60, 41.0)


def test_what_is_refused_takes_nothing() -> None:
    use = Use(Limits(concurrency=1, requests_per_minute=10))
    use.enter(0.0)
    for _ in range(50):
        assert use.enter(0.0) is not None
    assert use.left(0.0) == {"inflight": 1, "requests_left": 9, "tokens_left": None}


@pytest.mark.parametrize(
    ("before", "after", "taken", "left"),
    [
        (10, 100, 10, 90),  # more can be used at once
        (100, 10, 50, 5),  # half of it is left, before and after
        (100, 10, 200, -10),  # a minute's debt stays a minute's
        (10, 100, 200, -100),
        (10, None, 10, None),
        (None, 10, 99, 10),  # what nobody counted is forgiven
        (10, 10, 7, 3),
    ],
)
def test_a_changed_limit_counts_at_once(before: int | None, after: int | None, taken: int, left: int | None) -> None:
    bucket = Bucket(before)
    bucket.take(taken, 0.0)
    bucket.change(after, 0.0)
    assert bucket.left(0.0) == left


def test_requests_in_flight_stay_counted_when_limits_change() -> None:
    use = Use(Limits(concurrency=2))
    use.enter(0.0), use.enter(0.0)
    use.change(Limits(concurrency=1), 0.0)
    use.leave()
    assert use.enter(0.0) == Over("concurrency", 1, 1.0)
    use.change(Limits(), 0.0)
    assert use.enter(0.0) is None


def test_a_clock_that_stands_still_or_steps_back_fills_nothing() -> None:
    bucket = Bucket(60)
    bucket.take(60, 100.0)
    assert bucket.left(100.0) == bucket.left(50.0) == 0
    assert bucket.left(101.0) == 1


PER_MINUTE = st.integers(1, 10_000)
STEPS = st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["enter", "leave", "spent"]), st.integers(0, 500)))


@given(PER_MINUTE, st.lists(st.floats(0, 20), max_size=200))
def test_over_no_while_are_more_requests_admitted_than_the_bucket_and_the_rate_allow(
    per_minute: int, pauses: list[float]
) -> None:
    use, now, admitted = Use(Limits(requests_per_minute=per_minute)), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if use.enter(now) is None:
            admitted.append(now)
    for first, begin in enumerate(admitted):
        for last in range(first, len(admitted)):
            while_s = admitted[last] - begin
            assert last - first + 1 <= per_minute + per_minute * while_s / 60 + 0.01


@given(st.integers(1, 5), PER_MINUTE, PER_MINUTE, STEPS)
def test_a_wait_that_was_told_is_enough_and_one_a_little_shorter_is_not(
    concurrency: int, requests: int, tokens: int, steps: list[tuple[float, str, int]]
) -> None:
    use, now = Use(Limits(concurrency, requests, tokens)), 0.0
    for pause, step, amount in steps:
        now += pause
        if step == "spent":
            use.spent(amount, now)
        elif step == "leave" and use.inflight:
            use.leave()
        elif step == "enter" and (over := use.enter(now)) and over.quantity != "concurrency":
            assert use.enter(now + over.wait_s * 0.9) is not None
            now += over.wait_s
            assert use.enter(now) is None
        assert 0 <= use.inflight <= concurrency
    for _ in range(use.inflight):
        use.leave()
    assert use.left(now + 10**9) == {"inflight": 0, "requests_left": requests, "tokens_left": tokens}


@given(PER_MINUTE, PER_MINUTE, st.integers(0, 10**6))
def test_a_change_costs_at_most_the_wait_for_one_more_at_the_new_rate(before: int, after: int, taken: int) -> None:
    bucket = Bucket(before)
    bucket.take(taken, 0.0)
    waited_s = bucket.wait_s(0.0)
    bucket.change(after, 0.0)
    assert bucket.wait_s(0.0) <= waited_s + 60 / after + 1e-6

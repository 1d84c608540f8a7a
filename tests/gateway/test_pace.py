"""Which workers are much slower than the others."""

import pytest

from gateway.pace import SLOWER, Paces

FAST, SLOW = ("fast", 1), ("slow", 1)


def after(fast: float, slow: float, answers: int = 20) -> Paces:
    paces = Paces()
    for _ in range(answers):
        paces.took(FAST, "m", fast)
        paces.took(SLOW, "m", slow)
    return paces


def test_a_worker_ten_times_slower_is_known_for_it() -> None:
    paces = after(0.05, 0.5)
    assert paces.slower("m").get(FAST, 1) == 1
    assert paces.slower("m").get(SLOW, 1) == pytest.approx(10, rel=0.2)
    assert paces.slower("another model").get(SLOW, 1) == 1


def test_a_small_difference_is_none() -> None:
    paces = after(0.05, 0.05 * (SLOWER - 0.1))
    assert paces.slower("m").get(SLOW, 1) == 1


def test_it_is_forgotten_while_only_the_others_answer() -> None:
    paces = after(0.05, 0.5)
    for _ in range(200):
        paces.took(FAST, "m", 0.05)
    assert paces.slower("m").get(SLOW, 1) == 1


def test_one_that_recovers_is_soon_believed() -> None:
    paces = after(0.05, 0.5)
    for _ in range(14):
        paces.took(SLOW, "m", 0.05)
    assert paces.slower("m").get(SLOW, 1) == 1


def test_a_worker_that_is_gone_is_compared_with_nobody() -> None:
    paces = after(0.05, 0.5)
    paces.forget(FAST)
    paces.took(SLOW, "m", 0.5)
    assert paces.slower("m").get(SLOW, 1) == 1
    paces.forget(SLOW)
    assert paces == Paces()


def test_a_worker_alone_is_never_slow() -> None:
    paces = Paces()
    paces.took(SLOW, "m", 100.0)
    assert paces.slower("m").get(SLOW, 1) == 1

"""Whether a request is tried again after a fault, as tables."""

import pytest

from gateway.affinity import Kept
from gateway.errors import ConnectFailed, FirstByteTimeout, RunnerDied, Stalled, WorkerLost, WorkerRefused
from gateway.retry import BUDGET, MOST_ATTEMPTS, Failed, RetryBudget, Tries
from gateway.slots import Lease, Ticket, WorkerSlots

A = WorkerSlots("a", 1, 11500, 4, frozenset())
B = WorkerSlots("b", 2, 11501, 4, frozenset())


def lease(worker: WorkerSlots) -> Lease:
    return Lease(worker, "m", Kept(worker.life, "m", ()))


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("fault", [ConnectFailed(), WorkerLost(), WorkerRefused()])
def test_after_a_loss_it_is_tried_again_but_not_there(fault: Failed, others: bool) -> None:
    tries = Tries(Ticket("m"), attempts=1)
    assert tries.another(lease(A), fault, others=others)
    assert tries.ticket.excluded == {A.life}


@pytest.mark.parametrize("fault", [ConnectFailed(), WorkerLost(), RunnerDied(), FirstByteTimeout(600), Stalled(120)])
def test_nothing_is_tried_more_often_than_agreed(fault: Failed) -> None:
    tries = Tries(Ticket("m"), attempts=MOST_ATTEMPTS)
    assert not tries.another(lease(A), fault, others=True)
    assert not tries.after_refusal(others=True)
    assert not tries.after_runners_death(others=True)


def test_one_that_fell_silent_in_its_answer_is_not_tried_again() -> None:
    assert not Tries(Ticket("m"), attempts=1).another(lease(A), Stalled(120), others=True)


def test_one_without_a_first_byte_is_given_to_one_more_worker_if_there_is_one() -> None:
    assert not Tries(Ticket("m"), attempts=1).another(lease(A), FirstByteTimeout(600), others=False)
    tries = Tries(Ticket("m"), attempts=1)
    assert tries.another(lease(A), FirstByteTimeout(600), others=True)
    assert tries.ticket.excluded == {A.life}
    assert not tries.another(lease(B), FirstByteTimeout(600), others=True)


def test_a_dead_runner_of_the_only_worker_is_asked_for_once_more_and_not_twice() -> None:
    tries = Tries(Ticket("m"), attempts=1)
    assert tries.after_runners_death(others=False)
    assert tries.another(lease(A), RunnerDied(), others=False)
    assert (tries.ticket.excluded, tries.again) == (frozenset(), A.life)
    assert not tries.after_runners_death(others=False)
    assert tries.after_runners_death(others=True)  # one has come meanwhile
    assert tries.another(lease(A), RunnerDied(), others=True)
    assert tries.ticket.excluded == {A.life}


@pytest.mark.parametrize("others", [True, False])
def test_a_worker_that_cannot_just_now_is_passed_over_only_for_another(others: bool) -> None:
    assert Tries(Ticket("m"), attempts=1).after_refusal(others=others) is others


# -- the budget of the whole gateway ---------------------------------------------------------------------------------


def test_a_worker_of_many_slots_may_die() -> None:
    budget = RetryBudget()
    for _ in range(int(BUDGET)):
        assert budget.allows(0.0)
        budget.spend()
    assert not budget.allows(0.0)


def test_what_fails_for_good_is_asked_a_fifth_more_and_ten_times_a_second_more() -> None:
    budget = RetryBudget()
    budget.left = 0.0
    retried, now, requests = 0, 0.0, 10_000
    budget.allows(now)
    for _ in range(requests):
        now += 0.001  # a thousand a second
        budget.request()
        while budget.allows(now):
            budget.spend()
            retried += 1
    assert retried == pytest.approx(requests * 0.2 + now * 10, abs=2)


def test_it_never_saves_up_more_than_a_burst() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.request()
    budget.allows(0.0)
    budget.allows(1e9)
    assert budget.left == BUDGET

"""What one worker's life knows of its models."""

import pytest

from gateway.affinity import NO_PREFIX, Kept
from gateway.slots import Lease, Ticket, WorkerSlots, any_well


def worker(*loaded: str, name: str = "a", slots: int = 2) -> WorkerSlots:
    return WorkerSlots(name, 1, 11500, slots, frozenset(loaded), polled=frozenset(loaded))


def leased(one: WorkerSlots, model: str | None, load_options: str = "") -> Lease:
    lease = Lease(one, model, Kept(one.life, model, NO_PREFIX.chain))
    one.take(lease, load_options)
    return lease


@pytest.mark.parametrize(
    ("loaded", "room", "model", "load_options", "rank"),
    [
        ((), None, "m", "", 1),
        (("m",), None, "m", "", 0),
        (("m",), None, "m", "num_ctx=9", 2),
        (("m",), None, "n", "", 2),
        (("m",), 2, "n", "", 1),
        (("m", "x"), 2, "n", "", 2),
        (("m",), None, None, "", 0),
    ],
)
def test_what_a_ticket_costs_at_a_worker(
    loaded: tuple[str, ...], room: int | None, model: str | None, load_options: str, rank: int
) -> None:
    one = worker(*loaded)
    one.room = room
    assert one.rank(Ticket(model, load_options=load_options)) == rank


def test_room_is_what_is_there_after_one_came_and_another_went() -> None:
    one = worker("m")
    rooms = []
    for models in ("", "m", "n", "mn"):
        one.told(frozenset(models))
        rooms.append(one.room)
    assert rooms == [None, None, 1, 2], "one that only went may just have expired"


def test_a_model_in_use_is_not_taken_for_pushed_out() -> None:
    one = worker("m", "x")
    one.room = 2
    leased(one, "m")
    leased(one, "n")
    assert one.held() == {"m", "n"}


def test_load_options_are_forgotten_with_the_model() -> None:
    one = worker("m")
    leased(one, "m", "num_ctx=9")
    one.leases.clear()
    assert not one.suits(Ticket("m"))
    one.told(frozenset())
    one.told(frozenset({"m"}))
    assert one.suits(Ticket("m"))


def test_a_ticket_waits_for_a_worker_only_if_that_is_well_for_it() -> None:
    one, ticket = worker(), Ticket("m")
    assert any_well([one], ticket)
    for spoilt in ({"cordoned": True}, {"avoided": True}, {"cooled": {"m": 9.0}}):
        other = worker()
        for name, value in spoilt.items():
            setattr(other, name, value)
        assert not any_well([other], ticket)
    assert not any_well([one], Ticket("m", excluded=frozenset({one.life})))

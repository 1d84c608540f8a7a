"""Waiting for a slot, on trio's virtual clock. Every test ends with 0 leases and 0 tickets."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.admission import Admission, Waiting
from gateway.dispatch import QUEUE_BYTES
from gateway.errors import NoWorkerWanted, QueueFull, QueueTimeout, ShuttingDown, told
from gateway.slots import WorkerSlots
from tests.fakes.examples import examples

NOTHING_LEFT = "<Admission 0 leases, 0 tickets>"


def ready(admission: Admission, worker_id: str = "a", *, slots: int = 1, cordoned: bool = False) -> None:
    admission.worker_ready(worker_id, port=11500, slots=slots, models=frozenset(), cordoned=cordoned)


@pytest.fixture
async def admission() -> AsyncIterator[Admission]:
    made = Admission(queue_size=4, queue_timeout_s=300.0, random_unit=lambda: 0.5)
    yield made
    assert repr(made) == NOTHING_LEFT
    assert made._tickets == set()


async def hold(admission: Admission, ticket: Waiting, until: trio.Event | None = None) -> None:
    async with admission.lease(ticket):
        await (trio.Event() if until is None else until).wait()


async def test_a_free_slot_is_given_at_once_and_back_at_the_end(
    admission: Admission, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    ready(admission)
    async with admission.lease(admission.ticket("m")) as lease:
        assert (lease.worker_id, lease.port, admission.inflight("a")) == ("a", 11500, 1)
        assert repr(admission) == "<Admission 1 leases, 0 tickets>"
    assert trio.current_time() == start


async def test_a_ticket_waits_for_the_lease_before_it(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission)
    order: list[str] = []

    async def use(name: str) -> None:
        async with admission.lease(admission.ticket("m")):
            order.append(name)
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(use, name)
            await wait_all_tasks_blocked()
    assert order == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        ("none", "no worker was ready within 300 s (QUEUE_TIMEOUT_S)"),
        ("cordoned", "no worker was ready within 300 s (QUEUE_TIMEOUT_S)"),
        ("busy", "no slot became free within 300 s (QUEUE_TIMEOUT_S)"),
    ],
)
async def test_a_ticket_that_waits_too_long_is_told_what_it_waited_for(
    admission: Admission, autojump_clock: MockClock, workers: str, sentence: str
) -> None:
    async with trio.open_nursery() as nursery:
        if workers != "none":
            ready(admission, cordoned=workers == "cordoned")
        if workers == "busy":
            nursery.start_soon(hold, admission, admission.ticket("m"))
            await wait_all_tasks_blocked()
        start = trio.current_time()
        with pytest.raises(QueueTimeout) as caught:
            async with admission.lease(admission.ticket("m")):
                pytest.fail("there is no slot")
        assert trio.current_time() - start == pytest.approx(300)
        assert (told(caught.value).status, told(caught.value).sentence) == (503, sentence)
        nursery.cancel_scope.cancel()


async def test_what_a_lost_worker_took_does_not_count_as_waiting(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    ticket = admission.ticket("m")
    async with admission.lease(ticket) as lease:
        await trio.sleep(1000)  # a long answer, not one byte of it sent
        ticket.excluded |= {lease.life}
        admission.worker_lost("a")
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(3)
            ready(admission)

        nursery.start_soon(come_back)
        async with admission.lease(ticket) as lease:
            assert lease.worker_id == "a"


async def test_the_waits_of_one_ticket_are_added_up(admission: Admission, autojump_clock: MockClock) -> None:
    ticket = admission.ticket("m")
    async with trio.open_nursery() as nursery:

        async def come_late() -> None:
            await trio.sleep(200)
            ready(admission)

        nursery.start_soon(come_late)
        async with admission.lease(ticket) as lease:
            ticket.excluded |= {lease.life}
    start = trio.current_time()
    with pytest.raises(QueueTimeout):
        async with admission.lease(ticket):
            pytest.fail("it has tried the only worker")
    assert trio.current_time() - start == pytest.approx(100)


async def test_cancellation_gives_the_place_in_the_queue_back(admission: Admission, autojump_clock: MockClock) -> None:
    with trio.move_on_after(5):
        await hold(admission, admission.ticket("m"))
    assert repr(admission) == NOTHING_LEFT


async def test_cancellation_gives_the_slot_to_the_next(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission)
    start = trio.current_time()

    async def leave_after_a_second() -> None:
        with trio.move_on_after(1):
            await hold(admission, admission.ticket("m"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_after_a_second)
        await wait_all_tasks_blocked()
        async with admission.lease(admission.ticket("m")):
            assert trio.current_time() - start == pytest.approx(1)


async def test_a_full_queue_refuses_at_once(admission: Admission, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(hold, admission, admission.ticket("m"))
        await wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await hold(admission, admission.ticket("m"))
        assert admission.queue() == {"depth": 4, "size": 4, "oldest_s": 0.0, "bytes": 0, "size_bytes": QUEUE_BYTES}
        await trio.sleep(2.5)
        assert admission.queue()["oldest_s"] == 2.5
        nursery.cancel_scope.cancel()


async def test_shutting_answers_who_waits_and_who_comes_and_lets_leases_go_on(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    told_so: list[str] = []
    done = trio.Event()

    async def wait_for_it(name: str) -> None:
        try:
            await hold(admission, admission.ticket("m"))
        except ShuttingDown:
            told_so.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, admission, admission.ticket("m"), done)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_for_it, "waiting")
        await wait_all_tasks_blocked()
        admission.shut()
        await wait_all_tasks_blocked()
        await wait_for_it("late")
        assert told_so == ["waiting", "late"]
        assert admission.inflight("a") == 1
        nursery.start_soon(admission.wait_all_drained)
        await wait_all_tasks_blocked()
        done.set()


async def test_when_the_last_worker_is_unwanted_those_who_wait_are_told(
    admission: Admission, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def wait_for_it() -> None:
            with pytest.raises(NoWorkerWanted):
                await hold(admission, admission.ticket("m"))

        nursery.start_soon(wait_for_it)
        await wait_all_tasks_blocked()
        admission.fleet_wanted(1)
        await wait_all_tasks_blocked()
        assert admission.queue()["depth"] == 1
        admission.fleet_wanted(0)
    with pytest.raises(NoWorkerWanted):
        await hold(admission, admission.ticket("m"))
    assert trio.current_time() == start


async def test_a_worker_is_drained_when_its_last_lease_ends(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission, slots=2)
    await admission.wait_drained("a")
    one, two, drained = trio.Event(), trio.Event(), trio.Event()

    async def wait_drained() -> None:
        await admission.wait_drained("a")
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, admission, admission.ticket("m"), one)
        nursery.start_soon(hold, admission, admission.ticket("m"), two)
        await wait_all_tasks_blocked()
        admission.cordon("a")
        nursery.start_soon(wait_drained)
        nursery.start_soon(wait_drained)
        for last in (one, two):
            await wait_all_tasks_blocked()
            assert not drained.is_set()
            last.set()
    assert drained.is_set()


async def test_a_slot_that_goes_to_the_next_ticket_is_not_drained(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    one, two = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        for until in (one, two):
            nursery.start_soon(hold, admission, admission.ticket("m"), until)
            await wait_all_tasks_blocked()
        one.set()
        with trio.move_on_after(1) as patience:
            await admission.wait_drained("a")
        assert patience.cancelled_caught
        two.set()
        await admission.wait_drained("a")


async def test_a_lost_worker_is_drained_and_its_leases_end_without_effect(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    until = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, admission, admission.ticket("m"), until)
        await wait_all_tasks_blocked()
        nursery.start_soon(admission.wait_drained, "a")
        await wait_all_tasks_blocked()
        admission.worker_lost("a")
        await admission.wait_all_drained()
        ready(admission)
        async with admission.lease(admission.ticket("m")):
            until.set()
            await wait_all_tasks_blocked()
            assert admission.inflight("a") == 1


async def test_an_uncordoned_worker_takes_up_what_waits(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission, cordoned=True)
    assert admission.ready() == []
    async with trio.open_nursery() as nursery:
        until = trio.Event()
        nursery.start_soon(hold, admission, admission.ticket("m"), until)
        await wait_all_tasks_blocked()
        admission.uncordon("a")
        assert admission.inflight("a") == 1
        until.set()


async def test_a_ticket_that_waits_takes_an_avoided_worker_when_the_last_well_one_goes(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission, "well")
    ready(admission, "sick")
    admission.avoid("sick", avoided=True)
    until = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(hold, admission, admission.ticket("m"), until)
            await wait_all_tasks_blocked()
        assert (admission.inflight("well"), admission.inflight("sick"), admission.queue()["depth"]) == (1, 0, 1)
        admission.worker_lost("well")
        assert (admission.inflight("sick"), admission.queue()["depth"]) == (1, 0)
        until.set()


async def test_since_when_a_worker_is_idle(admission: Admission, autojump_clock: MockClock) -> None:
    assert admission.idle_since("a") is None
    ready(admission, slots=2)
    began = trio.current_time()
    assert admission.idle_since("a") == began
    await trio.sleep(10)
    async with admission.lease(admission.ticket("m")):
        async with admission.lease(admission.ticket("m")):
            await trio.sleep(10)
        assert admission.idle_since("a") is None
        await trio.sleep(10)
    assert admission.idle_since("a") == began + 30
    await trio.sleep(10)
    admission.worker_lost("a")
    ready(admission)
    assert admission.idle_since("a") == began + 40


async def test_a_lease_of_an_old_life_says_nothing_about_the_new_one(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    async with admission.lease(admission.ticket("m")) as lease:
        admission.worker_lost("a")
        await trio.sleep(5)
        ready(admission)
        born = trio.current_time()
        await trio.sleep(5)
        lease.worker.progress_at = trio.current_time()
        assert admission.progress_at("a") is None
        assert lease.worker.ready_at == born - 5
    assert admission.idle_since("a") == born


async def test_what_a_worker_holds_reaches_the_choice(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission, "a", slots=4)
    ready(admission, "b", slots=4)
    admission.worker_models("b", frozenset({"m:latest"}))
    async with admission.lease(admission.ticket("m:latest")) as lease:
        assert lease.worker_id == "b"


@settings(max_examples=examples(40), deadline=None)
@given(
    asks=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30), st.integers(0, 40)), max_size=20),
    changes=st.lists(
        st.tuples(
            st.integers(0, 50), st.sampled_from("ab"), st.sampled_from(["ready", "lost", "cordon", "avoid", "trust"])
        ),
        max_size=8,
    ),
)
def test_whatever_happens_nothing_is_left(
    asks: list[tuple[int, int, int]], changes: list[tuple[int, str, str]]
) -> None:
    async def play() -> None:
        admission = Admission(queue_size=3, queue_timeout_s=15.0, random_unit=lambda: 0.5)

        async def ask(start_s: int, use_s: int, patience_s: int) -> None:
            await trio.sleep(start_s)
            with trio.move_on_after(patience_s):
                try:
                    async with admission.lease(admission.ticket("m")):
                        await trio.sleep(use_s)
                except (QueueFull, QueueTimeout):
                    pass  # one of the ways out

        async def change(at_s: int, worker_id: str, what: str) -> None:
            await trio.sleep(at_s)
            if what == "ready":
                ready(admission, worker_id, slots=2)
            elif what == "lost":
                admission.worker_lost(worker_id)
            elif what == "cordon":
                admission.cordon(worker_id)
            else:
                admission.avoid(worker_id, avoided=what == "avoid")

        ready(admission)
        async with trio.open_nursery() as nursery:
            for one in asks:
                nursery.start_soon(ask, *one)
            for other in changes:
                nursery.start_soon(change, *other)
        assert repr(admission) == NOTHING_LEFT
        await admission.wait_all_drained()

    trio.run(play, clock=MockClock(autojump_threshold=0))


async def test_a_lost_workers_port_is_told_to_whoever_has_connections_there() -> None:
    lost: list[int] = []
    admission = Admission(4, 300.0, lambda: 0.5, lost.append)
    admission.worker_ready("w1", port=11500, slots=1, models=frozenset(), cordoned=False)
    admission.worker_lost("w1")
    admission.worker_lost("w1")
    assert lost == [11500]


# -- one's place in the queue ----------------------------------------------------------------------------------------


async def test_who_asks_is_told_its_place_when_it_changes_and_an_estimate(
    admission: Admission, autojump_clock: MockClock
) -> None:
    ready(admission)
    told: list[tuple[float, int, float | None]] = []

    async def notice(position: int, estimate_s: float | None) -> None:
        told.append((trio.current_time() - start, position, estimate_s))

    async def use(ticket: Waiting) -> None:
        async with admission.lease(ticket):
            await trio.sleep(9.5)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(use, admission.ticket("m"))
            await wait_all_tasks_blocked()
        await use(admission.ticket("m", notice=notice))
    assert told == [(0.0, 2, None), (10.0, 1, 9.5)], "it is looked for a change once a second"


async def test_the_admin_sees_every_ticket_that_waits(admission: Admission, autojump_clock: MockClock) -> None:
    ready(admission)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, admission, admission.ticket("m"))
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, admission, admission.ticket("m", "10.0.0.7", body_bytes=12, request_id="r1"))
        await trio.sleep(1.5)
        nursery.start_soon(hold, admission, admission.ticket("n", "key:vip", priority=3, request_id="r2"))
        await wait_all_tasks_blocked()
        urgent, plain = admission.tickets()
        assert (urgent["position"], urgent["request"], urgent["priority"]) == (1, "r2", 3)
        assert plain == {
            "position": 2, "estimated_wait_s": None, "waited_s": 1.5, "request": "r1", "caller": "10.0.0.7",
            "model": "m", "priority": 0, "body_bytes": 12, "attempts": 1,
        }  # fmt: skip
        nursery.cancel_scope.cancel()


async def test_one_that_is_put_out_of_a_full_queue_is_told_so(admission: Admission, autojump_clock: MockClock) -> None:
    refused: list[str] = []

    async def wait(caller: str) -> None:
        try:
            await hold(admission, admission.ticket("m", caller))
        except QueueFull:
            refused.append(caller)

    async with trio.open_nursery() as nursery:
        for caller in ("greedy", "greedy", "greedy", "greedy", "modest"):
            nursery.start_soon(wait, caller)
            await wait_all_tasks_blocked()
        assert refused == ["greedy"]
        nursery.cancel_scope.cancel()


async def test_many_tickets_are_shown_with_one_look_at_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them, each with a count of all slots, held up the loop for a tenth of a second."""
    admission = Admission(queue_size=100, queue_timeout_s=300.0, random_unit=lambda: 0.5)
    ready(admission, slots=2)
    looks: list[Admission] = []
    every = Admission.ready

    def ready_workers(self: Admission) -> list[WorkerSlots]:
        looks.append(self)
        return every(self)

    monkeypatch.setattr(Admission, "ready", ready_workers)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            async with admission.lease(admission.ticket("m")):
                await trio.lowlevel.checkpoint()
        for _ in range(22):
            nursery.start_soon(hold, admission, admission.ticket("m"))
        await wait_all_tasks_blocked()
        assert [row["position"] for row in admission.tickets()] == list(range(1, 21))
        assert len(looks) == 1
        nursery.cancel_scope.cancel()

"""Who gets which slot: tables for the choice, and a state machine for what must always hold."""

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from gateway.affinity import BLOCK_BYTES, prefix_of
from gateway.dispatch import COOL_S, PASSES_PER_SLOT, Dispatcher
from gateway.errors import NoWorkerWanted, QueueFull
from gateway.slots import Ticket, WorkerSlots
from tests.fakes.examples import examples

NONE: frozenset[str] = frozenset()


def dispatcher(queue_size: int = 8, random_unit: Callable[[], float] = lambda: 0.5) -> Dispatcher:
    return Dispatcher(queue_size, random_unit)


def ready(desk: Dispatcher, worker_id: str, slots: int = 1, *models: str, cordoned: bool = False) -> list[Ticket]:
    return desk.worker_ready(worker_id, 11500, slots, frozenset(models), cordoned=cordoned)


def arrived(desk: Dispatcher, model: str | None = "m") -> Ticket:
    ticket = Ticket(model)
    desk.arrive(ticket)
    return ticket


def place(ticket: Ticket) -> str | None:
    return ticket.lease.worker_id if ticket.lease else None


# -- the choice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "workers", "leases", "model", "chosen"),
    [
        ("the emptier one", {"a": (4, ""), "b": (4, "")}, "aab", "m", "b"),
        ("by share of its slots, not by count", {"a": (2, ""), "b": (8, "")}, "abb", "m", "b"),
        ("the one with the model, though busier", {"a": (4, "m"), "b": (4, "x")}, "aa", "m", "a"),
        ("the one with the model, unless it is full", {"a": (1, "m"), "b": (4, "x")}, "a", "m", "b"),
        ("the emptier one when no model is named", {"a": (4, "m"), "b": (4, "x")}, "a", None, "b"),
    ],
)
def test_the_worker_that_answers_soonest_is_chosen(
    why: str, workers: dict[str, tuple[int, str]], leases: str, model: str | None, chosen: str
) -> None:
    desk = dispatcher()
    for busy in leases:
        # the leases that a worker has already: only it is open while they are made
        if busy not in {worker.id for worker in desk.ready()}:
            ready(desk, busy, workers[busy][0], *workers[busy][1])
        for worker in desk.ready():
            worker.cordoned = worker.id != busy
        assert place(arrived(desk, None)) == busy
    for worker_id, (slots, models) in workers.items():
        if worker_id not in {worker.id for worker in desk.ready()}:
            ready(desk, worker_id, slots, *models)
    for worker in desk.ready():
        worker.cordoned = False
    assert place(arrived(desk, model)) == chosen, why


def test_a_model_that_is_being_loaded_for_a_lease_counts_as_loaded() -> None:
    desk = dispatcher()
    ready(desk, "a", 4)
    ready(desk, "b", 4)
    first = arrived(desk, "m")
    assert place(arrived(desk, "m")) == place(first)


def test_a_model_learnt_of_later_is_preferred() -> None:
    desk = dispatcher(random_unit=lambda: 0.0)
    ready(desk, "a", 4)
    ready(desk, "b", 4)
    desk.worker_models("b", frozenset({"m"}))
    assert place(arrived(desk, "m")) == "b"


def test_equals_share_by_chance() -> None:
    desk = dispatcher(random_unit=random.Random(7).random)
    for name in "abc":
        ready(desk, name, 1)
    counts = dict.fromkeys("abc", 0)
    for _ in range(600):
        ticket = arrived(desk)
        counts[str(place(ticket))] += 1
        desk.cancel(ticket)
    assert all(150 < count < 250 for count in counts.values()), counts


def test_the_lowest_draw_wins_among_equals() -> None:
    draws = iter([0.9, 0.1, 0.5])
    desk = dispatcher(random_unit=lambda: next(draws))
    for name in "abc":
        ready(desk, name, 1)
    assert place(arrived(desk)) == "b"


# -- the queue -------------------------------------------------------------------------------------------------


def test_tickets_are_served_in_the_order_in_which_they_came() -> None:
    desk = dispatcher()
    ready(desk, "a")
    holder, second, third = (arrived(desk) for _ in range(3))
    assert desk.cancel(holder) == [second]
    assert desk.cancel(second) == [third]
    assert desk.cancel(third) == []


def test_a_cancelled_ticket_leaves_the_queue() -> None:
    desk = dispatcher()
    ready(desk, "a")
    holder, second, third = (arrived(desk) for _ in range(3))
    assert desk.cancel(second) == []
    assert desk.cancel(holder) == [third]


@pytest.mark.parametrize("queue_size", [0, 1, 3])
def test_the_queue_takes_as_many_as_its_size_and_no_more(queue_size: int) -> None:
    desk = dispatcher(queue_size)
    ready(desk, "a")
    for _ in range(1 + queue_size):
        arrived(desk)
    with pytest.raises(QueueFull):
        arrived(desk)
    assert len(desk.waiting) == queue_size


def test_a_refused_ticket_may_come_again() -> None:
    desk = dispatcher(0)
    ready(desk, "a")
    holder, late = arrived(desk), Ticket("m")
    with pytest.raises(QueueFull):
        desk.arrive(late)
    desk.cancel(holder)
    assert desk.arrive(late) == [late]


def test_a_retried_ticket_keeps_its_place_and_is_not_refused_for_a_full_queue() -> None:
    desk = dispatcher(1)
    ready(desk, "a")
    first, second = arrived(desk), arrived(desk)
    assert first.lease is not None
    first.excluded |= {first.lease.life}
    desk.worker_lost("a")
    desk.arrive(first)
    assert desk.waiting == [first, second]
    assert ready(desk, "b") == [first]


def test_a_retried_ticket_that_waits_can_be_cancelled() -> None:
    desk = dispatcher()
    ready(desk, "a")
    ticket = arrived(desk)
    assert ticket.lease is not None
    ticket.excluded |= {ticket.lease.life}
    desk.release(ticket.lease)
    desk.arrive(ticket)
    assert desk.waiting == [ticket]
    desk.cancel(ticket)
    assert desk.waiting == []


def test_a_tried_worker_is_not_tried_again_but_its_next_life_is() -> None:
    desk = dispatcher()
    ready(desk, "a")
    ticket = arrived(desk)
    assert ticket.lease is not None
    ticket.excluded |= {ticket.lease.life}
    desk.release(ticket.lease)
    assert desk.arrive(ticket) == []
    assert not desk.untried(ticket.excluded)
    desk.worker_lost("a")
    assert ready(desk, "a") == [ticket]
    assert desk.untried(ticket.excluded)


def test_a_ticket_that_cannot_use_the_free_slot_does_not_hold_up_those_behind_it() -> None:
    desk = dispatcher()
    ready(desk, "a")
    tried, behind = arrived(desk), arrived(desk)
    assert tried.lease is not None
    tried.excluded |= {tried.lease.life}
    ready(desk, "b", cordoned=True)
    desk.release(tried.lease)
    assert place(behind) == "a"
    assert desk.arrive(tried) == []
    assert desk.uncordon("b") == [tried]


def test_with_no_worker_wanted_every_ticket_is_refused() -> None:
    desk = dispatcher()
    desk.wanted_workers = 0
    with pytest.raises(NoWorkerWanted):
        arrived(desk)
    assert desk.waiting == []


# -- workers come and go ---------------------------------------------------------------------------------------


def test_a_cordoned_worker_keeps_its_leases_and_gets_no_more() -> None:
    desk = dispatcher()
    ready(desk, "a", 2)
    first = arrived(desk)
    desk.cordon("a")
    second = arrived(desk)
    assert (desk.inflight("a"), place(second)) == (1, None)
    assert desk.cancel(first) == []
    assert desk.uncordon("a") == [second]


def test_a_lease_of_a_lost_worker_gives_nothing_back() -> None:
    desk = dispatcher()
    ready(desk, "a")
    old = arrived(desk)
    desk.worker_lost("a")
    ready(desk, "a")
    new, waiting = arrived(desk), arrived(desk)
    assert (desk.cancel(old), desk.inflight("a"), place(waiting)) == ([], 1, None)
    assert desk.cancel(new) == [waiting]


def test_ending_a_lease_twice_frees_one_slot() -> None:
    desk = dispatcher()
    ready(desk, "a", 2)
    first, second = arrived(desk), arrived(desk)
    desk.cancel(first)
    desk.cancel(first)
    assert (desk.inflight("a"), place(second)) == (1, "a")


def test_word_of_a_worker_that_is_not_there_changes_nothing() -> None:
    desk = dispatcher()
    desk.worker_lost("x")
    desk.cordon("x")
    desk.worker_models("x", frozenset({"m"}))
    assert (desk.uncordon("x"), desk.avoid("x", avoided=True), desk.ready(), desk.inflight("x")) == ([], [], [], 0)


# -- an avoided worker -----------------------------------------------------------------------------------------


def test_a_ticket_waits_for_a_well_worker_rather_than_take_an_avoided_ones_slot() -> None:
    desk = dispatcher()
    ready(desk, "well")
    ready(desk, "sick", 4, "m")
    desk.avoid("sick", avoided=True)
    first, second = arrived(desk), arrived(desk)
    assert (place(first), place(second)) == ("well", None)
    assert desk.cancel(first) == [second]
    assert place(second) == "well"


def test_an_avoided_worker_that_is_trusted_again_takes_up_what_waits() -> None:
    desk = dispatcher()
    ready(desk, "well")
    ready(desk, "sick")
    desk.avoid("sick", avoided=True)
    _, second = arrived(desk), arrived(desk)
    assert desk.avoid("sick", avoided=False) == [second]


def test_a_fleet_in_which_all_are_avoided_still_serves() -> None:
    desk = dispatcher()
    for name in "ab":
        ready(desk, name)
        desk.avoid(name, avoided=True)
    assert {place(arrived(desk)), place(arrived(desk))} == {"a", "b"}


@pytest.mark.parametrize(
    "gone", [lambda desk: desk.worker_lost("well"), lambda desk: desk.cordon("well"),
             lambda desk: desk.avoid("well", avoided=True)],
)  # fmt: skip
def test_without_its_last_well_worker_the_fleet_falls_back_on_the_avoided_one(
    gone: Callable[[Dispatcher], list[Ticket]],
) -> None:
    desk = dispatcher()
    ready(desk, "well")
    ready(desk, "sick")
    desk.avoid("sick", avoided=True)
    _, second = arrived(desk), arrived(desk)
    assert gone(desk) == [second]
    assert place(second) == "sick"


def test_a_ticket_that_has_tried_every_well_worker_may_use_an_avoided_one() -> None:
    desk = dispatcher()
    ready(desk, "well")
    ready(desk, "sick")
    desk.avoid("sick", avoided=True)
    ticket, behind = arrived(desk), arrived(desk)
    assert ticket.lease is not None
    ticket.excluded |= {ticket.lease.life}
    assert desk.cancel(ticket) == [behind]
    assert desk.arrive(ticket) == [ticket]
    assert (place(behind), place(ticket)) == ("well", "sick")


def test_a_new_life_is_not_avoided() -> None:
    desk = dispatcher()
    ready(desk, "well")
    ready(desk, "sick")
    desk.avoid("sick", avoided=True)
    _, second = arrived(desk), arrived(desk)
    assert ready(desk, "sick") == [second]


# -- what always holds -----------------------------------------------------------------------------------------

WORKERS = st.sampled_from("abc")
MODELS = st.sampled_from(["m", "n", None])
QUEUE_BYTES = 12


class Rush(RuleBasedStateMachine):
    """Any order of arriving, cancelling, releasing, trying again, and workers coming, going, failing, being avoided."""

    held: Bundle[Ticket] = Bundle("held")

    @initialize(queue_size=st.integers(0, 4), seed=st.integers(0, 9))
    def open(self, queue_size: int, seed: int) -> None:
        self.desk = Dispatcher(queue_size, random.Random(seed).random, QUEUE_BYTES)
        self.grants: dict[Ticket, int] = {}
        self.ended: set[Ticket] = set()
        self.now = 0.0

    def may_use(self, ticket: Ticket, worker: WorkerSlots) -> bool:
        """Whether the ticket may have a slot of the worker, be there one or not."""
        others = [other for other in self.desk.ready() if other.life not in ticket.excluded and not other.cordoned]
        wanted = [other for other in others if not other.shuns(ticket.model)] or others
        return worker in wanted

    def note(self, ended: list[Ticket]) -> None:
        for ticket in ended:
            if ticket.displaced:
                assert ticket.lease is None
                assert ticket not in self.desk.waiting
                self.ended.add(ticket)
                continue
            assert ticket.lease is not None
            assert ticket not in self.desk.waiting
            assert self.may_use(ticket, ticket.lease.worker)
            self.grants[ticket] += 1

    @rule(
        target=held, model=MODELS, caller=st.sampled_from("xyz"), blocks=st.integers(0, 3),
        load_options=st.sampled_from(["", "", "num_ctx=8"]), priority=st.sampled_from([0, 0, 1, 2]),
        body_bytes=st.integers(0, 9), most_tokens=st.sampled_from([None, 8, 99]),
    )  # fmt: skip
    def arrive(
        self, model: str | None, caller: str, blocks: int, load_options: str, priority: int, body_bytes: int,
        most_tokens: int | None,
    ) -> Ticket:  # fmt: skip
        prefix = prefix_of("m", [caller.encode() * BLOCK_BYTES * blocks], continues=True)
        ticket = Ticket(model, caller, prefix, load_options, priority, body_bytes, most_tokens)
        self.grants[ticket] = 0
        free = any(worker.free and self.may_use(ticket, worker) for worker in self.desk.ready())
        full = len(self.desk.waiting) >= self.desk.queue_size or self.desk.waiting_bytes + body_bytes > QUEUE_BYTES
        before = len(self.desk.waiting)
        try:
            granted = self.desk.arrive(ticket)
        except QueueFull:
            assert full
            assert not free
            assert ticket not in self.desk.waiting
            assert len(self.desk.waiting) == before, "nobody leaves for one who does not come in"
            self.ended.add(ticket)
        else:
            assert (granted == [ticket]) is free
            assert free or not full or any(one.displaced for one in granted)
            self.note(granted)
        return ticket

    @rule(ticket=consumes(held))
    def cancel(self, ticket: Ticket) -> None:
        self.note(self.desk.cancel(ticket))
        self.ended.add(ticket)

    @rule(ticket=held, noticed=st.booleans())
    def try_again(self, ticket: Ticket, noticed: bool) -> None:
        if ticket.lease is None or ticket in self.ended:
            return
        ticket.excluded |= {ticket.lease.life}
        if noticed and any(worker.life == ticket.lease.life for worker in self.desk.ready()):
            self.note(self.desk.worker_lost(ticket.lease.worker_id))
        self.note(self.desk.cancel(ticket))
        self.grants[ticket] = 0
        self.note(self.desk.arrive(ticket))

    @rule(name=WORKERS, slots=st.integers(1, 3), models=st.frozensets(st.sampled_from("mn")), cordoned=st.booleans())
    def worker_ready(self, name: str, slots: int, models: frozenset[str], cordoned: bool) -> None:
        self.note(self.desk.worker_ready(name, 11500, slots, models, cordoned=cordoned))

    @rule(name=WORKERS)
    def worker_lost(self, name: str) -> None:
        self.note(self.desk.worker_lost(name))

    @rule(name=WORKERS)
    def cordon(self, name: str) -> None:
        self.note(self.desk.cordon(name))

    @rule(name=WORKERS, avoided=st.booleans())
    def avoid(self, name: str, avoided: bool) -> None:
        self.note(self.desk.avoid(name, avoided=avoided))

    @rule(ticket=held)
    def fail(self, ticket: Ticket) -> None:
        if ticket.lease is not None and ticket not in self.ended:
            self.note(self.desk.failed(ticket.lease, self.now))

    @rule(ticket=held)
    def fail_to_load(self, ticket: Ticket) -> None:
        if ticket.lease is not None and ticket not in self.ended:
            self.note(self.desk.cool(ticket.lease.worker, ticket.model, self.now))

    @rule(ticket=held, seconds_per_token=st.sampled_from([0.01, 0.1, 1.0]))
    def answer(self, ticket: Ticket, seconds_per_token: float) -> None:
        if ticket.lease is not None and ticket not in self.ended:
            self.note(self.desk.answered(ticket.lease))
            self.desk.took(ticket.lease, seconds_per_token)

    @rule(name=WORKERS, models=st.frozensets(st.sampled_from("mn")))
    def worker_models(self, name: str, models: frozenset[str]) -> None:
        self.desk.worker_models(name, models)

    @rule(pause_s=st.sampled_from([0.5, 2.0, 60.0]))
    def time_passes(self, pause_s: float) -> None:
        self.now += pause_s
        self.note(self.desk.forgive(self.now))
        trial_at = self.desk.next_trial_at()
        assert trial_at is None or trial_at > self.now

    @rule(name=WORKERS)
    def uncordon(self, name: str) -> None:
        self.note(self.desk.uncordon(name))

    @invariant()
    def no_worker_has_more_leases_than_slots(self) -> None:
        assert all(len(worker.leases) <= worker.slots for worker in self.desk.ready())

    @invariant()
    def no_ticket_waits_beside_a_free_slot_that_it_could_use(self) -> None:
        for worker in self.desk.ready():
            if worker.free:
                assert not any(self.may_use(ticket, worker) for ticket in self.desk.waiting)

    @invariant()
    def it_is_known_which_workers_have_a_slot_to_give(self) -> None:
        assert self.desk._free == {worker for worker in self.desk.ready() if worker.free}

    @invariant()
    def the_queue_is_in_the_order_of_turns_and_each_callers_in_that_of_arrival(self) -> None:
        turns = [ticket.turn for ticket in self.desk.waiting]
        assert turns == sorted(turns)
        for caller in "xyz":
            numbers = [ticket.number for ticket in self.desk.waiting if ticket.caller == caller]
            assert numbers == sorted(set(numbers))

    @invariant()
    def every_ticket_is_either_waiting_or_granted_once_or_over(self) -> None:
        for ticket, times in self.grants.items():
            waiting = ticket in self.desk.waiting
            if ticket in self.ended:
                assert not waiting
            else:
                assert (times, ticket.lease is None) == ((0, True) if waiting else (1, False))

    @invariant()
    def the_queue_is_within_its_bounds(self) -> None:
        waiting = self.desk.waiting
        again = sum(bool(ticket.excluded) for ticket in waiting)
        assert len(waiting) <= self.desk.queue_size + again
        assert self.desk.waiting_bytes == sum(ticket.body_bytes for ticket in waiting)
        assert self.desk.waiting_bytes <= QUEUE_BYTES + sum(ticket.body_bytes for ticket in waiting if ticket.excluded)

    @invariant()
    def nobody_is_passed_without_end(self) -> None:
        assert all(ticket.passed <= PASSES_PER_SLOT * 3 for ticket in self.desk.waiting)

    @invariant()
    def every_lease_belongs_to_a_ticket_that_is_not_over(self) -> None:
        theirs = {lease for worker in self.desk.ready() for lease in worker.leases}
        assert theirs <= {ticket.lease for ticket in self.grants if ticket not in self.ended}

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        for ticket in self.grants:
            self.desk.cancel(ticket)
        assert self.desk.waiting == []
        assert sum(len(worker.leases) for worker in self.desk.ready()) == 0


TestRush = Rush.TestCase
TestRush.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


# -- turns and caches ------------------------------------------------------------------------------------------------


def test_one_callers_many_do_not_delay_anothers_one() -> None:
    dispatcher = Dispatcher(1000, lambda: 0.5)
    dispatcher.worker_ready("w", 1, 1, frozenset())
    (running,) = dispatcher.arrive(Ticket("m", "greedy"))
    for _ in range(200):
        dispatcher.arrive(Ticket("m", "greedy"))
    modest = Ticket("m", "modest")
    dispatcher.arrive(modest)
    assert running.lease is not None
    first = dispatcher.release(running.lease)
    assert modest in first or (first[0].lease is not None and modest in dispatcher.release(first[0].lease))


def test_requests_that_were_given_up_cost_their_caller_no_turn() -> None:
    desk = dispatcher(queue_size=1000)
    ready(desk, "a")
    arrived(desk)
    given_up = [Ticket("m", "leaves") for _ in range(200)]
    for ticket in given_up:
        desk.arrive(ticket)
    others = [Ticket("m", "stays") for _ in range(100)]
    for ticket in others:
        desk.arrive(ticket)
    for ticket in given_up:
        desk.cancel(ticket)
    back = Ticket("m", "leaves")
    desk.arrive(back)
    assert desk.position(back) <= 2
    for ticket in (*others, back):
        desk.cancel(ticket)
    assert desk._turns._next == {}


def test_ten_equal_callers_get_equal_shares() -> None:
    dispatcher = Dispatcher(10_000, lambda: 0.5)
    dispatcher.worker_ready("w", 1, 4, frozenset())
    for number in range(10):
        for _ in range(10 + 20 * number):  # some ask for a lot
            dispatcher.arrive(Ticket("m", f"caller {number}"))
    running = list(dispatcher.ready()[0].leases)
    shares = [0] * 10
    for _ in range(100):
        for ticket in dispatcher.release(running.pop(0)):
            shares[int(ticket.caller.split()[1])] += 1
            assert ticket.lease is not None
            running.append(ticket.lease)
    jain = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
    assert jain >= 0.95


def test_a_conversation_goes_where_its_beginning_is_held_if_that_has_a_slot() -> None:
    dispatcher = Dispatcher(10, lambda: 0.5)
    for name, port in (("a", 1), ("b", 2)):
        dispatcher.worker_ready(name, port, 1, frozenset({"m"}))
    turn = [prefix_of("m", [b"x" * BLOCK_BYTES * count], continues=True) for count in range(1, 5)]
    (first,) = dispatcher.arrive(Ticket("m", prefix=turn[0]))
    assert first.lease is not None
    home = first.lease.worker_id
    dispatcher.release(first.lease)
    for prefix in turn[1:]:
        (ticket,) = dispatcher.arrive(Ticket("m", prefix=prefix))
        assert ticket.lease is not None
        assert ticket.lease.worker_id == home
        dispatcher.release(ticket.lease)
    (stranger,) = dispatcher.arrive(Ticket("m"))
    (second,) = dispatcher.arrive(Ticket("m"))
    assert {stranger.lease, second.lease} == {lease for worker in dispatcher.ready() for lease in worker.leases}
    dispatcher.cancel(stranger if stranger.lease is not None and stranger.lease.worker_id != home else second)
    (elsewhere,) = dispatcher.arrive(Ticket("m", prefix=turn[3]))
    assert elsewhere.lease is not None
    assert elsewhere.lease.worker_id != home, "no slot stays idle while a ticket waits"


def test_a_restarted_worker_holds_nothing() -> None:
    dispatcher = Dispatcher(10, lambda: 0.5)
    dispatcher.worker_ready("a", 1, 1, frozenset({"m"}))
    prefix = prefix_of("m", [b"x" * BLOCK_BYTES], continues=True)
    (ticket,) = dispatcher.arrive(Ticket("m", prefix=prefix))
    dispatcher.worker_lost("a")
    dispatcher.cancel(ticket)
    dispatcher.worker_ready("a", 1, 1, frozenset({"m"}))
    assert dispatcher._affinity._where == {}


def test_a_worker_that_fails_at_once_is_not_tried_again_and_again() -> None:
    dispatcher = Dispatcher(10, lambda: 0.5)
    for name in "abc":
        dispatcher.worker_ready(name, 1, 4, frozenset())
    now, tried = 0.0, 0
    for _ in range(300):
        now += 0.02
        dispatcher.forgive(now)
        (ticket,) = dispatcher.arrive(Ticket("m"))
        assert ticket.lease is not None
        if ticket.lease.worker_id == "a":
            tried += 1
            dispatcher.failed(ticket.lease, now)
        else:
            dispatcher.answered(ticket.lease)
        dispatcher.cancel(ticket)
    assert 2 <= tried <= 9, "3 % of 300"
    assert dispatcher.ready()[0].shunned


def test_a_worker_on_trial_gets_one_request_and_with_its_answer_all_slots() -> None:
    dispatcher = Dispatcher(10, lambda: 0.5)
    dispatcher.worker_ready("a", 1, 4, frozenset())
    for _ in range(2):
        (ticket,) = dispatcher.arrive(Ticket("m"))
        assert ticket.lease is not None
        dispatcher.failed(ticket.lease, 0.0)
        dispatcher.cancel(ticket)
    assert dispatcher.next_trial_at() == 1.0
    (only,) = dispatcher.arrive(Ticket("m"))
    assert only.lease is not None, "a fleet of which all fail serves all the same"
    dispatcher.cancel(only)
    dispatcher.forgive(1.0)
    (trial,) = dispatcher.arrive(Ticket("m"))
    assert dispatcher.arrive(Ticket("m")) == []
    assert trial.lease is not None
    assert len(dispatcher.answered(trial.lease)) == 1


# -- passing: a loaded model, a priority, and the bound --------------------------------------------------------------


def served_next(desk: Dispatcher, running: Ticket) -> Ticket:
    (ticket,) = desk.cancel(running)
    return ticket


def test_two_models_that_do_not_fit_beside_each_other_do_not_take_turns_with_every_request() -> None:
    desk = dispatcher(100)
    ready(desk, "a", 1, "n")
    desk.worker_models("a", frozenset({"m"}))  # n went when m came: there is room for one
    running = arrived(desk, "m")
    for _ in range(6):
        arrived(desk, "n")
        arrived(desk, "m")
    order = []
    for _ in range(12):
        running = served_next(desk, running)
        order.append(running.model)
    changes = sum(one != two for one, two in zip(["m", *order], order, strict=False))
    assert changes <= 4, f"{order}: each change is a load"
    assert order.index("n") <= PASSES_PER_SLOT, "and the first of the others does not wait for ever"


def test_an_unloaded_model_waits_for_nobody_when_it_is_alone() -> None:
    desk = dispatcher()
    ready(desk, "a", 1, "m")
    running, other = arrived(desk, "m"), arrived(desk, "n")
    assert served_next(desk, running) is other


def test_a_worker_with_room_for_both_models_learns_so_and_nobody_is_passed() -> None:
    desk = dispatcher()
    ready(desk, "a", 1, "m")
    desk.worker_models("a", frozenset({"m", "n"}))
    running, other, later = arrived(desk, "m"), arrived(desk, "n"), arrived(desk, "m")
    assert served_next(desk, running) is other
    assert served_next(desk, other) is later


def test_what_was_pushed_out_of_a_worker_is_known_before_it_is_asked_again() -> None:
    desk = dispatcher()
    ready(desk, "a", 1, "m")
    desk.cancel(arrived(desk, "n"))
    desk.worker_models("a", frozenset({"n"}))  # so m went when n came
    (worker,) = desk.ready()
    assert worker.room == 1
    arrived(desk, "m")
    assert worker.held() == {"m"}


def test_the_same_model_with_other_load_options_is_a_load_too() -> None:
    desk = dispatcher(random_unit=lambda: 0.0)
    ready(desk, "a", 4, "m")
    ready(desk, "b", 4, "m")
    big = Ticket("m", load_options="num_ctx=32768")
    desk.arrive(big)
    others = [arrived(desk) for _ in range(3)]
    assert {place(one) for one in others} == {"b" if place(big) == "a" else "a"}
    second = Ticket("m", load_options="num_ctx=32768")
    desk.arrive(second)
    assert place(second) == place(big)


def test_a_higher_priority_goes_first_and_does_not_starve_the_rest() -> None:
    desk = dispatcher(1000)
    ready(desk, "a", 1, "m")
    running = arrived(desk)
    plain = [arrived(desk) for _ in range(2)]
    urgent = [Ticket("m", "vip", priority=5) for _ in range(40)]
    for ticket in urgent:
        desk.arrive(ticket)
    order = []
    for _ in range(20):
        running = served_next(desk, running)
        order.append(running)
    assert order[0] in urgent
    assert order.index(plain[0]) <= PASSES_PER_SLOT
    assert [one for one in order if one in urgent] == urgent[: len(order) - sum(one in plain for one in order)]


def with_a_slower_worker() -> tuple[Dispatcher, dict[str, Ticket]]:
    """Return a desk of which "b" takes twice as long as "a", and what each of the two is busy with."""
    desk, running = dispatcher(1000), {}
    for name, pace in (("a", 0.1), ("b", 0.2)):
        ready(desk, name, 1, "m")
        running[name] = arrived(desk)
        lease = running[name].lease
        assert lease is not None
        for _ in range(5):
            desk.took(lease, pace)
    return desk, running


def test_a_slower_worker_gets_the_shortest_of_those_that_wait() -> None:
    desk, running = with_a_slower_worker()
    waiting = [Ticket("m", most_tokens=most) for most in (None, 500, 20, 60)]
    for ticket in waiting:
        desk.arrive(ticket)
    assert desk.cancel(running["b"]) == [waiting[2]]
    assert desk.cancel(running["a"]) == [waiting[0]], "the faster one goes by turns"
    assert desk.cancel(waiting[2]) == [waiting[3]]
    assert desk.cancel(waiting[3]) == [waiting[1]]


def test_a_long_one_is_not_passed_for_ever_where_only_the_slower_worker_is_left() -> None:
    desk, running = with_a_slower_worker()
    long = arrived(desk)
    for _ in range(50):
        desk.arrive(Ticket("m", "chatty", most_tokens=8))
    last, order = running["b"], []
    while long.lease is None:
        (last,) = desk.cancel(last)
        order.append(last)
    assert len(order) <= PASSES_PER_SLOT + 1


# -- the full queue --------------------------------------------------------------------------------------------------


def test_one_callers_full_queue_is_not_full_for_another() -> None:
    desk = dispatcher(4)
    ready(desk, "a", 1)
    arrived(desk)
    greedy = [Ticket("m", "greedy") for _ in range(4)]
    for ticket in greedy:
        desk.arrive(ticket)
    modest = Ticket("m", "modest")
    assert desk.arrive(modest) == [greedy[-1]]
    assert (greedy[-1].displaced, greedy[-1].lease) == (True, None)
    assert modest in desk.waiting
    with pytest.raises(QueueFull):
        desk.arrive(Ticket("m", "greedy"))


def test_a_queue_full_of_equals_refuses() -> None:
    desk = dispatcher(3)
    ready(desk, "a", 1)
    arrived(desk)
    for caller in "xyz":
        desk.arrive(Ticket("m", caller))
    with pytest.raises(QueueFull):
        desk.arrive(Ticket("m", "late"))
    assert [ticket.caller for ticket in desk.waiting] == ["x", "y", "z"]


def test_the_queue_is_bounded_in_bytes_too() -> None:
    desk = Dispatcher(100, lambda: 0.5, queue_bytes=1000)
    ready(desk, "a", 1)
    arrived(desk)
    for _ in range(3):
        desk.arrive(Ticket("m", "greedy", body_bytes=300))
    with pytest.raises(QueueFull):
        desk.arrive(Ticket("m", "greedy", body_bytes=300))
    assert [one.body_bytes for one in desk.arrive(Ticket("m", "modest", body_bytes=200))] == [300]
    assert desk.waiting_bytes == 800
    desk.arrive(Ticket("m", "greedy"))
    assert len(desk.waiting) == 4


def test_what_would_not_make_enough_room_is_not_thrown_out() -> None:
    desk = Dispatcher(100, lambda: 0.5, queue_bytes=1000)
    ready(desk, "a", 1)
    arrived(desk)
    small = [Ticket("m", "some", body_bytes=500) for _ in range(2)]
    for ticket in small:
        desk.arrive(ticket)
    with pytest.raises(QueueFull):
        desk.arrive(Ticket("m", "other", body_bytes=900))
    assert desk.waiting == small
    assert not any(ticket.displaced for ticket in small)


# -- a model that a worker cannot load, a worker that is slow --------------------------------------------------------


def test_a_worker_that_cannot_load_a_model_is_passed_over_for_that_model_alone() -> None:
    desk = dispatcher(random_unit=lambda: 0.0)
    ready(desk, "a", 4)
    ready(desk, "b", 4)
    failing = arrived(desk, "m")
    assert failing.lease is not None
    bad = place(failing)
    desk.cool(failing.lease.worker, "m", now=10.0)
    desk.cancel(failing)
    assert {place(arrived(desk, "m")) for _ in range(4)} == {"b" if bad == "a" else "a"}
    assert place(arrived(desk, "x")) == bad
    assert desk.next_trial_at() == 10.0 + COOL_S
    waiting = arrived(desk, "m")
    assert place(waiting) is None, "it waits for the one that can"
    assert desk.forgive(10.0 + COOL_S) == [waiting]


def test_a_fleet_of_which_none_could_load_a_model_tries_again() -> None:
    desk = dispatcher()
    ready(desk, "a", 1)
    first = arrived(desk)
    assert first.lease is not None
    desk.cool(first.lease.worker, "m", now=0.0)
    desk.cancel(first)
    assert place(arrived(desk)) == "a"


def test_a_worker_ten_times_slower_gets_what_the_others_cannot_take() -> None:
    desk = dispatcher(random_unit=random.Random(1).random)
    for name in "abc":
        ready(desk, name, 4, "m")
    counts = dict.fromkeys("abc", 0)
    for _ in range(300):
        ticket = arrived(desk)
        assert ticket.lease is not None
        counts[ticket.lease.worker_id] += 1
        desk.took(ticket.lease, 0.5 if ticket.lease.worker_id == "c" else 0.05)
        desk.cancel(ticket)
    assert 1 <= counts["c"] < 15, "and it is tried again now and then"
    held = [arrived(desk) for _ in range(12)]
    assert sorted(str(place(one)) for one in held) == sorted("abc" * 4), "no slot is idle while a ticket waits"


def test_ten_thousand_wait_and_two_hundred_workers_answer() -> None:
    """Not timed here; `make bench` times it. That a scan of all of them would show is what this is for."""
    desk = dispatcher(10_000, random.Random(3).random)
    for number in range(256):
        ready(desk, f"w{number}", 1, "m")
    running = [arrived(desk) for _ in range(256)]
    for number in range(10_000):
        desk.arrive(Ticket("m", f"caller {number % 50}"))
    for _ in range(2_000):
        running += desk.cancel(running.pop(0))
    assert len(running) == 256
    assert len(desk.waiting) == 8_000

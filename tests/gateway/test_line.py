"""The queue's lists say the same, whatever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.line import Line
from gateway.slots import Ticket

TICKETS = st.lists(
    st.builds(
        Ticket, st.sampled_from(["m", "n", None]), st.sampled_from("xy"), priority=st.integers(0, 2),
        body_bytes=st.integers(0, 9), turn=st.integers(0, 5).map(float), most_tokens=st.sampled_from([None, 8, 99]),
    ),
    max_size=20,
)  # fmt: skip


def anyone(_: Ticket) -> bool:
    return True


@given(TICKETS, st.data())
def test_each_question_is_answered_as_a_look_at_all_of_them_would(tickets: list[Ticket], data: st.DataObject) -> None:
    line = Line()
    for number, ticket in enumerate(tickets):
        ticket.number = number + 1
        line.add(ticket)
    for ticket in data.draw(st.permutations(tickets))[: len(tickets) // 2]:
        line.remove(ticket)
    left = sorted((one for one in tickets if one.waiting), key=lambda one: (one.turn, one.number))
    assert line.tickets == left
    assert line.bytes == sum(one.body_bytes for one in left)
    assert line.first(anyone) is (left[0] if left else None)
    for models in ({"m"}, {"m", None}, {"z"}):
        assert line.first_for(models, anyone) is next((one for one in left if one.model in models), None)
    by_rank = sorted(left, key=lambda one: (-one.priority, one.turn, one.number))
    assert [line.position(one) for one in by_rank] == list(range(1, len(by_rank) + 1))
    for head in left:
        alike = [one for one in left if (one.model, one.priority) == (head.model, head.priority)]
        least = min((one.most_tokens for one in alike if one.most_tokens is not None), default=None)
        assert line.shortest(head, anyone).most_tokens == least
        if head.most_tokens == least:
            assert line.shortest(head, anyone) is head
        urgent = [one for one in left if one.priority > head.priority]
        most = max((one.priority for one in urgent), default=None)
        expected = next((one for one in urgent if one.priority == most), head)
        assert line.most_urgent(head, anyone) is expected


def test_who_has_most_leaves_and_only_for_who_has_clearly_less() -> None:
    line = Line()
    greedy = [Ticket("m", "greedy", number=number) for number in range(1, 4)]
    for ticket in greedy:
        line.add(ticket)
    assert line.displaceable_by(Ticket("m", "new"), bytes_short=False) is greedy[-1]
    assert line.displaceable_by(Ticket("m", "greedy"), bytes_short=False) is None
    for number in (4, 5):
        line.add(Ticket("m", "new", number=number))
    assert line.displaceable_by(Ticket("m", "new"), bytes_short=False) is None, "that would be as unfair as before"


def test_one_that_was_at_a_worker_already_is_not_sent_away() -> None:
    line = Line()
    for number in range(1, 4):
        line.add(Ticket("m", "greedy", number=number, excluded=frozenset({("w", 1)})))
    assert line.displaceable_by(Ticket("m", "new"), bytes_short=False) is None


def test_an_empty_line_has_nobody_to_send_away() -> None:
    assert Line().displaceable_by(Ticket("m", body_bytes=10), bytes_short=True) is None

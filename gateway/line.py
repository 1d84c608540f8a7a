"""The tickets that wait, in the order of their turns. Pure.

One list in order, and beside it the same tickets by model and by priority, so that the next one for a worker is found
at the front of a list and not by a look at every ticket: with 10,000 waiting that is 5 µs instead of milliseconds.
"""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection
from itertools import chain, islice
from operator import attrgetter
from typing import TypeVar

from gateway.slots import Ticket

_place = attrgetter("place")

# How far behind the first of a model a shorter one is looked for.
LOOK = 64

Key = TypeVar("Key")
Fits = Callable[[Ticket], bool]


class Line:
    """The queue itself. `bytes` is what its tickets' bodies take, `tried_again` how many have been at a worker."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.bytes = 0
        self.tried_again = 0
        self._by_model: dict[str | None, list[Ticket]] = {}
        self._by_priority: dict[int, list[Ticket]] = {}  # only of those that have one
        self._count_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.tickets)

    def add(self, ticket: Ticket) -> None:
        """Take a ticket in, at its place."""
        ticket.waiting = True
        insort(self.tickets, ticket, key=_place)
        insort(self._by_model.setdefault(ticket.model, []), ticket, key=_place)
        if ticket.priority:
            insort(self._by_priority.setdefault(ticket.priority, []), ticket, key=_place)
        self._count_of[ticket.caller] += 1
        self._bytes_of[ticket.caller] += ticket.body_bytes
        self.bytes += ticket.body_bytes
        self.tried_again += bool(ticket.excluded)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out that is in it."""
        ticket.waiting = False
        _cut(self.tickets, ticket)
        _cut_from(self._by_model, ticket.model, ticket)
        if ticket.priority:
            _cut_from(self._by_priority, ticket.priority, ticket)
        self.bytes -= ticket.body_bytes
        self.tried_again -= bool(ticket.excluded)
        self._bytes_of[ticket.caller] -= ticket.body_bytes
        self._count_of[ticket.caller] -= 1
        if not self._count_of[ticket.caller]:
            del self._count_of[ticket.caller], self._bytes_of[ticket.caller]

    # -- who is next -------------------------------------------------------------------------------------------------

    def first(self, fits: Fits) -> Ticket | None:
        """Return the first ticket in line that fits."""
        return next(filter(fits, self.tickets), None)

    def most_urgent(self, head: Ticket, fits: Fits) -> Ticket:
        """Return the first of those with the highest priority above that of `head`, or `head` itself."""
        for priority in sorted(self._by_priority, reverse=True):
            if priority <= head.priority:
                break
            if (found := next(filter(fits, self._by_priority[priority]), None)) is not None:
                return found
        return head

    def first_for(self, models: Collection[str | None], fits: Fits) -> Ticket | None:
        """Return the first ticket for one of some models that fits."""
        lists = (self._by_model[model] for model in models if model in self._by_model)
        found = (next(filter(fits, tickets), None) for tickets in lists)
        return min((ticket for ticket in found if ticket is not None), key=_place, default=None)

    def shortest(self, ticket: Ticket, fits: Fits) -> Ticket:
        """Return which of a ticket and those that wait with it, of its model and priority, says to be the shortest.

        Only the first LOOK of them are looked at. Of equals it is the ticket itself.
        """
        alike = (one for one in islice(self._by_model[ticket.model], LOOK) if one.priority == ticket.priority)
        return min(chain((ticket,), filter(fits, alike)), key=_length)

    def position(self, ticket: Ticket) -> int:
        """Return where a ticket stands, from 1: behind all with a higher priority, and those before it of its own."""
        higher = [tickets for priority, tickets in self._by_priority.items() if priority > ticket.priority]
        if ticket.priority:
            return sum(map(len, higher)) + bisect_left(self._by_priority[ticket.priority], ticket.place, key=_place) + 1
        mine = bisect_left(self.tickets, ticket.place, key=_place)
        behind = sum(len(tickets) - bisect_left(tickets, ticket.place, key=_place) for tickets in higher)
        return mine + behind + 1

    # -- who has to leave --------------------------------------------------------------------------------------------

    def displaceable_by(self, ticket: Ticket, *, bytes_short: bool) -> Ticket | None:
        """Return the ticket that leaves a full queue so that `ticket` may come in; None when it has no better right.

        It is the last one of the caller that has the most in the queue (in bytes, where they are what is short), if
        that is still more than the newcomer's own caller has with the new one.
        """
        had = self._bytes_of if bytes_short else self._count_of
        if not had:
            return None
        caller, most = max(had.items(), key=lambda pair: pair[1])
        if most <= had[ticket.caller] + (ticket.body_bytes if bytes_short else 1):
            return None
        last = (one for one in reversed(self.tickets) if one.caller == caller and not one.excluded)
        return next((one for one in last if one.body_bytes or not bytes_short), None)


def _length(ticket: Ticket) -> float:
    return math.inf if ticket.most_tokens is None else ticket.most_tokens


def _cut(tickets: list[Ticket], ticket: Ticket) -> None:
    del tickets[bisect_left(tickets, ticket.place, key=_place)]


def _cut_from(lists: dict[Key, list[Ticket]], key: Key, ticket: Ticket) -> None:
    _cut(lists[key], ticket)
    if not lists[key]:
        del lists[key]

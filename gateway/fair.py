"""Whose turn it is among callers that wait. Pure.

Start-time fair queueing with equal weights (Goyal, Vin, Cheng, 1996): each ticket gets a number when it comes, the
tickets are served by it. A caller's next ticket stands one behind the last, but never before the ticket that was served
last: so somebody's thousand requests stand one behind the other, and another's first one stands before nearly all.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Turns:
    """Gives tickets their turns. It remembers callers only while somebody waits."""

    _served: float = 0.0
    _next: dict[str, float] = field(default_factory=dict)

    def turn_of(self, caller: str) -> float:
        """Return the turn of a caller's new ticket: the lower, the sooner."""
        turn = max(self._served, self._next.get(caller, 0.0))
        self._next[caller] = turn + 1.0
        return turn

    def refused(self, caller: str) -> None:
        """A ticket found no place in the queue, or left it: its turn was none, and those to come stand one earlier."""
        if caller in self._next:
            self._next[caller] -= 1.0
            if self._next[caller] <= self._served:  # as anybody's who comes new
                del self._next[caller]

    def served(self, turn: float, *, waiting: bool) -> None:
        """A ticket has got its slot when it was its turn; `waiting` says whether others still wait.

        Not told of those that passed others: they have not moved the line on.
        """
        self._served = max(self._served, turn)  # never back: who comes again stands before all who came later
        if not waiting:
            self.nobody_waits()

    def nobody_waits(self) -> None:
        """The line is empty: everybody begins anew."""
        self._next.clear()

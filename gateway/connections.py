"""How many connections there may be, who makes room, and what they hold in memory. Decides; the I/O is `stream`'s.

At the bound a newcomer takes the place of the connection that has been idle longest (its client connects again, as
it must be ready to: RFC 9112, 9.5). When none is idle, the newcomer may come in by the reserve: its request is read,
and answered when it is for Chimera itself (admin, health, metrics), so that the operator gets in just then; any other
gets a 503 that says why. That is kinder than a full backlog, in which a load balancer or a curl would only wait.
"""

import resource
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import structlog
import trio

from gateway.patience import Patience, Waiter

log = structlog.get_logger("gateway")

# Connections beyond the bound, of which half are kept for this machine's own clients: who floods the port from
# elsewhere must not shut out the operator.
RESERVE = 32
# What all clients together may leave unread in our memory. Above it a writer waits for its client, as it would with
# no memory at all.
UNREAD_BYTES = 256 * 1024 * 1024
# Descriptors for all else: the workers' pidfds and probes, logs, NVML, the listeners, the loop's own.
OTHER_DESCRIPTORS = 512
# A client's connection, and one to the worker or primary that answers it.
_PER_CONNECTION = 2
_SAID_AGAIN_S = 60.0


class Place(Enum):
    """Where a new connection is let in."""

    OPEN = "within the bound"
    RESERVE = "beyond it: only Chimera's own pages are answered"


class Standing(Enum):
    """What a connection is about."""

    IDLE = "no request has begun, and nothing is left of the last answer"
    BEGUN = "a request has begun, or the connection is ending"
    BUSY = "somebody waits for the rest of an answer"


class Member(Waiter, Protocol):
    """What is asked of a connection."""

    @property
    def standing(self) -> Standing:
        """What it is about."""

    def cut(self) -> None:
        """End it at once."""

    def retire(self) -> None:
        """End it with the answer under way; at once if there is none."""


class Connections:
    """The open connections."""

    def __init__(self, bound: int, refused: Callable[[int], None] = lambda _: None) -> None:
        """`refused` is told the status of what is refused before it is a request, or has no place."""
        self.bound = bound
        self.refused = refused
        self.unread = 0  # bytes that clients have not taken yet
        self._members: dict[Member, Place] = {}
        self._standing: dict[Member, Standing] = {}
        self._idle: dict[Member, None] = {}  # the one that has been idle longest is the first
        self._busy = 0
        self._reserved = 0
        self._quiet = trio.Event()
        self._said_at = float("-inf")
        self.patience = Patience()  # wakes those that wait for a client's next request

    def __len__(self) -> int:
        return len(self._members)

    def place(self, now: float, *, own: bool) -> Place | None:
        """Return where one more connection may come in, None for nowhere; an idle one may be cut for it.

        `own`: it comes from this machine. `now` is trio's clock, for the log line that the bound is reached.
        """
        if len(self._members) - self._reserved < self.bound or self._make_room(Place.OPEN):
            return Place.OPEN
        if now - self._said_at >= _SAID_AGAIN_S:
            self._said_at = now
            log.warning("as many connections as there may be, and none is idle", connections=self.bound,
                        hint="raise MAX_CONNECTIONS, or ask who holds them")  # fmt: skip
        if self._reserved < (RESERVE if own else RESERVE // 2) or self._make_room(Place.RESERVE):
            return Place.RESERVE
        return None

    def _make_room(self, place: Place) -> bool:
        oldest = next((member for member in self._idle if self._members[member] is place), None)
        if oldest is None:
            return False
        self.left(oldest)
        oldest.cut()
        return True

    def joined(self, member: Member, place: Place) -> None:
        """A connection was let in."""
        self._members[member], self._standing[member] = place, Standing.BEGUN
        self.patience.join(member)
        self._reserved += place is Place.RESERVE
        self.changed(member)

    def left(self, member: Member) -> None:
        """A connection has ended. May be told twice."""
        self.patience.leave(member)
        place = self._members.pop(member, None)
        self._reserved -= place is Place.RESERVE
        self._ends(member, self._standing.pop(member, None))

    def changed(self, member: Member) -> None:
        """A connection may have become idle or busy, or ceased to be."""
        was = self._standing.get(member)
        if was is None or (standing := member.standing) is was:
            return
        self._standing[member] = standing
        self._ends(member, was)
        if standing is Standing.IDLE:
            self._idle[member] = None
        elif standing is Standing.BUSY:
            self._busy += 1

    def _ends(self, member: Member, was: Standing | None) -> None:
        """What a connection was about is over."""
        if was is Standing.IDLE:
            del self._idle[member]
        elif was is Standing.BUSY:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()
                self._quiet = trio.Event()

    async def wait_quiet(self) -> None:
        """Return when no connection is busy. Nothing is waited for whose request is not complete."""
        while self._busy:
            await self._quiet.wait()

    def retire(self) -> None:
        """Let no connection have another request."""
        for member in list(self._members):
            member.retire()

    def cut(self) -> None:
        """End every connection at once."""
        for member in list(self._members):
            member.cut()


def bound_by_descriptors(wanted: int, soft: int, hard: int) -> tuple[int, int]:
    """Return how many connections there may be, and the limit of descriptors that they need.

    `soft` and `hard` are RLIMIT_NOFILE's (setrlimit(2)), -1 for no limit.
    """
    needed = _PER_CONNECTION * (wanted + RESERVE) + OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, soft
    reached = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    return max(1, min(wanted, (reached - OTHER_DESCRIPTORS) // _PER_CONNECTION - RESERVE)), reached


def fit_descriptors(wanted: int) -> int:
    """Raise this process's limit of descriptors to what `wanted` connections need; return how many there may be.

    Not higher than needed: its children inherit it, and some programs walk through all of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound, reached = bound_by_descriptors(wanted, soft, hard)
    if reached != soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reached, hard))
    if bound < wanted:
        log.warning("fewer connections than MAX_CONNECTIONS says: the limit of open files is too low",
                    connections=bound, wanted=wanted, open_files=reached,
                    hint="raise the hard limit (ulimit -Hn, or LimitNOFILE in systemd)")  # fmt: skip
    return bound

"""A request's body as it comes from its client, whichever lane it takes: how much of it, how slowly, how long."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import Protocol

import trio

from gateway.errors import BodyTooLarge, BodyTooSlow, QueueFull
from gateway.request import Reply

# A body must bring so much in each so many seconds in which it is waited for: a slow line does, a sender of one byte a
# second does not. It holds no slot meanwhile, but a connection and memory.
PROGRESS_BYTES = 1024
PROGRESS_S = 30.0
# What is still read of a body that is refused, so that the client hears the refusal before its connection is cut.
DISCARD_BYTES = 1024**3
DISCARD_TIMEOUT_S = 10.0


class LaneReply(Reply, Protocol):
    """An answer of a lane, as it is counted; `ended`: its end is being sent, the client may leave in peace."""

    ended: bool
    status: int
    sent_bytes: int
    begun_at: float | None


class Body(ABC):
    """A request's body as it comes, and the news that the client has left. Each lane has its own way to both."""

    def __init__(self, ahead: tuple[bytes, bool] | None = None) -> None:
        """`ahead`: what came with the head already, and whether there is more to come."""
        self._ahead = ahead
        self.complete = False  # whether all of it has been read
        self.received_bytes = 0
        self.completed_at: float | None = None
        self._waited_s = 0.0  # for the client, since it last brought PROGRESS_BYTES
        self._brought = 0
        self.too_slow = False

    @abstractmethod
    async def receive(self) -> tuple[bytes, bool]:
        """Return what comes next, and whether there is more to come. Raises ClientGone."""

    @abstractmethod
    async def while_there(self, reply: "LaneReply", doing: Awaitable[None]) -> None:
        """Do something, or leave off when the client leaves. Raises what it raises, and ClientGone."""

    async def _next(self) -> bytes:
        """Return the next part. Raises ClientGone, and BodyTooSlow when too little comes."""
        if self._ahead is not None:
            (part, more), self._ahead = self._ahead, None
            self._take(part, more=more)
            return part
        since = trio.current_time()
        with trio.move_on_at(since + PROGRESS_S - self._waited_s) as patience:
            part, more = await self.receive()
        if patience.cancelled_caught:
            self.too_slow = True
            raise BodyTooSlow
        self._take(part, more=more)
        self._waited_s += trio.current_time() - since
        self._brought += len(part)
        if self._brought >= PROGRESS_BYTES:
            self._waited_s, self._brought = 0.0, 0
        return part

    def _take(self, part: bytes, *, more: bool) -> None:
        self.received_bytes += len(part)
        if not more:
            self.completed_at = trio.current_time()
            self.complete = True

    async def read(self, declared: bytes | None, max_body_bytes: int, room: "Room") -> bytes:
        """Return the whole body; while it is being read it takes of `room`.

        Raises BodyTooLarge, at once where the length was declared, QueueFull where there is no more room, BodyTooSlow
        and ClientGone.
        """
        if declared is not None and int(declared) > max_body_bytes:
            raise BodyTooLarge(max_body_bytes)
        parts: list[bytes] = []
        length = 0
        try:
            while not self.complete:
                parts.append(await self._next())
                length += len(parts[-1])
                room.bytes += len(parts[-1])
                if length > max_body_bytes:
                    raise BodyTooLarge(max_body_bytes)
                if room.bytes > room.most_bytes:
                    raise QueueFull
            return b"".join(parts)
        finally:
            room.bytes -= length

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body part by part; nothing is held. Raises BodyTooSlow and ClientGone."""
        while not self.complete:
            if part := await self._next():
                yield part

    async def discard(self) -> None:
        """Read what is left of a refused body, within bounds; nothing of one that is too slow. Raises ClientGone."""
        left = 0 if self.too_slow else DISCARD_BYTES
        with trio.move_on_after(DISCARD_TIMEOUT_S):
            try:
                while not self.complete and left > 0:
                    left -= len(await self._next())
            except BodyTooSlow:
                return


@dataclass(slots=True)
class Room:
    """What the bodies that are being read take together, and may take: before a ticket there is no other bound."""

    most_bytes: int
    bytes: int = 0

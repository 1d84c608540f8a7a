"""Who hears that a client has left while its answer is under way: one task for all clients.

A task of its own for each request, waiting for its connection to become readable, would cost as much as all else that
is done for a short request. Here each connection is in one epoll set (epoll(7)) that asks for nothing but the end of
the client's side, and a request costs two assignments.

A client that has sent its request and closes only its sending half has left too, as for Ollama itself (Go's net/http
ends a request's context at that) and for Hypercorn: whoever is not there to be told can look just like it.
"""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.readiness import Readiness

# A peer's FIN, or its reset; a hang-up and an error are told unasked (epoll_ctl(2)). Each is told once: the edge.
_LEFT = select.EPOLLRDHUP | select.EPOLLET


class Client:
    """The client of one connection; `gone` once it has left."""

    __slots__ = ("_tell", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._tell: Callable[[], None] | None = None

    def tell(self, left: Callable[[], None] | None) -> None:
        """Have `left` called when the client leaves, now if it has; None: nobody wants to know any more.

        It is called from another task, and must not block.
        """
        self._tell = left
        if self.gone and left is not None:
            left()

    def leaves(self, _now: float) -> None:
        """It has left."""
        self.gone = True
        if self._tell is not None:
            self._tell()


class Leaving:
    """The connections whose clients are watched."""

    def __init__(self) -> None:
        self._readiness = Readiness()

    @contextmanager
    def watched(self, descriptor: int) -> Iterator[Client]:
        """Watch the client of a connected socket for the block. The socket may be closed meanwhile."""
        client = Client()
        try:
            self._readiness.join(descriptor, _LEFT, client.leaves)
        except OSError:  # it is closed already: whoever closed it says so to those concerned
            pass
        try:
            yield client
        finally:
            self._readiness.leave(descriptor, client.leaves)

    async def run(self) -> None:
        """Tell those whose clients leave. Cancellation: nobody hears of it any more."""
        await self._readiness.run()

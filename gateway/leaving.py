"""Who hears that a client has left while its answer is under way: one task for all clients.

A task of its own for each request, waiting for its connection to become readable, would cost as much as all else that
is done for a short request. Here a request costs two calls of the kernel: its connection is put into an epoll set
(epoll(7)) that asks for nothing but the end of the client's side, and taken out again.

A client that has sent its request and closes only its sending half has left too, as for Ollama itself (Go's net/http
ends a request's context at that) and for Hypercorn: whoever is not there to be told can look just like it.
"""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

# A peer's FIN, or its reset; a hang-up and an error are told unasked (epoll_ctl(2)). Once: then it is taken out.
_LEFT = select.EPOLLRDHUP | select.EPOLLONESHOT


class Leaving:
    """The connections whose clients wait for an answer."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}

    @contextmanager
    def watched(self, descriptor: int, left: Callable[[], None]) -> Iterator[None]:
        """Have `left` called, once at most, if the client of a connected socket leaves within the block.

        The socket may be closed meanwhile. `left` is called from another task, and must not block.
        """
        self._told[descriptor] = left
        try:
            self._epoll.register(descriptor, _LEFT)
        except OSError:  # it is closed already: whoever closed it says so to those concerned
            pass
        try:
            yield
        finally:
            # a descriptor that was closed may be another connection's by now: that one is not to be taken out
            if self._told.get(descriptor) is left:
                del self._told[descriptor]
                try:
                    self._epoll.unregister(descriptor)
                except OSError:
                    pass  # closing took it out

    async def run(self) -> None:
        """Tell those whose clients leave. Cancellation: nobody hears of it any more."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0):
                    if left := self._told.get(descriptor):
                        left()
        finally:
            self._epoll.close()

"""One client's connection, between its socket and Hypercorn: checked and timed as it comes, not waited for as it goes.

A request is handed on only when its head is complete and understood (`framing`); one that is not taken is answered
here, and ends the connection. What is written goes through `outgoing`. With TLS (`tls`) all of that holds for what is
under it, and the handshake has the time that a client has for its first request.
"""

import email.utils
import math
import socket
from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from gateway.connections import Connections, Place, Standing
from gateway.errors import Told
from gateway.framing import At, Framing
from gateway.head import HEAD_BYTES, Head, Refused
from gateway.outgoing import Outgoing
from gateway.tls import NotTls, Tls
from gateway.wire import raw_answer, with_phrase

log = structlog.get_logger("gateway")

# From the beginning of a connection until its first byte, and from the first byte of a head until its last.
HEAD_TIMEOUT_S = 30.0
# The same in the reserve, where others wait for the place.
RESERVE_TIMEOUT_S = 5.0
# Between two requests.
KEEP_ALIVE_S = 75.0
# What a client still sends after its refusal is read for so long: a connection closed with bytes unread is reset, and
# the refusal lost with it (RFC 9112, 9.6).
LINGER_S = 2.0
_READ_BYTES = 64 * 1024


class Call(Protocol):
    """One request and its answer, as far as the connection is concerned."""

    @property
    def begun(self) -> bool:
        """Whether the answer has."""

    @property
    def pending(self) -> bool:
        """Whether the client may expect more of an answer: its request is complete, or the answer has begun."""


class GuardedStream(trio.abc.HalfCloseableStream):
    """A client's connection. Hypercorn is what reads and writes it."""

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        place: Place,
        nursery: trio.Nursery,
        stall_timeout_s: float,
        tls: Tls | None = None,
    ) -> None:
        """What goes on beside Hypercorn's tasks, sending what is unread and the end, runs in `nursery`.

        `tls`: what the client is to speak TLS with; None: nothing is encrypted.
        """
        self.socket = trio.socket.from_stdlib_socket(sock)  # Hypercorn asks it for both addresses
        self._sock = sock
        self.due = math.inf  # until when the next request is waited for, while it is (gateway.patience)
        self.descriptor = sock.fileno()
        self.place = place
        self.stall_timeout_s = stall_timeout_s
        self.calls: set[Call] = set()
        self.ended = trio.Event()
        self.head_of: int | None = None  # the status of the answer whose head is sent next
        self.on_cut: Callable[[], None] | None = None  # who hears at once that the connection is cut
        self.express = False  # whether the express lane answers here
        self.retiring = False  # whether it ends with the answer under way
        # Around Hypercorn's part: it would go on with a connection that is over until its idle time is.
        self.serving = trio.CancelScope()
        self._no_more = False  # will come from the client
        self._connections = connections
        self._nursery = nursery
        self._outgoing = Outgoing(sock, connections, nursery, stall_timeout_s, self.changed)
        self._tls = tls
        self._framing = Framing()
        self._head_timeout_s = HEAD_TIMEOUT_S if place is Place.OPEN else RESERVE_TIMEOUT_S
        self._head_begun = False
        self._deadline = trio.current_time() + self._head_timeout_s
        self._reading = trio.CancelScope()
        self._closing = False
        self._linger = False
        self._put_back = b""
        self._sent = trio.Event()  # set, and made anew, whenever something is given to be sent
        connections.joined(self, place)

    @property
    def secure(self) -> bool:
        """Whether the client speaks TLS."""
        return self._tls is not None

    # -- what Connections asks -----------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """What the connection is about."""
        at = self._framing.at
        if at is At.ANSWER or self._outgoing.unread or (self.calls and any(call.pending for call in self.calls)):
            return Standing.BUSY
        begun = self.calls or at is At.BODY or (at is At.HEAD and self._framing.ahead)
        return Standing.BEGUN if begun or self._closing or self._outgoing.broken else Standing.IDLE

    def changed(self) -> None:
        """One of the calls, or what is unread, has changed."""
        self._let_hypercorn_go()
        if self._outgoing.broken and not self.ended.is_set():
            self.cut()
        self._connections.changed(self)

    def cut(self) -> None:
        """Close the connection at once, whatever is under way. Whoever waits on it is woken. May be called twice."""
        self.ended.set()
        self._outgoing.end("the connection is closed")
        self.socket.close()
        self._reading.cancel()
        self._sent.set()
        if self.on_cut is not None:
            self.on_cut()
        self._let_hypercorn_go()

    def retire(self) -> None:
        """End the connection with the answer under way; now if there is none. Hypercorn ends its own by itself."""
        self.retiring = True
        if self.express and self._framing.at is At.HEAD and not self.calls:
            self._end()

    def _let_hypercorn_go(self) -> None:
        over = self._no_more or self._closing or self.ended.is_set()
        if over and not self.calls:
            self.serving.cancel()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what may be handed on of what has come, b"" when the client has left or been idle too long.

        BrokenResourceError: the request was refused, and answered here, or the connection broke. ClosedResourceError:
        it is being closed. Cancellation loses nothing.
        """
        if self._put_back:
            again, self._put_back = self._put_back, b""
            return again
        try:
            while True:
                data = await self._receive(max_bytes or _READ_BYTES)
                if data == b"":
                    return self._over()
                handed_on = self._framing.feed(data or b"")
                self._choose_deadline()
                if handed_on:
                    return handed_on
                if data is None and trio.current_time() >= self._deadline:
                    if not self._head_begun:
                        return self._over()
                    raise Refused(408, f"the head of the request was not complete within {self._head_timeout_s:g} s")
        except Refused as refused:
            self._refuse(refused)
            raise trio.BrokenResourceError("the request was refused") from refused
        except trio.BrokenResourceError:
            self._over()
            raise

    @property
    def head(self) -> Head | None:
        """The head of the last request that has begun; None before the first, and for HTTP/2."""
        return self._framing.head

    @property
    def in_body(self) -> bool:
        """Whether more of the request's body is to come."""
        return self._framing.at is At.BODY

    def put_back(self, data: bytes) -> None:
        """Have `receive_some` give these bytes again."""
        self._put_back = data

    def _over(self) -> bytes:
        self._no_more = True
        self.changed()
        return b""

    async def _receive(self, max_bytes: int) -> bytes | None:
        """Return what has come, b"" for the end, None when it is time to look up."""
        self._check_open()
        if self._tls is not None and self._tls.ended:
            return b""
        if self._framing.at is At.HEAD and self._framing.ahead and not self._head_begun:
            return None  # it came ahead of the last answer
        data: bytes | None = None
        try:
            if self.express and not self._head_begun:
                data = await self._receive_patiently(max_bytes)
            else:
                with trio.CancelScope(deadline=self._deadline) as self._reading:
                    if self._framing.ahead > HEAD_BYTES:
                        await trio.sleep_forever()  # enough of the requests after this one is here
                    await trio.lowlevel.wait_readable(self._sock)
                    data = self._sock.recv(max_bytes)
        except BlockingIOError:
            pass
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._check_open()
        return self._decrypted(self._tls, data) if data and self._tls is not None else data

    async def _receive_patiently(self, max_bytes: int) -> bytes | None:
        """As `_receive`, where nobody but the time has anything to wake this task for: a scope would cost more."""
        self.due = self._deadline
        self._connections.patience.until(self.due)
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            return None  # it is late, or the connection was cut
        finally:
            self.due = math.inf
        return self._sock.recv(max_bytes)

    def _decrypted(self, tls: Tls, data: bytes) -> bytes | None:
        """Return what has come under TLS, as `_receive` does; what TLS itself has to say is sent."""
        try:
            plain = tls.decrypt(data)
        except NotTls:
            self._tls = None  # it is answered in what it speaks
            raise Refused(400, "this port speaks HTTPS, not HTTP: write https:// in the address") from None
        except trio.BrokenResourceError as error:
            log.debug("a client's TLS ends", cause=str(error))
            self._linger = True  # else the alert that says so is lost
            raise
        finally:
            if own := tls.to_send():
                self._outgoing.put(own)
        return plain or (b"" if tls.ended else None)

    def give_up(self) -> None:
        """Wait no more for a request (gateway.patience)."""
        if self._outgoing.unread:  # it is not the client's turn yet
            self.due = self._deadline = trio.current_time() + KEEP_ALIVE_S
        else:
            trio.lowlevel.notify_closing(self._sock)

    def _check_open(self) -> None:
        if self._closing or self.ended.is_set():
            raise trio.ClosedResourceError("the connection is being closed")

    def _choose_deadline(self) -> None:
        """Choose by when the next must come, now that something has."""
        begun = self._framing.at is At.HEAD and self._framing.ahead > 0
        if self._framing.at is not At.HEAD:
            self._deadline = float("inf")  # a body's progress is its reader's to watch, HTTP/2's is Hypercorn's
        elif begun and not self._head_begun:
            self._deadline = trio.current_time() + self._head_timeout_s
        self._head_begun = begun
        self._connections.changed(self)

    def answered(self) -> bool:
        """An answer is complete: the next request may come, or has come ahead. False: not all of this one has."""
        if self._framing.at is not At.ANSWER:
            return False
        self._framing.answered()
        self._deadline = trio.current_time() + KEEP_ALIVE_S
        if not self.express:  # Hypercorn reads on while it answers
            self._reading.deadline = self._deadline
            if self._framing.ahead:
                self._reading.cancel()
        return True

    def refused(self, status: int) -> None:
        """Count what is refused here, before anything of it was done."""
        self._connections.refused(status)

    def _refuse(self, refused: Refused) -> None:
        self.refused(refused.status)
        log.debug("request refused", status=refused.status, cause=refused.sentence)
        if any(call.begun for call in self.calls):
            self.cut()  # its answer is on its way already: that it ends here must be seen
            return
        said = Told(refused.status, refused.sentence)
        try:
            answer = raw_answer(said, email.utils.formatdate(usegmt=True), refused.target, refused.method)
            self._outgoing.put(answer if self._tls is None else self._tls.encrypt(answer))
        except trio.BrokenResourceError:
            return  # the client has left, and is told nothing
        self._linger = True
        self._end()

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, data: bytes | bytearray | memoryview) -> bool:
        """Send what the kernel takes, keep the rest; say whether the writer should wait (`wait_room`).

        Raises BrokenResourceError when the connection broke, now or since the last call, ClosedResourceError when it
        is being closed.
        """
        if self._closing:
            raise trio.ClosedResourceError("the connection is being closed")
        if self.head_of is not None:
            data, self.head_of = with_phrase(data, self.head_of), None
        must_wait = self._outgoing.put(data if self._tls is None else self._tls.encrypt(data))
        if self._framing.at is At.OTHER:
            self._sent.set()
            self._sent = trio.Event()
        return must_wait

    async def wait_room(self) -> None:
        """Wait until the client has read enough. Raises BrokenResourceError, among others when it reads nothing."""
        await self._outgoing.wait_room()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what the client does not take at once is kept, and sent as it reads.

        Returns without a checkpoint when the kernel takes everything, or the rest is little enough to be kept; else
        waits. Raises BrokenResourceError when the connection broke, now or since the last call, or the client took
        nothing for STALL_TIMEOUT_S. Cancellation takes back nothing: all of `data` is still on its way.
        """
        if self.put(data):
            await self._outgoing.wait_room()

    async def wait_sent(self) -> None:
        """Return when the next of HTTP/2's frames has been given to be sent, or the connection has ended."""
        await self._sent.wait()

    async def wait_send_all_might_not_block(self) -> None:
        """As trio.abc.SendStream has it."""
        await trio.lowlevel.checkpoint()
        await self._outgoing.wait_room()

    # -- the end -------------------------------------------------------------------------------------------------------

    async def send_eof(self) -> None:
        """Do nothing: `aclose`, which always follows, says the end when what is unread has been sent."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Take and send nothing more. The connection closes beside us when what is unread has been sent: see `ended`.

        That takes no longer than STALL_TIMEOUT_S without progress, and LINGER_S.
        """
        self._end()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        if self._closing or self.ended.is_set():
            return
        self._closing = True
        self._linger = self._linger or self._framing.at is At.BODY
        self._reading.cancel()
        if self._tls is not None and (last := self._tls.close()):
            try:
                self._outgoing.put(last)
            except trio.BrokenResourceError:
                pass  # it has left, and is told nothing
        if self._outgoing.unread or self._linger:
            self._nursery.start_soon(self._finish)
            self.changed()
            self._let_hypercorn_go()
        else:
            self.cut()

    async def _finish(self) -> None:
        try:
            await self._outgoing.wait_read()
            self.socket.shutdown(socket.SHUT_WR)
            if self._linger:
                with trio.move_on_after(LINGER_S):
                    while await self.socket.recv(_READ_BYTES):
                        continue
        except (OSError, trio.ClosedResourceError):
            pass  # the client has closed it, or it was cut
        finally:
            self.cut()

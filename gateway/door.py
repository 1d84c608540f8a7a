"""The gateway's listeners and connections: accept, hand to Hypercorn, and go down in order.

Chimera accepts for itself instead of leaving that to Hypercorn, for two things that Hypercorn cannot do: a send
to a client that does not read ends after STALL_TIMEOUT_S (Hypercorn sends under a cancel shield, with no
deadline), and a shutdown that waits for nobody can cut every connection.
"""

import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from gateway.asgi import App, Message, Receive, Send

log = structlog.get_logger("gateway")

BACKLOG = 1024
KEEP_ALIVE_S = 75.0
HEAD_BYTES = 64 * 1024
# How long it may take to end an answer and make the connection ready for its next request; then it is closed.
END_TIMEOUT_S = 5.0
# Between two tries to accept while there are no file descriptors left.
NO_DESCRIPTORS_PAUSE_S = 0.1
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class PortTaken(Exception):
    """The gateway's address cannot be listened on; the text says why."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets listening on every address of `host`. Raises PortTaken.

    Done before anything else is started: a taken port must cost nothing. An address that the machine does not have
    is passed over while there is another: `localhost` often names ::1 where IPv6 is switched off.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                sockets.append(_listening(socket.AddressFamily(family), kind, protocol, address))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                absent = error
        if not sockets and absent:
            raise absent
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise PortTaken(error.strerror or str(error)) from error
    return sockets


def _listening(family: socket.AddressFamily, kind: int, protocol: int, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class GuardedStream(trio.abc.HalfCloseableStream):
    """A client's connection on which no send lasts for ever."""

    def __init__(self, sock: trio.socket.SocketType, stall_timeout_s: float) -> None:
        self.socket = sock  # Hypercorn asks it for both addresses
        self._stream = trio.SocketStream(sock)
        self._stall_timeout_s = stall_timeout_s

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or fail with BrokenResourceError when the client takes nothing for STALL_TIMEOUT_S."""
        with trio.CancelScope(deadline=trio.current_time() + self._stall_timeout_s) as patience:
            try:
                await self._stream.send_all(data)
            except trio.BusyResourceError as error:
                # Hypercorn closes a connection whose client breaks the protocol while its answer is being sent
                raise trio.BrokenResourceError("the connection is being closed") from error
        if patience.cancelled_caught:
            log.warning("client does not read; its connection is cut", after_s=self._stall_timeout_s)
            self.socket.close()
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        """As trio.abc.SendStream has it."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As trio.abc.ReceiveStream has it."""
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """As trio.abc.HalfCloseableStream has it."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@dataclass(slots=True)
class Door:
    """The open connections, and the way to end them. Made by `run_gateway`."""

    sockets: list[socket.socket]
    connections: set[GuardedStream]
    context: WorkerContext
    accepting: trio.CancelScope
    empty: trio.Event

    async def wait_empty(self) -> None:
        """Return when no connection is open. Only after `close`."""
        if self.connections:
            await self.empty.wait()

    async def close(self) -> None:
        """Accept nothing more. Idle connections end, busy ones when their answer is complete."""
        self.accepting.cancel()
        for sock in self.sockets:
            sock.close()
        await self.context.terminated.set()

    def cut(self) -> None:
        """End every connection at once, whatever it is doing."""
        for connection in list(self.connections):
            connection.socket.close()


async def run_gateway(
    app: App,
    sockets: list[socket.socket],
    *,
    stall_timeout_s: float,
    task_status: trio.TaskStatus[Door] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on listening sockets. The gateway's task; starts with its Door.

    Cancellation cuts every connection: whoever wants answers to end first calls `Door.close` and waits.
    """
    config = _config()
    door = Door(sockets, set(), WorkerContext(None), trio.CancelScope(), trio.Event())

    async def serve(stream: GuardedStream) -> None:
        door.connections.add(stream)
        try:
            wrapped = ASGIWrapper(cast("Any", _with_ends(app, stream)))
            server = TCPServer(wrapped, config, door.context, cast("Any", ConnectionState({})), cast("Any", stream))
            await server.run()
        except Exception as error:
            # One client's connection is never a reason to end the others; what broke is for the log.
            _say(error)
        finally:
            door.connections.discard(stream)
            if not door.connections:
                door.empty.set()
                door.empty = trio.Event()
            stream.socket.close()

    async with trio.open_nursery() as nursery:
        try:
            async with trio.open_nursery() as listening:
                door.accepting = listening.cancel_scope
                for sock in sockets:
                    listening.start_soon(_accept, trio.socket.from_stdlib_socket(sock), stall_timeout_s,
                                         lambda stream: nursery.start_soon(serve, stream))  # fmt: skip
                task_status.started(door)
            await trio.sleep_forever()
        finally:
            for sock in sockets:
                sock.close()
            door.cut()


def _with_ends(app: App, stream: GuardedStream) -> App:
    """Wrap a connection's application so that every answer has one of two ends: whole, or visibly cut.

    While it ends an answer Hypercorn tells the application that the client is gone, and only then closes the
    connection or waits for its next request. An application that cancels itself at that word, as Quart does, would
    leave the connection open for ever: so the end, once begun, is carried through. And an answer that its
    application left incomplete is cut here: over HTTP/2 Hypercorn would leave its stream open.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        begun = whole = False

        async def sent(message: Message) -> None:
            nonlocal begun, whole
            begun = begun or message["type"] == "http.response.start"
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                whole = True
                with trio.move_on_after(END_TIMEOUT_S, shield=True) as ending:
                    await send(message)
                if ending.cancelled_caught:
                    stream.socket.close()
            else:
                await send(message)

        await app(scope, receive, sent)
        if begun and not whole:
            stream.socket.close()

    return wrapped


async def _accept(
    listener: trio.socket.SocketType, stall_timeout_s: float, serve: Callable[[GuardedStream], None]
) -> None:
    while True:
        try:
            sock, _ = await listener.accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                continue  # the client left before it was accepted (accept(2))
            log.error("no connection can be accepted", cause=error.strerror)
            await trio.sleep(NO_DESCRIPTORS_PAUSE_S)
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serve(GuardedStream(sock, stall_timeout_s))


def _config() -> Config:
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 2**62  # no reason to end a client's connection by count
    config.h11_max_incomplete_size = HEAD_BYTES
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def _say(error: Exception) -> None:
    leaves = _leaves(error)
    if all(isinstance(leaf, OSError | trio.BrokenResourceError | trio.ClosedResourceError) for leaf in leaves):
        log.debug("connection broken", cause=repr(leaves[0]))
    else:
        log.error("a connection failed; this is a bug in Chimera", exc_info=error)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]

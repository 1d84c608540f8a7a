"""The gateway's listeners: accept within bounds, hand to Hypercorn, and go down in order.

Chimera accepts for itself instead of leaving that to Hypercorn, for what Hypercorn cannot do: bound the connections,
see what comes before it is parsed (`stream`, `framing`), end a send to a client that does not read (it sends under a
cancel shield, with no deadline), and cut every connection in a shutdown that waits for nobody.
"""

import email.utils
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from gateway.answering import answering
from gateway.asgi import App
from gateway.connections import Connections
from gateway.errors import NO_PLACE
from gateway.express import run_express
from gateway.forwarded import TrustedProxies, is_loopback
from gateway.front import Front
from gateway.head import HEAD_BYTES
from gateway.leaving import Leaving
from gateway.stream import HEAD_TIMEOUT_S, KEEP_ALIVE_S, GuardedStream
from gateway.tls import Tls
from gateway.wire import raw_answer

log = structlog.get_logger("gateway")

BACKLOG = 1024
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


@dataclass(slots=True)
class Door:
    """The open connections, and the way to end them. Made by `run_gateway`."""

    sockets: list[socket.socket]
    connections: Connections
    context: WorkerContext
    accepting: trio.CancelScope

    async def wait_empty(self) -> None:
        """Return when no answer is under way, or unread. Only after `close`.

        A client whose request is not complete, or that has its answer and lingers, is not waited for.
        """
        await self.connections.wait_quiet()

    async def close(self) -> None:
        """Accept nothing more. Idle connections end, busy ones when their answer is complete."""
        self.accepting.cancel()
        for sock in self.sockets:
            _close_listener(sock)
        self.connections.retire()
        await self.context.terminated.set()

    def cut(self) -> None:
        """End every connection at once, whatever it is doing."""
        self.connections.cut()


async def run_gateway(
    app: App,
    sockets: list[socket.socket],
    *,
    express: Front | None = None,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    stall_timeout_s: float,
    max_connections: int,
    refused: Callable[[int], None] = lambda _: None,
    task_status: trio.TaskStatus[Door] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on listening sockets. The gateway's task; starts with its Door.

    `express` answers the requests that the express lane takes; None: all of them go to `app`. `tls` is asked for each
    new connection, what it speaks TLS with; None: it speaks plain HTTP. `refused` is told the status of each request
    that is refused before it is understood, and of each connection that has no place.
    Cancellation cuts every connection: whoever wants answers to end first calls `Door.close` and waits.
    """
    config = _config()
    proxies = express.proxies if express else TrustedProxies()
    leaving = Leaving()
    door = Door(sockets, Connections(max_connections, refused), WorkerContext(None), trio.CancelScope())

    async def serve(stream: GuardedStream) -> None:
        try:
            if express is None or await run_express(stream, express, leaving):
                wrapped = ASGIWrapper(cast("Any", answering(app, stream, lambda: _kept(server))))
                server = TCPServer(wrapped, config, door.context, cast("Any", ConnectionState({})), cast("Any", stream))
                with stream.serving:
                    await server.run()
            await stream.aclose()
            await stream.ended.wait()
        except Exception as error:
            # One client's connection is never a reason to end the others; what broke is for the log.
            _say(error)
        finally:
            stream.cut()
            door.connections.left(stream)

    async with trio.open_nursery() as nursery:

        def admit(sock: socket.socket) -> None:
            peer = _peer(sock)
            if peer is None:
                sock.close()
                return
            context = tls()
            own = is_loopback(peer) and not proxies.trusts(peer)
            if place := door.connections.place(trio.current_time(), own=own):
                secured = Tls(context) if context else None
                stream = GuardedStream(sock, door.connections, place, nursery, stall_timeout_s, secured)
                nursery.start_soon(serve, stream)
                return
            refused(NO_PLACE.status)
            log.debug("connection refused", status=NO_PLACE.status, cause=NO_PLACE.sentence)
            if context:
                sock.close()  # nothing can be said before a handshake
            else:
                _turn_away(sock)

        try:
            async with trio.open_nursery() as listening:
                door.accepting = listening.cancel_scope
                for sock in sockets:
                    sock.setblocking(False)
                    listening.start_soon(_accept, sock, admit)
                nursery.start_soon(leaving.run)
                nursery.start_soon(door.connections.patience.run)
                task_status.started(door)
            await trio.sleep_forever()
        finally:
            for sock in sockets:
                _close_listener(sock)
            door.cut()


def _kept(server: TCPServer) -> int:
    """Return how many bytes of answers Hypercorn keeps until HTTP/2's windows let it send them."""
    protocol = server.protocol.protocol
    return sum(len(kept.buffer) for kept in protocol.stream_buffers.values()) if isinstance(protocol, H2Protocol) else 0


async def _accept(listener: socket.socket, admit: Callable[[socket.socket], None]) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                log.error("no connection can be accepted", cause=error.strerror)
                await trio.sleep(NO_DESCRIPTORS_PAUSE_S)
            continue  # the client left before it was accepted (accept(2)), or another listener took it
        admit(sock)


def _close_listener(sock: socket.socket) -> None:
    if sock.fileno() != -1:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def _peer(sock: socket.socket) -> str | None:
    """Return who has connected, all set for answers; None when it has left already."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return str(sock.getpeername()[0])
    except OSError:
        return None


def _turn_away(sock: socket.socket) -> None:
    """Say that there is no place, as well as one can without holding the connection."""
    with sock:
        try:
            sock.setblocking(False)
            sock.send(raw_answer(NO_PLACE, email.utils.formatdate(usegmt=True)))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(HEAD_BYTES)  # bytes that nobody read would reset the connection, and the answer with it
        except OSError:
            pass  # it has left, or sent nothing


def _config() -> Config:
    config = Config()
    # The stream closes what is idle, but does not look into HTTP/2. Hypercorn counts a head that is under way as idle.
    config.keep_alive_timeout = KEEP_ALIVE_S + HEAD_TIMEOUT_S
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

"""One request on its way through a whole gateway, to be cut off anywhere; and what may be left of it afterwards."""

import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import ClassVar
from weakref import WeakSet

import h11
import psutil
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import admission as admission_module
from gateway import exchange as exchange_module
from gateway import link as link_module
from gateway import upstream as upstream_module
from gateway.admission import Waiting
from gateway.asgi import INFORMATIONAL, AsgiLane
from gateway.connections import Connections, Place
from gateway.errors import GatewayError, dialect_of
from gateway.express import run_express
from gateway.front import Front
from gateway.keyring import Keyring
from gateway.keys import Key, digest_of
from gateway.leaving import Leaving
from gateway.limits import Limits
from gateway.link import Link
from gateway.ollama import Ask, Kind
from gateway.patience import Patience
from gateway.pulls import Pulls
from gateway.readiness import Readiness
from gateway.request import Request, answer_error
from gateway.stream import GuardedStream
from tests.fakes.asgi import AsgiClient, Message
from tests.fakes.cut import Cut, Visit
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.reply import RecordingReply
from tests.fakes.worker_server import Behaviour, WorkerServer, says

MAX_BODY_BYTES = 64 * 1024**2
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
# Nothing here takes long; a test that waits in vain ends.
PATIENCE_S = 30.0


Connect = Callable[[int, Patience, Readiness], Awaitable[Link]]


class Way(Enum):
    """How the request goes, and how it is cut off."""

    EXCHANGE = "cancelled in the exchange"
    FRONT = "cancelled in the front"
    LEAVE = "client leaves"
    EXPRESS = "cancelled in the express lane"
    EXPRESS_LEAVE = "client leaves the express lane"


class _Ticket(Waiting, eq=False, weakref=True):
    """A ticket that is known as long as anybody holds it."""

    held: ClassVar[WeakSet["_Ticket"]] = WeakSet()

    def __post_init__(self) -> None:
        self.held.add(self)


async def _inform(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await trio.lowlevel.checkpoint()  # as sending is one


async def _no_pages(scope: Message, receive: object, send: object) -> None:
    raise AssertionError(f"a page was asked for: {scope['path']}")


SECRET = "chimera-" + "s" * 43


def a_keyring(secret: str) -> Keyring:
    """A keyring that asks for keys, and has one that may do everything."""
    made_at = datetime(2026, 1, 1, tzinfo=UTC)
    key = Key("k1", "stage", secret[:12], Limits(concurrency=100), 9, True, made_at, digest_of(secret.encode()))
    return Keyring(required=True, keys=[key])


class Stage:
    """A gateway with its workers, and the request that a scenario gives it: an ordinary chat, until it says otherwise.

    `status` is what the client gets of a request that is not cut off, `whole` that its answer is complete. `faults`:
    how many requests may count against a worker's breaker, for what the worker did. `goes_on`: the workers do not stop
    sending when the request is cut off, for somebody else waits too. `slow_reader`: the kernel takes little for the
    client of the express lane.
    """

    def __init__(self, nursery: trio.Nursery, patch: pytest.MonkeyPatch, closing: ExitStack) -> None:
        self.hall = Hall(nursery)
        self.nursery = nursery
        self.patch = patch
        self.closing = closing
        self.servers: list[WorkerServer] = []
        self.method, self.target, self.body = "POST", "/api/chat", CHAT
        self.headers = [("content-type", "application/json"), ("authorization", f"Bearer {SECRET}")]
        self.keyring = a_keyring(SECRET)
        self.chunked = False
        self.max_body_bytes = MAX_BODY_BYTES
        self.status, self.whole = 200, True
        self.faults: dict[str, int] = {}
        self.goes_on = False
        self.slow_reader = False
        self.leaving = Leaving()
        self.noted: Counter[tuple[str, str]] = Counter()  # by worker and request
        self._others: list[Callable[[], Awaitable[object]]] = []
        self._others_ended: list[trio.Event] = []
        self.pulls: Pulls
        self.front: AsgiLane
        patch.setattr(exchange_module, "LOSS_NOTICED_S", 0.001)
        patch.setattr(admission_module, "Waiting", _Ticket)

    async def worker(self, worker_id: str, *script: Behaviour, slots: int = 1) -> WorkerServer:
        """A worker in service."""
        server = await self.hall.worker(worker_id, *script, slots=slots)
        self.servers.append(server)
        return server

    async def primary(self, *script: Behaviour, refuses_early: bool = False) -> WorkerServer:
        """The primary."""
        server = await self.hall.primary(*script, refuses_early=refuses_early)
        self.servers.append(server)
        return server

    def dead_worker(self, worker_id: str) -> None:
        """A worker in service whose port nobody listens on."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        self._in_service(worker_id, port)

    def deaf_worker(self, worker_id: str) -> None:
        """A worker in service that accepts no connection, and has no more room for those that wait to be."""
        listener = self.closing.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            before = self.closing.enter_context(socket.socket())
            before.setblocking(False)
            before.connect_ex(listener.getsockname())
        deaf = listener.getsockname()[1]
        self._in_service(worker_id, deaf)

        async def connect(
            port: int, patience: Patience, readiness: Readiness, patient: Connect = link_module.connect
        ) -> Link:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.005 if port == deaf else PATIENCE_S)
                return await patient(port, patience, readiness)

        self.patch.setattr(upstream_module, "connect", connect)

    def narrow(self) -> None:
        """Let connections to workers take a few kilobytes at once: a body of some size waits for its reader."""

        async def connect(
            port: int, patience: Patience, readiness: Readiness, wide: Connect = link_module.connect
        ) -> Link:
            link = await wide(port, patience, readiness)
            link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
            return link

        self.patch.setattr(upstream_module, "connect", connect)

    def _in_service(self, worker_id: str, port: int) -> None:
        self.hall.admission.worker_ready(worker_id, port=port, slots=1, models=frozenset(), cordoned=False)

    def beside(self, what: Callable[[], Awaitable[object]]) -> None:
        """Have something else go on meanwhile, from before the request; a run is over when it has ended too."""
        self._others.append(what)

    async def open(self) -> None:
        """Open the gateway, when its workers and its primary are there."""
        self.hall.exchange._notes = self
        self.pulls = Pulls(self.hall.exchange)
        front = Front(
            self.hall.exchange, self.pulls, self.hall.metrics, max_body_bytes=self.max_body_bytes, keyring=self.keyring
        )
        self.front = AsgiLane(front, _no_pages)
        await self.nursery.start(self.pulls.run)
        self.nursery.start_soon(self.leaving.run)
        for what in self._others:
            ended = trio.Event()
            self._others_ended.append(ended)
            self.nursery.start_soon(self._carry_out, what, ended)
        await wait_all_tasks_blocked()

    async def _carry_out(self, what: Callable[[], Awaitable[object]], ended: trio.Event) -> None:
        await what()
        ended.set()

    def begins(self, worker_id: str, request_id: str, model: str | None) -> None:
        """The exchange's `WorkerNotes`."""
        self.noted[worker_id, request_id] += 1

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        """The exchange's `WorkerNotes`."""
        self.noted[worker_id, request_id] -= 1

    # -- the request -------------------------------------------------------------------------------------------------

    async def ask(self, way: Way, cut: Cut) -> tuple[int, bool]:
        """Send the request until it is answered or cut off; return the answer's status, and whether it is whole."""
        scope = trio.CancelScope()
        cut.cut = partial(self._cut, scope.cancel)
        trio.lowlevel.add_instrument(cut)
        try:
            with trio.fail_after(PATIENCE_S), scope:
                match way:
                    case Way.EXCHANGE:
                        return await self._through_the_exchange()
                    case Way.FRONT | Way.LEAVE:
                        return await self._through_asgi(way, cut)
                    case Way.EXPRESS | Way.EXPRESS_LEAVE:
                        return await self._through_the_express_lane(way, cut)
            return 0, False
        finally:
            trio.lowlevel.remove_instrument(cut)

    def _cut(self, how: Callable[[], None]) -> None:
        for server in self.servers:
            server.halted = not self.goes_on  # so that nothing ends but by being cut off
        how()

    async def _through_the_exchange(self) -> tuple[int, bool]:
        reply = RecordingReply()
        request = self.request()
        try:
            await self.hall.exchange.infer(request, Ask(Kind.INFERENCE, "m"), self.body, reply)
        except GatewayError as fault:
            await answer_error(request, fault, reply)  # type: ignore[arg-type]
        return reply.status, reply.ended

    async def _through_asgi(self, way: Way, cut: Cut) -> tuple[int, bool]:
        framing = ("transfer-encoding", "chunked") if self.chunked else ("content-length", str(len(self.body)))
        headers = [*self.headers, *([framing] if self.body else [])]
        client = AsgiClient(self.front, self.method, self.target, headers)
        client.scope["extensions"] = {INFORMATIONAL: _inform}
        if way is Way.LEAVE:
            cut.cut = partial(self._cut, client.leave)

        async def send() -> None:
            half = len(self.body) // 2
            for part in (self.body[:half], self.body[half:]):
                client.send_body(part, more=True)
                await wait_all_tasks_blocked()  # the gateway has taken it, and waits for more
            client.send_body(b"")

        self.nursery.start_soon(send)
        await client.run()
        return client.status, client.complete

    async def _through_the_express_lane(self, way: Way, cut: Cut) -> tuple[int, bool]:
        """By sockets, as there is no other way to it. The client reads only when nobody has anything to do."""
        ours, theirs = await self._connected()
        client = trio.socket.from_stdlib_socket(theirs)
        stream = GuardedStream(ours, Connections(1), Place.OPEN, self.nursery, PATIENCE_S)
        if way is Way.EXPRESS_LEAVE:
            cut.cut = partial(self._cut, client.close)
        got, over = bytearray(), trio.Event()
        self.nursery.start_soon(self._speak, client, got, over)
        try:
            assert not await run_express(stream, self.front.front, self.leaving)
            await stream.aclose()
            await stream.ended.wait()
            await over.wait()
        finally:
            stream.cut()
            client.close()
        return _answered(self.method, bytes(got))

    async def _connected(self) -> tuple[socket.socket, socket.socket]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        for sock in (ours, theirs):
            sock.setblocking(False)
        if self.slow_reader:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return ours, theirs

    async def _speak(self, client: trio.socket.SocketType, got: bytearray, over: trio.Event) -> None:
        headers = [*self.headers, ("host", "a"), ("connection", "close"), ("content-length", str(len(self.body)))]
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        half = len(self.body) // 2
        try:
            for part in ("\r\n".join(lines).encode(), self.body[:half], self.body[half:]):
                await client.send(part)
                await wait_all_tasks_blocked()
            while data := await client.recv(65536):
                got += data
                await wait_all_tasks_blocked()
        except (OSError, trio.ClosedResourceError):
            pass  # it has left, or was cut
        finally:
            over.set()

    def request(self) -> Request:
        """The request as the exchange gets it."""
        return Request(self.method, self.target, self.target.encode(), [], dialect_of(self.target), "req-1")

    # -- what is left ------------------------------------------------------------------------------------------------

    async def nothing_is_left(self) -> None:
        """Fail unless the request is gone without a trace, and the gateway as good as before."""
        admission = self.hall.admission
        assert self._others or repr(admission) == NOTHING_LEFT
        with trio.fail_after(PATIENCE_S):
            for ended in self._others_ended:
                await ended.wait()
            assert (repr(admission), admission._tickets, self.pulls._pulls) == (NOTHING_LEFT, set(), {})
            await self._connections_are_closed_or_idle()
            self._nobody_is_blamed()
            assert self.keyring.row("k1")["inflight"] == 0
            assert self.leaving._readiness._told == {}
            assert not any(self.noted.values()), "a worker was told of a request's begin and not of its end"
            assert admission.dispatcher._turns._next == {}, "nobody waits, and somebody is remembered"
            by_life = admission.dispatcher._affinity._by_life
            kept = [one for models in by_life.values() for caches in models.values() for one in caches]
            assert not any(one.busy for one in kept)
            # within this step, trio itself still holds the cancellation and its frames
            await trio.lowlevel.checkpoint()
            gc.collect()
            assert list(_Ticket.held) == [], "somebody still holds its ticket"
            await self._the_next_one_is_answered()

    async def _connections_are_closed_or_idle(self) -> None:
        pool = self.hall.upstream._idle
        cushion = 0.0
        watched = self.hall.upstream._patience._waiters
        while watched or any(server.open != len(pool.get(server.port, ())) for server in self.servers):
            await wait_all_tasks_blocked(cushion)
            cushion = 0.002  # longer than anybody else's here: they go on first

    def _nobody_is_blamed(self) -> None:
        for worker in self.hall.admission.dispatcher.ready():
            assert worker.breaker.failures <= self.faults.get(worker.id, 0), f"{worker.id} is blamed for a client"
        if not self.faults:
            assert (self.hall.silences, self.hall.deaths) == ([], [])
            assert self.hall.metrics._broken.counts == {}

    async def _the_next_one_is_answered(self) -> None:
        self.hall.patience()  # a scenario's own may be too short for a busy machine
        for server in self.servers:
            server.halted, server.script = False, [says(b'{"done":true}')]
        ports = [server.port for server in self.servers]
        for worker in self.hall.admission.ready():
            if worker.port not in ports:
                self.hall.admission.worker_lost(worker.id)
        reply = RecordingReply()
        if self.hall.admission.ready():
            await self.hall.exchange.infer(self.request(), Ask(Kind.INFERENCE, "m"), CHAT, reply)
            assert (reply.status, reply.body, reply.ended) == (200, b'{"done":true}', True)


def _answered(method: str, got: bytes) -> tuple[int, bool]:
    """Read an answer as a client does: its status, and whether it is whole."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("host", "a"), ("connection", "close")]))
    http.send(h11.EndOfMessage())
    http.receive_data(got)
    http.receive_data(b"")
    status = 0
    try:
        while not isinstance(event := http.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if isinstance(event, h11.Response):
                status = event.status_code
    except h11.RemoteProtocolError:
        return status, False
    return status, isinstance(event, h11.EndOfMessage)


Scenario = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A stage for one run; afterwards not one file descriptor more is open than before."""
    before = psutil.Process().num_fds()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as closing:
        async with trio.open_nursery() as nursery:
            made = Stage(nursery, patch, closing)
            yield made
            made.hall.upstream.close()
            nursery.cancel_scope.cancel()
    assert psutil.Process().num_fds() == before


async def carry_out(scenario: Scenario, way: Way, target: Visit | None) -> Cut:
    """Carry a scenario out once, cut off at `target`, and look at what is left."""
    cut = Cut(target)
    async with stage() as made:
        await scenario(made)
        await made.open()
        answered = await made.ask(way, cut)
        if not cut.done:
            assert answered == (made.status, made.whole)
        await made.nothing_is_left()
    return cut

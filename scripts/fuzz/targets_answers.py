"""What a worker may say on its connection: any bytes at all, through the whole exchange to the client.

A real loopback socket says them, then goes on or closes; the client must hear an answer or be told of a fault, and no
lease, no ticket and no connection may be left.
"""

from dataclasses import dataclass, field
from functools import partial

import h11
import trio
from trio.testing import MockClock

from gateway.admission import Admission
from gateway.errors import Dialect, GatewayError
from gateway.exchange import Exchange
from gateway.fleetwide import Fleetwide
from gateway.headers import Headers
from gateway.metrics import Metrics
from gateway.ollama import read_ask
from gateway.request import Request
from gateway.upstream import Upstream

CHAT = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
# Virtual seconds: a wait ends as soon as nothing has happened for QUIET_S real ones.
PATIENCE_S = 5.0
QUIET_S = 0.02
NOTHING_LEFT = "<Admission 0 leases, 0 tickets>"


@dataclass
class Heard:
    """A client that hears everything, and that what it hears could be sent to it: h11 checks as Hypercorn does."""

    direct = None

    started: bool = False
    ended: bool = False
    aborted: bool = False
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    _http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))

    def __post_init__(self) -> None:
        self._http.receive_data(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        while self._http.next_event() is not h11.PAUSED and self._http.their_state is not h11.DONE:
            continue

    async def start(self, status: int, headers: Headers) -> None:
        """As gateway.exchange.Reply has it."""
        assert not self.started
        self._http.send(h11.Response(status_code=status, headers=headers))
        self.started, self.status = True, status

    async def write(self, data: bytes) -> None:
        """As gateway.exchange.Reply has it."""
        assert self.started
        assert not self.ended
        self._http.send(h11.Data(data=data))
        self.body += data

    async def end(self) -> None:
        """As gateway.exchange.Reply has it."""
        assert self.started
        self._http.send(h11.EndOfMessage())
        self.ended = True

    async def abort(self) -> None:
        """As gateway.exchange.Reply has it."""
        self.aborted = True


async def _worker(listener: trio.SocketListener, said: bytes) -> None:
    """Read each connection's first bytes, say what is to be said, and close."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await stream.receive_some(65536)
                await stream.send_all(said)
            except trio.BrokenResourceError:
                pass  # the gateway has heard enough

    await trio.serve_listeners(serve, [listener])


async def _try(said: bytes) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    admission = Admission(4, PATIENCE_S, lambda: 0.5)
    upstream = Upstream(first_byte_timeout_s=PATIENCE_S, stall_timeout_s=PATIENCE_S)
    exchange = Exchange(admission, upstream, Metrics(), primary_port=port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_worker, listener, said)
        nursery.start_soon(upstream.run)
        admission.worker_ready("w1", port=port, slots=1, models=frozenset(), cordoned=False)
        for what in ("infer", "primary", "ps"):
            reply = Heard()
            request = Request("POST", "/api/chat", b"/api/chat", [], Dialect.OLLAMA, "id")
            try:
                with trio.fail_after(4 * PATIENCE_S):
                    if what == "infer":
                        await exchange.infer(request, read_ask("/api/chat", "", CHAT), CHAT, reply)
                    elif what == "primary":
                        await exchange.to_primary(request, CHAT, reply)
                    else:
                        await Fleetwide(exchange).ps(request, reply)
            except GatewayError:
                assert not reply.started, "a fault was raised after the answer had begun"
            else:
                assert reply.ended or reply.aborted, "the answer has no end"
            assert repr(admission) == NOTHING_LEFT, repr(admission)
        upstream.close()
        nursery.cancel_scope.cancel()


def check_answer(said: bytes) -> None:
    """Whatever a worker says, the client gets an answer with an end, or hears of a fault; nothing is left."""
    trio.run(partial(_try, said), clock=MockClock(autojump_threshold=QUIET_S))

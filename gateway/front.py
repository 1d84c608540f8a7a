"""Every request of a forwarded path, from its head to its answer: what both lanes have in common.

A lane brings a `Body` and a `LaneReply`; who answers, whether the key may, how the body is read and what becomes of a
fault is decided here.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from msgspec.structs import replace

from gateway.admission import Notice
from gateway.body import Body, LaneReply, Room
from gateway.book import Book
from gateway.errors import ClientGone, GatewayError, Unsendable
from gateway.exchange import Exchange
from gateway.fleetwide import Fleetwide
from gateway.forwarded import TrustedProxies
from gateway.headers import Headers, framing_of, sendable
from gateway.keyring import Keyring
from gateway.labels import route_label
from gateway.load_options import names_of, without_load_options
from gateway.metrics import Metrics
from gateway.ollama import Answerer, Kind, read_ask
from gateway.pulls import BODY_BYTES, Pulls
from gateway.request import Request, answer_error

Inform = Callable[[int, Headers], Awaitable[None]]


class Front:
    """Answers the requests of Ollama's and OpenAI's paths, whichever lane they come by."""

    def __init__(
        self, exchange: Exchange, pulls: Pulls, metrics: Metrics, *, max_body_bytes: int,
        pin_load_options: bool = False, keyring: Keyring | None = None, book: Book | None = None,
        proxies: TrustedProxies | None = None, page_names: frozenset[bytes] = frozenset(),
    ) -> None:  # fmt: skip
        """`pin_load_options`: options that would load a model anew are taken out of requests (LOAD_OPTIONS).

        `keyring` has the API keys; without one none is asked for. `book` follows each request to its end; without one
        only the metrics hear of it. `proxies` are those whose word about a client counts; the lanes ask them.
        `page_names` are hosts whose requests are not for here (gateway.hosts).
        """
        self._exchange = exchange
        self.pulls = pulls
        self._fleetwide = Fleetwide(exchange)
        self._book = book or Book(metrics)
        self._max_body_bytes = max_body_bytes
        self._reading = Room(max(exchange.admission.dispatcher.queue_bytes, max_body_bytes))
        self._pin_load_options = pin_load_options
        self.page_names = page_names
        self._keyring = keyring or Keyring()
        self.proxies = proxies or TrustedProxies()

    def settle(self, *, max_body_bytes: int, pin_load_options: bool, page_names: frozenset[bytes]) -> None:
        """Let other values of these, and of the dispatcher's QUEUE_BYTES, count from now on."""
        self.page_names = page_names
        self._max_body_bytes, self._pin_load_options = max_body_bytes, pin_load_options
        self._reading.most_bytes = max(self._exchange.admission.dispatcher.queue_bytes, max_body_bytes)

    async def answer(
        self, who: Answerer, request: Request, body: Body, reply: LaneReply, *, checked: bool = True
    ) -> None:
        """Answer one request, whatever becomes of it. Raises ClientGone when there is nobody to tell it.

        `checked`: it is known that HTTP/1.1 can say what is in the request. Cancellation ends the exchange and gives
        its slot back.
        """
        with self._book.following(request, route_label(who, request.path), body, reply):
            await self._carry_out(who, request, body, reply, checked=checked)

    async def _carry_out(self, who: Answerer, request: Request, body: Body, reply: LaneReply, *, checked: bool) -> None:
        try:
            if not checked and not sendable(request.method, request.target, request.headers):
                raise Unsendable
            with self._keyring.admitted(request, who):
                await self._serve(who, request, body, reply)
        except GatewayError as fault:
            request.phases.fault = fault
            if isinstance(fault, ClientGone) or reply.started:
                raise ClientGone from fault
            await answer_error(request, fault, reply)  # type: ignore[arg-type]  # every GatewayError but ClientGone is a Fault

    async def _serve(self, who: Answerer, request: Request, body: Body, reply: LaneReply) -> None:
        declared = request.named.get(b"content-length")
        if who is Answerer.PRIMARY and framing_of(request.headers) and not _is_pull(request, declared):
            async with aclosing(body.stream()) as parts:
                await body.while_there(reply, self._exchange.to_primary(request, parts, reply))
            return
        whole = await body.read(declared, self._max_body_bytes, self._reading)
        await body.while_there(reply, self._inference(who, request, whole, reply))

    async def _inference(self, who: Answerer, request: Request, body: bytes, reply: LaneReply) -> None:
        if who is Answerer.FLEET:
            await self._fleetwide.ps(request, reply)
            return
        if _is_pull(request, str(len(body)).encode()):
            await self.pulls.answer(request, body, reply)
            return
        if who is Answerer.PRIMARY:
            await self._exchange.to_primary(request, body or None, reply)  # HTTP/2 has bodies without framing
            return
        kind = request.named.get(b"content-type", b"").decode("latin1").lower()
        ask = read_ask(request.path, kind, body)
        if ask.load_options and self._pin_load_options:
            request.dropped_options = names_of(ask.load_options)
            ask, body = replace(ask, load_options=""), without_load_options(body)
        request.phases.model = ask.model
        match ask.kind:
            case Kind.HOPELESS:
                await self._exchange.to_primary(request, body, reply)
            case Kind.LOAD | Kind.UNLOAD:
                await self._fleetwide.load(request, ask, body, reply)
            case Kind.INFERENCE:
                await self._exchange.infer(request, ask, body, reply)


def _is_pull(request: Request, length: bytes | None) -> bool:
    """Say whether a request is a pull whose body is worth reading."""
    if request.path != "/api/pull" or request.method != "POST":
        return False
    return length is not None and length.isdigit() and int(length) <= BODY_BYTES


def notice_of(inform: Inform | None, request: Request) -> Notice | None:
    """Return who tells a client that asks for it (X-Chimera-Queue) of its place in the queue, before the answer.

    It is told by 102 (Processing) answers (RFC 2518, 10.1), which a client that does not know them passes over
    (RFC 9110, 15.2), and as not all of them do, only if it asks. `inform` sends one of them, None: it cannot.
    """
    if inform is None or b"x-chimera-queue" not in request.named:
        return None

    async def notice(position: int, estimate_s: float | None) -> None:
        headers = [(b"x-request-id", request.id.encode()), (b"x-chimera-queue-position", str(position).encode())]
        if estimate_s is not None:
            headers.append((b"x-chimera-queue-estimate-s", str(estimate_s).encode()))
        await inform(102, headers)

    return notice

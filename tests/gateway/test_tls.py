"""TLS: the bytes of one connection, and what a client meets on the gateway's port.

That every check, bound and deadline of the plain port holds under TLS too is shown by the other tests of a gateway
that listens: they go through each lane in both ways (`conftest.lane`).
"""

import shutil
import ssl
from itertools import pairwise
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway import door, stream
from gateway.asgi import Message, Receive, Send
from gateway.tls import NotTls, Tls, server_context
from tests.fakes.certificates import NAMES, authority, certified, trusting
from tests.fakes.door import (
    CHAT,
    EXPRESS,
    HYPERCORN,
    OVER_TLS,
    TOO_LONG_S,
    Client,
    Connect,
    Dial,
    House,
    front_of,
    serve,
)  # fmt: skip
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import Conversation, hangs, says, starts

LINE = b'{"response":"a","done":false}\n'
LAST = b'{"response":"","done":true}\n'


@pytest.fixture(params=[EXPRESS + OVER_TLS, HYPERCORN + OVER_TLS])
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- bytes in, bytes out -----------------------------------------------------------------------------------------------


class Peer:
    """A client's end, without a socket."""

    def __init__(self) -> None:
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting("http/1.1").wrap_bio(self.came, self.goes, server_hostname="localhost")

    def shake(self) -> bytes:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.goes.read()


def agreed() -> tuple[Tls, Peer]:
    """Both ends of a connection whose handshake is complete."""
    server, client = Tls(certified()), Peer()
    assert server.decrypt(client.shake()) == b""
    client.came.write(server.to_send())
    assert server.decrypt(client.shake()) == b""
    client.came.write(server.to_send())
    return server, client


def test_what_one_end_says_the_other_hears() -> None:
    server, client = agreed()
    client.tls.write(b"hello")
    assert server.decrypt(client.goes.read()) == b"hello"
    client.came.write(server.encrypt(b"and " + b"x" * 100_000))
    heard = b""
    while len(heard) < 100_004:
        heard += client.tls.read(200_000)
    assert heard == b"and " + b"x" * 100_000
    assert server.encrypt(b"") == b""


def test_the_end_is_told_and_heard() -> None:
    server, client = agreed()
    client.tls.write(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert (server.decrypt(client.goes.read()), server.ended) == (b"last words", True)
    client.came.write(server.close())
    client.tls.unwrap()  # it was told, too
    with pytest.raises(trio.BrokenResourceError, match="TLS"):
        server.encrypt(b"too late")


def test_before_the_handshake_there_is_nobody_to_tell() -> None:
    assert Tls(certified()).close() == b""


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\x80\x2e\x01", b"SSH-2.0-x\r\n"])
def test_who_speaks_something_else_is_told_from_the_first_byte(sent: bytes) -> None:
    with pytest.raises(NotTls):
        Tls(certified()).decrypt(sent)


def test_a_record_that_was_changed_on_the_way_ends_the_connection() -> None:
    server, client = agreed()
    client.tls.write(b"hello")
    record = bytearray(client.goes.read())
    record[-1] ^= 1
    with pytest.raises(trio.BrokenResourceError, match="TLS"):
        server.decrypt(bytes(record))
    assert server.to_send() != b""  # the alert


@given(st.data())
@settings(deadline=None)
def test_it_does_not_matter_how_the_bytes_are_cut(data: st.DataObject) -> None:
    server, client = agreed()
    said = data.draw(st.lists(st.binary(min_size=1, max_size=40_000), max_size=4))
    for part in said:
        client.tls.write(part)
    wire = client.goes.read()
    cuts = sorted({0, len(wire), *data.draw(st.lists(st.integers(0, len(wire)), max_size=8))})
    heard = [server.decrypt(wire[start:end]) for start, end in pairwise(cuts)]
    assert b"".join(heard) == b"".join(said)
    assert not server.ended


@given(st.lists(st.binary(min_size=1, max_size=600), max_size=4), st.booleans())
@settings(deadline=None)
def test_whatever_comes_is_refused_in_one_of_two_ways(sent: list[bytes], shaken: bool) -> None:
    server = agreed()[0] if shaken else Tls(certified())
    try:
        for part in sent if shaken else [b"\x16" + part for part in sent]:
            server.decrypt(part)
    except (trio.BrokenResourceError, NotTls):
        server.to_send()
        server.close()


def test_old_versions_and_renegotiation_are_not_spoken() -> None:
    context = server_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode == ssl.CERT_NONE  # clients have keys, not certificates
    weak = [one["name"] for one in context.get_ciphers() if "CBC" in one["name"] or "RC4" in one["name"]]
    assert weak == []


# -- what speaks something else, or nothing ----------------------------------------------------------------------------


async def gone(house: House) -> None:
    """Return when no connection is left."""
    with trio.fail_after(TOO_LONG_S):
        while house.door.connections:
            await trio.sleep(0.005)


async def until_closed(client: trio.abc.ReceiveStream) -> bytes:
    got = b""
    with trio.fail_after(TOO_LONG_S):
        try:
            while data := await client.receive_some(65536):
                got += data
        except trio.BrokenResourceError:
            pass  # a reset
    return got


async def test_who_speaks_plain_http_is_told_so_in_plain_http(
    house: House, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 0.1)
    client = await dial(house.served)
    await client.send_all(b"GET /api/version HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await until_closed(client)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in answer
    assert b"this port speaks HTTPS, not HTTP" in answer
    await gone(house)


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_that_does_not_go_on_is_given_up(
    house: House, dial: Dial, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(stream, "HEAD_TIMEOUT_S", 0.1)
    client = await dial(house.served)
    if sent:
        await client.send_all(sent)
    assert await until_closed(client) == b""
    await gone(house)


async def test_a_handshake_that_trickles_has_no_more_time_than_one_that_stands_still(
    house: House, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEAD_TIMEOUT_S", 0.2)
    hello = Peer().shake()
    client = await dial(house.served)
    async with trio.open_nursery() as sending:

        async def trickle() -> None:
            try:
                for byte in hello[:-1] * 100:
                    await client.send_all(bytes([byte]))
                    await trio.sleep(0.01)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the gateway has had enough

        sending.start_soon(trickle)
        await until_closed(client)
        sending.cancel_scope.cancel()
    await gone(house)


async def test_who_has_not_shaken_hands_makes_room_for_who_does(house: House, dial: Dial) -> None:
    await house.hall.worker("a", says(b'{"model":"m"}'))
    house.door.connections.bound = 2
    silent = [await dial(house.served) for _ in range(2)]
    await silent[0].send_all(Peer().shake()[:20])
    await wait_all_tasks_blocked()
    client = await house.client()
    await client.post("/api/chat", CHAT)
    await client.until(b'{"model":"m"}')


async def test_what_is_no_tls_after_a_good_beginning_ends_the_connection_and_nothing_else(
    house: House, dial: Dial, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 0.05)
    client = await dial(house.served)
    await client.send_all(b"\x16\x03\x01\x00\x05hello" * 3)
    assert (await until_closed(client))[:1] in (b"\x15", b"")  # an alert, if it came through
    await gone(house)
    assert "Traceback" not in caplog.text


async def test_a_client_that_does_not_trust_us_leaves_no_connection(house: House, dial: Dial) -> None:
    stranger = trio.SSLStream(await dial(house.served), ssl.create_default_context(), server_hostname="localhost")
    with pytest.raises(trio.BrokenResourceError):
        await stranger.do_handshake()
    await trio.aclose_forcefully(stranger)
    await gone(house)


@pytest.mark.parametrize("how", ["tells its end", "vanishes"])
async def test_a_client_that_leaves_while_it_is_idle_leaves_no_connection(house: House, how: str, dial: Dial) -> None:
    client = trio.SSLStream(await dial(house.served), trusting(), server_hostname="localhost")
    await client.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got = b""
    while b'{"status": "ok"}' not in got:
        got += await client.receive_some()
    if how == "vanishes":
        await client.transport_stream.aclose()
    else:
        under, _ = await client.unwrap()  # waits for the gateway's own word; TCP stays open
        assert await until_closed(under) == b""
    await gone(house)


# -- the end of an answer ----------------------------------------------------------------------------------------------


async def test_a_body_that_ends_with_its_connection_is_told_from_one_that_was_cut(house: House, dial: Dial) -> None:
    """Without that word anybody on the way could shorten an answer unseen (RFC 8446, 6.1)."""
    await house.hall.worker("a", says(LINE + LAST), starts(LINE, then=hangs))
    ask = b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT
    whole, cut = [trio.SSLStream(await dial(house.served), trusting(), server_hostname="localhost") for _ in range(2)]
    got = b""
    with trio.fail_after(TOO_LONG_S):
        await whole.send_all(ask)
        while data := await whole.receive_some():  # raises where the end is not told
            got += data
        assert got.endswith(LINE + LAST)
        await cut.send_all(ask)
        got = b""
        while LINE not in got:
            got += await cut.receive_some()
        house.door.cut()
        with pytest.raises(trio.BrokenResourceError):
            await cut.receive_some()


# -- which protocol, which lane ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), (("spdy/3", "http/1.1"), "http/1.1"), ((), None)],
)
async def test_a_client_gets_the_newest_protocol_that_it_knows(
    house: House, dial: Dial, offered: tuple[str, ...], chosen: str | None
) -> None:
    client = trio.SSLStream(await dial(house.served), trusting(*offered), server_hostname="localhost")
    await client.do_handshake()
    assert client.selected_alpn_protocol() == chosen
    assert client.version() == "TLSv1.3"


@pytest.mark.parametrize("lane", [EXPRESS + OVER_TLS])
async def test_http_1_1_over_tls_takes_the_express_lane(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def hypercorn(*_: object) -> None:
        raise AssertionError("it went to Hypercorn")

    monkeypatch.setattr(door, "TCPServer", hypercorn)
    await house.hall.worker("a", starts(LINE, then=finishes))
    client = await house.client()
    for _ in range(2):
        await client.post("/api/chat", CHAT)
        await client.until(b"0\r\n\r\n")


async def finishes(talk: Conversation) -> None:
    """The rest of a stream."""
    await talk.chunk(LAST)
    await talk.chunk(b"")


async def test_the_application_is_told_the_scheme(nursery: trio.Nursery, connect: Connect, lane: str) -> None:
    async def says_scheme(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["scheme"].encode(), "more_body": False})

    client = await connect(await serve(nursery, says_scheme, lane=lane))
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"https" in await client.until_closed()


# -- HTTP/2 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def address(house: House) -> str:
    return f"https://localhost:{house.served.port}"


async def test_a_usual_client_gets_http_2_each_part_as_it_comes(house: House, address: str) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await finishes(talk)

    await house.hall.worker("a", starts(LINE, then=rest), says(b"{}"))
    async with httpx.AsyncClient(
        http1=False, http2=True, verify=trusting(), base_url=address, timeout=TOO_LONG_S
    ) as client:
        async with client.stream("POST", "/api/chat", content=CHAT) as answer:
            assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
            parts = answer.aiter_raw()
            assert await anext(parts) == LINE
            go_on.set()  # only now: a gateway that gathered parts would never get here
            assert [part async for part in parts] == [LAST]
        assert (await client.post("/api/chat", content=CHAT)).text == "{}"
        assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert len(house.door.connections) <= 1
    await gone(house)


async def test_many_answers_share_one_connection(house: House, address: str) -> None:
    await house.hall.worker("a", *[starts(LINE, then=finishes)] * 12, slots=3)
    got: list[bytes] = []
    async with httpx.AsyncClient(
        http1=False, http2=True, verify=trusting(), base_url=address, timeout=TOO_LONG_S
    ) as client:
        await client.get("/healthz")  # else each of them connects

        async def ask() -> None:
            got.append((await client.post("/api/chat", content=CHAT)).content)

        async with trio.open_nursery() as asking:
            for _ in range(6):  # as many as three slots and a queue of four take
                asking.start_soon(ask)
        assert len(house.door.connections) == 1
    assert got == [LINE + LAST] * 6


async def test_an_answer_that_is_given_up_frees_its_slot_and_leaves_the_others_alone(house: House) -> None:
    server = await house.hall.worker("a", starts(LINE, then=hangs), says(b'{"next":1}'))
    client = await house.client()
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    head = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "https"), (":authority", "localhost")]

    async def until(text: bytes) -> None:
        with trio.fail_after(TOO_LONG_S):
            heard = b""
            while text not in heard:
                await client.send(http.data_to_send())
                for event in http.receive_data(await client.stream.receive_some(65536)):
                    if isinstance(event, h2.events.DataReceived):
                        heard += event.data

    http.send_headers(1, head)
    http.send_data(1, CHAT, end_stream=True)
    await until(LINE)
    http.reset_stream(1, error_code=8)  # CANCEL
    await client.send(http.data_to_send())
    with trio.fail_after(TOO_LONG_S):
        await server.client_left.wait()
    assert repr(house.hall.admission) == NOTHING_LEFT
    http.send_headers(3, head)
    http.send_data(3, CHAT, end_stream=True)
    await until(b'{"next":1}')  # by the same connection, in the one slot there is
    assert len(house.door.connections) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
async def test_curl_is_answered(house: House, address: str, tmp_path: Path, flag: str, version: str) -> None:
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    await house.hall.worker("a", starts(LINE, then=finishes))
    argv = ["curl", "-sS", "--noproxy", "*", "--cacert", str(ca), flag, "-w", "%{http_version}", "-d", CHAT.decode()]
    with trio.fail_after(TOO_LONG_S):
        done = await trio.run_process([*argv, f"{address}/api/chat"], capture_stdout=True)
    assert done.stdout == LINE + LAST + version.encode()


# -- a certificate that is renewed -------------------------------------------------------------------------------------


@pytest.fixture
def contexts() -> list[ssl.SSLContext]:
    made = []
    for _ in range(2):
        context = server_context()
        authority().issue_cert(*NAMES).configure_cert(context)
        made.append(context)
    return made


async def test_a_new_certificate_is_for_new_connections(
    nursery: trio.Nursery, connect: Connect, lane: str, contexts: list[ssl.SSLContext]
) -> None:
    hall = Hall(nursery)
    await hall.worker("a", says(b'{"first":1}'), says(b'{"second":1}'), says(b'{"third":1}'))
    served = await serve(nursery, front_of(hall), lane=lane, tls=lambda: contexts[0])

    def shown(client: object) -> object:
        assert isinstance(client, trio.SSLStream)
        return client.getpeercert()["serialNumber"]

    before = await connect(served)
    await before.post("/api/chat", CHAT)
    await before.until(b'{"first":1}')
    serial = shown(before.stream)
    del contexts[0]
    after = await connect(served)
    await after.post("/api/chat", CHAT)
    await after.until(b'{"second":1}')
    assert shown(after.stream) != serial
    await before.post("/api/chat", CHAT)
    await before.until(b'{"third":1}')
    assert shown(before.stream) == serial
    await wait_all_tasks_blocked()
    hall.upstream.close()


async def test_tls_may_be_switched_on_while_plain_connections_go_on(
    nursery: trio.Nursery, connect: Connect, lane: str
) -> None:
    current: list[ssl.SSLContext | None] = [None]
    hall = Hall(nursery)
    served = await serve(nursery, front_of(hall), lane=lane, tls=lambda: current[0])
    plain = await connect(served)
    await ask_health(plain)
    current[0], served.tls = certified(), True
    await ask_health(await connect(served))
    await ask_health(plain)


async def ask_health(client: Client) -> None:
    await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.until(b'{"status": "ok"}\n')


# -- when there is no place --------------------------------------------------------------------------------------------


async def test_who_finds_no_place_is_closed_without_a_word(
    house: House, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.RESERVE", 0)
    await house.hall.worker("a", starts(LINE, then=hangs))
    house.door.connections.bound = 1
    busy = await house.client()
    await busy.post("/api/chat", CHAT)
    await busy.until(LINE)
    assert await until_closed(await dial(house.served)) == b""

"""The door over real loopback connections, with the whole gateway behind it."""

import re
import socket

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import answering, stream
from gateway import body as body_module
from gateway.asgi import Message, Receive, Send
from gateway.connections import Connections, Place
from gateway.door import Door, PortTaken, listen
from gateway.head import HEAD_BYTES
from tests.fakes.door import CHAT, EXPRESS, TOO_LONG_S, Connect, House, front_of, serve
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import Conversation, dies, hangs, says, starts, streams

LINE = b'{"response":"a","done":true}\n'


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_two_requests_on_one_connection(house: House) -> None:
    await house.hall.worker("a", streams(LINE))
    client = await house.client()
    for _ in range(2):
        await client.post("/api/chat", CHAT)
        answer = await client.until(b"\r\n0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert LINE in answer
    assert len(house.door.connections) == 1


async def test_pages_and_models_share_a_connection(house: House) -> None:
    await house.hall.worker("a", says(b'{"model":"m"}'))
    client = await house.client()
    await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.until(b'{"status": "ok"}\n')
    await client.post("/api/chat", CHAT)
    await client.until(b'{"model":"m"}')
    await client.send(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"404" in await client.until(b'{"error": "not found"}\n')


@pytest.mark.parametrize(
    ("status", "line"), [(200, b"200 OK"), (404, b"404 Not Found"), (503, b"503 Service Unavailable"), (299, b"299 ")]
)
async def test_a_status_has_its_name_as_ollama_writes_it(house: House, status: int, line: bytes) -> None:
    """The official command shows it to people: `Error: 404 Not Found: model ...`."""
    await house.hall.worker("a", says(b'{"error":"x"}', status=status))
    client = await house.client()
    for _ in range(2):  # 503 without another worker to ask is passed on as it is
        await client.post("/api/chat", CHAT)
        assert (await client.until(b'{"error":"x"}')).startswith(b"HTTP/1.1 " + line + b"\r\n")


async def test_a_body_that_looks_like_a_head_stays_as_it_is(house: House) -> None:
    body = b"HTTP/1.1 200 \r\n"
    await house.hall.worker("a", says(body))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert await client.until(b"200 \r\n") == body


async def test_requests_sent_ahead_are_answered_in_order(house: House) -> None:
    await house.hall.worker("a", says(b"first"), says(b"second"))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    await client.post("/api/chat", CHAT)
    assert b"second" not in await client.until(b"first")
    await client.until(b"second")


async def test_an_old_client_gets_its_answer_and_a_closed_connection(house: House) -> None:
    await house.hall.worker("a", streams(LINE))
    client = await house.client()
    await client.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT)
    assert (await client.until_closed()).endswith(b"\r\n\r\n" + LINE)


async def test_a_client_that_asks_first_whether_to_send_its_body_is_told_to(house: House) -> None:
    await house.hall.worker("a", says(b"{}"))
    client = await house.client()
    head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CHAT)}\r\nExpect: 100-continue\r\n\r\n"
    await client.send(head.encode())
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    await client.send(CHAT)
    assert (await client.until(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200")


# -- requests that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"what do you want?\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx : y\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\nabc",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: \x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_connection_closed(house: House, sent: bytes) -> None:
    client = await house.client()
    await client.send(sent)
    assert re.match(rb"HTTP/1.1 (400|501) ", await client.until_closed())


async def test_a_head_without_end_is_refused(house: House) -> None:
    client = await house.client()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 3 * HEAD_BYTES)
    assert (await client.until_closed()).startswith(b"HTTP/1.1 431")


async def test_a_request_of_two_lengths_is_refused_and_what_is_hidden_in_it_is_not_asked(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    server = await house.hall.worker("a", says(b"{}"))
    hidden = b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 29\r\n\r\n" + CHAT
    client = await house.client()
    await client.send(
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        % (5 + len(hidden)) + hidden
    )  # fmt: skip
    # more than the first request having come, the connection may be cut before its refusal is out
    statuses = re.findall(rb"HTTP/1.1 (\d+)", await client.until_closed())
    assert statuses in ([b"400"], [])
    assert server.received == []
    assert caplog.text == ""


async def test_a_refused_upload_is_answered_and_its_connection_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "DISCARD_BYTES", 1_000_000)
    monkeypatch.setattr(stream, "LINGER_S", 0.05)
    client = await house.client()
    async with trio.open_nursery() as nursery:

        async def send_and_send() -> None:
            try:
                while True:
                    await client.send(b"x" * 65536)
            except trio.BrokenResourceError:
                pass  # the gateway has had enough

        head = b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n"
        await client.send(head)
        nursery.start_soon(send_and_send)
        assert (await client.until(b"(MAX_BODY_BYTES)")).startswith(b"HTTP/1.1 413")
        await client.until_closed()
        nursery.cancel_scope.cancel()
    with trio.fail_after(TOO_LONG_S):
        while house.door.connections:
            await trio.sleep(0.005)


async def test_an_end_that_takes_too_long_closes_the_connection(
    nursery: trio.Nursery, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "END_TIMEOUT_S", 0.05)

    async def reads_nothing(scope: Message, receive: Receive, send: Send) -> None:
        await client.send(b"1\r\nx\r\n" * 1000)  # more parts than Hypercorn holds for a reader that is not there
        await wait_all_tasks_blocked()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    served = await serve(nursery, reads_nothing)
    client = await connect(served)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert b"ok" in await client.until_closed()
    served.life.cancel()
    with trio.fail_after(TOO_LONG_S):
        await served.ended.wait()


# -- clients that leave, clients that do not read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"GET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"]
)
async def test_a_connection_that_the_gateway_ends_holds_no_place(house: House, sent: bytes) -> None:
    """Each held one for more than a minute: whoever was refused often enough shut out everybody else."""
    for _ in range(3):
        client = await house.client()
        await client.send(sent)
        assert await client.until_closed()
        await client.stream.aclose()
    with trio.fail_after(TOO_LONG_S):
        while house.door.connections:
            await trio.sleep(0.005)


@pytest.mark.parametrize("how", ["closed", "no more sent"])
async def test_a_client_that_leaves_after_its_answer_leaves_no_connection(house: House, how: str) -> None:
    """Each held a descriptor for more than a minute: a gateway with busy short-lived clients ran out of them."""
    clients = [await house.client() for _ in range(3)]
    for client in clients:
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"ok")
    await wait_all_tasks_blocked()
    for client in clients:
        if how == "closed":
            await client.stream.aclose()
        else:
            await client.send_eof()
            await client.until_closed()
    with trio.fail_after(TOO_LONG_S):
        while house.door.connections:
            await trio.sleep(0.005)


@pytest.mark.parametrize("before", ["the first byte", "the last byte"])
async def test_a_client_that_leaves_frees_its_worker(house: House, before: str) -> None:
    server = await house.hall.worker("a", hangs if before == "the first byte" else starts(LINE, then=hangs))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    await server.asked.wait()
    if before == "the last byte":
        await client.until(LINE)
    await client.stream.aclose()
    with trio.fail_after(TOO_LONG_S):
        await server.client_left.wait()
        while house.door.connections:
            await trio.sleep(0.005)
    assert repr(house.hall.admission) == NOTHING_LEFT


async def test_a_client_that_leaves_a_pull_ends_it(nursery: trio.Nursery, connect: Connect, lane: str) -> None:
    hall = Hall(nursery)
    primary = await hall.primary(starts(b'{"status":"pulling"}\n', then=hangs))
    client = await connect(await serve(nursery, front_of(hall), lane=lane))
    await client.post("/api/pull", b'{"model":"m"}')
    await client.until(b"pulling")
    await client.stream.aclose()
    with trio.fail_after(TOO_LONG_S):
        await primary.client_left.wait()


async def floods(talk: Conversation) -> None:
    await talk.head("content-type: application/x-ndjson", "transfer-encoding: chunked")
    try:
        while True:
            await talk.chunk(b"x" * 65536)
    except trio.BrokenResourceError:
        talk.server.client_left.set()
        raise


async def test_a_client_that_never_reads_is_cut(house: House) -> None:
    server = await house.hall.worker("a", floods)
    client = await house.client()
    await client.post("/api/chat", CHAT)
    with trio.fail_after(TOO_LONG_S):
        await server.client_left.wait()
        while house.door.connections:
            await trio.sleep(0.005)
    assert repr(house.hall.admission) == NOTHING_LEFT
    await client.stream.aclose()


async def test_over_http_2_too_a_client_that_gives_no_window_is_cut(house: House) -> None:
    server = await house.hall.worker("a", floods)
    client = await house.client()
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    http.send_headers(
        1, [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http"), (":authority", "localhost")]
    )
    http.send_data(1, CHAT, end_stream=True)
    await client.send(http.data_to_send())
    await client.until_closed()
    with trio.fail_after(TOO_LONG_S):
        await server.client_left.wait()
        while house.door.connections:
            await trio.sleep(0.005)
    assert repr(house.hall.admission) == NOTHING_LEFT


async def test_over_http_2_too_a_large_answer_comes_whole(patient_house: House) -> None:
    size = 2_000_000  # many windows
    await patient_house.hall.worker("a", says(b"y" * size))
    client = await patient_house.client()
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    head = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http"), (":authority", "localhost")]
    http.send_headers(1, head)
    http.send_data(1, CHAT, end_stream=True)
    got, ended = 0, False
    with trio.fail_after(TOO_LONG_S):
        while not ended:
            await client.send(http.data_to_send())
            for event in http.receive_data(await client.stream.receive_some(65536)):
                ended = ended or isinstance(event, h2.events.StreamEnded)
                if isinstance(event, h2.events.DataReceived):
                    got += len(event.data)
                    http.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        while repr(patient_house.hall.admission) != NOTHING_LEFT:
            await trio.sleep(0.005)
    assert got == size


@pytest.mark.parametrize("way", ["cut", "cancelled"])
async def test_a_client_that_never_reads_does_not_hold_up_the_end(
    nursery: trio.Nursery, connect: Connect, way: str, lane: str
) -> None:
    sent = 0

    async def counts(talk: Conversation) -> None:
        nonlocal sent
        await talk.head("content-type: application/x-ndjson", "transfer-encoding: chunked")
        while True:
            await talk.chunk(b"x" * 65536)
            sent += 1

    hall = Hall(nursery)
    await hall.worker("a", counts)
    served = await serve(nursery, front_of(hall), stall_timeout_s=1e6, lane=lane)
    client = await connect(served)
    await client.post("/api/chat", CHAT)
    before = -1
    while sent != before or not sent:  # until the buffers on the way are full
        before = sent
        await wait_all_tasks_blocked(0.02)
    await served.door.close()
    assert served.door.connections
    if way == "cut":
        served.door.cut()
    else:
        served.life.cancel()
    with trio.fail_after(TOO_LONG_S):
        await served.door.wait_empty()
    assert repr(hall.admission) == NOTHING_LEFT


async def test_no_place_is_kept_for_who_comes_through_a_trusted_proxy(
    nursery: trio.Nursery, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: list[bool] = []
    place = Connections.place

    def seen(connections: Connections, now: float, **asked: bool) -> Place | None:
        own.append(asked["own"])
        return place(connections, now, **asked)

    monkeypatch.setattr(Connections, "place", seen)
    app = front_of(Hall(nursery))
    served = await serve(nursery, app, lane=EXPRESS)
    for trusted in ((), ("127.0.0.1",)):
        app.front.proxies.settle(trusted)
        client = await connect(served)
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await client.until(b'{"status": "ok"}\n')
    assert own == [True, False]
    served.life.cancel()
    await served.ended.wait()


# -- going down --------------------------------------------------------------------------------------------------------


async def test_after_closing_idle_connections_end_and_a_busy_answer_is_completed(house: House) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await talk.chunk(b'{"done":true}\n')
        await talk.chunk(b"")

    await house.hall.worker("a", starts(LINE, then=rest))
    fresh, idle, busy = [await house.client() for _ in range(3)]
    await idle.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await idle.until(b"ok")
    await busy.post("/api/chat", CHAT)
    await busy.until(LINE)
    await house.door.close()
    await idle.until_closed()
    assert await fresh.until_closed() == b""
    with pytest.raises(OSError, match="all attempts to connect"):
        await house.client()
    go_on.set()
    assert (await busy.until_closed()).endswith(b"0\r\n\r\n")
    with trio.fail_after(TOO_LONG_S):
        await house.door.wait_empty()
        await house.door.wait_empty()


async def test_cancellation_cuts_every_connection_and_raises_nothing(house: House) -> None:
    server = await house.hall.worker("a", starts(LINE, then=hangs), slots=9)
    clients = [await house.client() for _ in range(4)]
    for client in clients[:2]:
        await client.post("/api/chat", CHAT)
        await client.until(LINE)
    await clients[2].send(b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
    await wait_all_tasks_blocked()
    house.served.life.cancel()
    for client in clients:
        await client.until_closed()
    with trio.fail_after(TOO_LONG_S):
        await house.served.ended.wait()
    assert not house.door.connections
    assert server.connections == 2
    assert repr(house.hall.admission) == NOTHING_LEFT


async def test_one_connection_that_fails_ends_no_other(
    nursery: trio.Nursery, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bug":
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    served = await serve(nursery, fails)
    good, bad = await connect(served), await connect(served)
    await bad.send(b"GET /bug HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await bad.until_closed()).startswith(b"HTTP/1.1 500")
    await good.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await good.until(b"ok")
    assert "ZeroDivisionError" in caplog.text


async def test_a_lost_worker_leaves_a_body_visibly_incomplete(house: House) -> None:
    await house.hall.worker("a", starts(b'{"half":', kind="application/json", then=dies))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    answer = await client.until_closed()
    assert b'{"half":' in answer
    assert not answer.endswith(b"0\r\n\r\n")


# -- listening ---------------------------------------------------------------------------------------------------------


async def test_over_http_2_too_a_broken_body_never_looks_complete_nor_stays_open(house: House) -> None:
    await house.hall.worker("a", starts(b'{"half":', kind="application/json", then=dies))
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    head = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http"), (":authority", "localhost")]
    http.send_headers(1, head)
    http.send_data(1, CHAT, end_stream=True)
    client = await house.client()
    await client.send(http.data_to_send())
    events = http.receive_data(await client.until_closed())
    assert any(isinstance(event, h2.events.DataReceived) and event.data == b'{"half":' for event in events)
    assert not any(isinstance(event, h2.events.StreamEnded) for event in events)


async def test_a_body_that_comes_after_its_answer_ends_no_other_request_over_http_2(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    client = await house.client()

    async def told(what: type[h2.events.DataReceived | h2.events.StreamEnded], stream: int) -> None:
        with trio.fail_after(TOO_LONG_S):
            while True:
                await client.send(http.data_to_send())
                data = await client.stream.receive_some(65536)
                assert data, "the connection was cut"
                if any(isinstance(e, what) and e.stream_id == stream for e in http.receive_data(data)):
                    return

    def head(method: str, path: str) -> list[tuple[str, str]]:
        return [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]

    http.send_headers(1, head("POST", "/healthz"))
    await told(h2.events.DataReceived, stream=1)  # 405, at once
    await wait_all_tasks_blocked()
    http.send_data(1, b"x", end_stream=False)
    http.send_data(1, b"y", end_stream=True)
    await told(h2.events.StreamEnded, stream=1)
    http.send_headers(3, head("GET", "/healthz"), end_stream=True)
    await told(h2.events.StreamEnded, stream=3)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "odd",
    [(":path", "/api/chat x"), ("x-a", "a\r\nx-b: c"), ("content-length", "+29")],
    ids=["path", "value", "length"],
)
async def test_what_only_http_2_can_frame_is_refused(
    house: House, odd: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker speaks HTTP/1.1, in which it would be another request, or two."""
    server = await house.hall.worker("a", says(b"{}"))
    plain = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    http = h2.connection.H2Connection(plain)
    http.initiate_connection()
    head = {":method": "POST", ":path": "/api/chat", ":scheme": "http", ":authority": "localhost"} | dict([odd])
    http.send_headers(1, list(head.items()))
    http.send_data(1, CHAT, end_stream=True)
    client = await house.client()
    await client.send(http.data_to_send())
    said = b""
    with trio.fail_after(TOO_LONG_S):
        while b"HTTP/1.1 does not allow" not in said:
            data = await client.stream.receive_some(65536)
            said += data
            if not data or any(isinstance(event, h2.events.ConnectionTerminated) for event in http.receive_data(data)):
                break  # Hypercorn's own h2 has refused it
    assert server.received == []
    assert "Traceback" not in caplog.text


def test_a_taken_port_is_said_so_and_nothing_is_left_open() -> None:
    (first,) = listen("127.0.0.1", 0)
    with first, pytest.raises(PortTaken, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_an_address_that_is_not_ours_is_said_so() -> None:
    with pytest.raises(PortTaken, match="assign"):
        listen("192.0.2.1", 0)
    with pytest.raises(PortTaken):
        listen("no.such.host.invalid", 0)


async def test_ipv6_is_served_where_there_is_any(nursery: trio.Nursery, connect: Connect) -> None:
    async def says_who(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode(), "more_body": False})

    try:
        served = await serve(nursery, says_who, host="::1")
    except PortTaken:
        pytest.skip("no IPv6 here")
    client = await connect(served, "::1")
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"::1" in await client.until_closed()


def test_a_name_of_two_addresses_is_listened_on_at_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_args: object, **_more: object) -> list[tuple[object, ...]]:
        here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
        # what `localhost` gives on a machine whose IPv6 is switched off: a documentation address cannot be bound
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)), here, here]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    sockets = listen("localhost", 0)
    assert [sock.family for sock in sockets] == [socket.AF_INET]
    for sock in sockets:
        sock.close()


# -- slow clients ------------------------------------------------------------------------------------------------------

PART = b"x" * 65536


def kernel_takes_little(door: Door) -> None:
    """From now on accepted connections hold next to nothing in the kernel, whose own buffer grows to megabytes."""
    for listener in door.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def test_a_client_that_stops_reading_holds_no_slot_for_an_answer_of_usual_size(patient_house: House) -> None:
    size, house = 900_000, patient_house
    worker = await house.hall.worker("a", says(b"y" * size))
    kernel_takes_little(house.door)
    stuck, next_one = await house.client(), await house.client()
    await stuck.post("/api/chat", CHAT)
    await worker.asked.wait()
    await next_one.post("/api/chat", CHAT)  # gets the only slot, which `stuck` would hold
    await next_one.until(b"y" * size)
    assert house.door.connections.unread > size // 2
    with trio.fail_after(TOO_LONG_S):
        while repr(house.hall.admission) != NOTHING_LEFT:
            await trio.sleep(0.005)
    await stuck.until(b"y" * size)  # late, and whole


async def test_a_request_that_is_not_complete_does_not_hold_up_the_end(house: House) -> None:
    head, body = await house.client(), await house.client()
    upload = await house.client()
    primary = await house.hall.primary(says(b"{}"))
    await head.send(b"POST /api/chat HT")
    await body.send(b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 29\r\n\r\n{")
    await upload.send(b"POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 29\r\n\r\n{")
    with trio.fail_after(TOO_LONG_S):
        while not primary.received or not primary.received[0].body:
            await trio.sleep(0.005)
        await house.door.close()
        await house.door.wait_empty()  # at once: nobody has asked for anything yet
        assert await head.until_closed() == b""
        while len(house.door.connections) > 2:
            await trio.sleep(0.005)
        house.door.cut()
        assert await body.until_closed() == await upload.until_closed() == b""


async def test_a_request_that_becomes_complete_while_going_down_is_answered(house: House) -> None:
    client = await house.client()
    await client.send(b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(CHAT))
    await wait_all_tasks_blocked()
    await house.door.close()
    house.hall.admission.shut()
    await client.send(CHAT)
    assert b"503" in await client.until(b"shutting down")
    with trio.fail_after(TOO_LONG_S):
        await house.door.wait_empty()


async def test_an_unread_answer_is_waited_for_and_the_client_that_reads_it_gets_it_whole(
    nursery: trio.Nursery, connect: Connect
) -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(15):
            await send({"type": "http.response.body", "body": PART, "more_body": True})
        await send({"type": "http.response.body", "body": b"the end", "more_body": False})
        ended.set()

    served = await serve(nursery, app)
    kernel_takes_little(served.door)
    client = await connect(served)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    with trio.fail_after(TOO_LONG_S):
        await ended.wait()
        await served.door.close()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(served.door.wait_empty)
        await wait_all_tasks_blocked()
        assert waiting.child_tasks
        assert (await client.until_closed()).endswith(b"the end\r\n0\r\n\r\n")


async def test_a_body_that_comes_too_slowly_is_refused_in_the_words_of_its_api(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "PROGRESS_S", 0.05)
    for path in ("/v1/chat/completions", "/v1/models/m"):  # held, and streamed to the primary
        await house.hall.primary(says(b"{}"))
        client = await house.client()
        await client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{" % path.encode())
        answer = await client.until_closed()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'{"error": {"message": "the request body comes too slowly' in answer
        assert b"connection: close" in answer
    assert repr(house.hall.admission) == NOTHING_LEFT

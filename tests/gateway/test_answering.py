"""What every application has on its connection: informational answers, the reserve's rule, calls that are counted.

How answers end is tested with the door.
"""

from collections.abc import Awaitable, Callable

import h11
import httpx
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection

from gateway.asgi import INFORMATIONAL, Message, Receive, Send
from tests.fakes.door import TOO_LONG_S, Connect, serve

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
Inform = Callable[[int, list[tuple[bytes, bytes]]], Awaitable[None]]


async def ok(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


async def informs(scope: Message, receive: Receive, send: Send) -> None:
    """Tells the client where it stands in the queue, twice, and once too often."""
    inform: Inform = scope["extensions"][INFORMATIONAL]
    await inform(102, [(b"x-chimera-queue-position", b"2")])
    await inform(102, [(b"x-chimera-queue-position", b"1")])
    await ok(send)
    await inform(102, [(b"x-chimera-queue-position", b"0")])


async def test_informational_answers_come_before_the_answer_and_never_after_it(
    nursery: trio.Nursery, connect: Connect
) -> None:
    client = await connect(await serve(nursery, informs))
    await client.send(GET)
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    http.receive_data(await client.until_closed())
    events = []
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        events.append(event)
    assert [event.status_code for event in events if isinstance(event, h11.InformationalResponse)] == [102, 102]
    assert [dict(event.headers)[b"x-chimera-queue-position"] for event in events[:2]] == [b"2", b"1"]  # type: ignore[union-attr]
    assert isinstance(events[2], h11.Response)
    assert http.trailing_data[0] == b""


async def test_a_client_that_expects_none_does_not_trip_over_them(nursery: trio.Nursery) -> None:
    served = await serve(nursery, informs)
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=TOO_LONG_S) as client:
        for _ in range(2):  # on one connection
            answer = await client.get(f"http://127.0.0.1:{served.port}/")
            assert (answer.status_code, answer.text, "x-chimera-queue-position" in answer.headers) == (200, "ok", False)
    assert len(served.door.connections) <= 1


async def test_one_that_asks_whether_to_send_its_body_is_told_both(nursery: trio.Nursery, connect: Connect) -> None:
    client = await connect(await serve(nursery, informs))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    answer = await client.until(b"\r\n\r\nok")
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert sorted(statuses) == [b"100", b"102", b"102", b"200"]
    assert statuses[-1] == b"200"


async def test_what_is_no_informational_answer_is_the_callers_mistake(nursery: trio.Nursery, connect: Connect) -> None:
    faults: list[ValueError] = []

    async def mistaken(scope: Message, receive: Receive, send: Send) -> None:
        for status, header in ((200, (b"x", b"y")), (102, (b"x", b"a\r\n\r\nHTTP/1.1 200 OK"))):
            try:
                await scope["extensions"][INFORMATIONAL](status, [header])
            except ValueError as fault:
                faults.append(fault)
        await ok(send)

    client = await connect(await serve(nursery, mistaken))
    await client.send(GET)
    assert (await client.until_closed()).count(b"HTTP/1.1") == 1
    assert len(faults) == 2


async def test_who_could_not_understand_them_gets_none(nursery: trio.Nursery, connect: Connect) -> None:
    extensions: list[dict[str, object]] = []
    seen = trio.Event()

    async def looks(scope: Message, receive: Receive, send: Send) -> None:
        extensions.append(scope["extensions"])
        await ok(send)
        if len(extensions) == 2:
            seen.set()

    served = await serve(nursery, looks)
    old, new = await connect(served), await connect(served)
    await old.send(b"GET / HTTP/1.0\r\n\r\n")
    await old.until_closed()
    http = H2Connection(H2Configuration(client_side=True))
    http.initiate_connection()
    http.send_headers(
        1, [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")], end_stream=True
    )
    await new.send(http.data_to_send())
    with trio.fail_after(TOO_LONG_S):
        await seen.wait()
    assert [INFORMATIONAL in given for given in extensions] == [False, False]


# -- at the bound ------------------------------------------------------------------------------------------------------


async def test_beyond_the_bound_pages_are_answered_and_nothing_else(nursery: trio.Nursery, connect: Connect) -> None:
    go_on = trio.Event()
    asked: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        if scope["path"] == "/api/chat":
            await go_on.wait()
        await ok(send)

    refused: list[int] = []
    served = await serve(nursery, app, bound=2, refused=refused.append)
    busy = [await connect(served) for _ in range(2)]
    for client in busy:
        await client.send(b"POST /api/chat HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    with trio.fail_after(TOO_LONG_S):
        while len(asked) < 2:
            await trio.sleep(0.005)
    page, model, claude = [await connect(served) for _ in range(3)]
    await page.send(b"GET /admin/instances HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await page.until_closed()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    await model.send(b"GET /api/tags HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await model.until_closed()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1\r\n" in answer
    assert b'{"error": "too many connections' in answer
    await claude.send(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n" + b"x" * 5000)
    assert b"overloaded_error" in await claude.until(b"}}")
    assert asked == ["/api/chat"] * 2 + ["/admin/instances"]
    assert refused == [503, 503]
    go_on.set()
    for client in busy:
        assert (await client.until_closed()).endswith(b"ok")


async def test_a_connection_that_is_idle_makes_room(nursery: trio.Nursery, connect: Connect) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await ok(send)

    served = await serve(nursery, app, bound=2)
    clients = [await connect(served) for _ in range(2)]
    for client in clients:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"ok")
    newcomer = await connect(served)
    await newcomer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await newcomer.until(b"ok")
    assert await clients[0].until_closed() == b""
    await clients[1].send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await clients[1].until(b"ok")


async def test_where_there_is_no_place_at_all_one_is_told_so(
    nursery: trio.Nursery, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = trio.Event()

    async def hangs(scope: Message, receive: Receive, send: Send) -> None:
        asked.set()
        await trio.sleep_forever()

    monkeypatch.setattr("gateway.connections.RESERVE", 0)
    refused: list[int] = []
    served = await serve(nursery, hangs, bound=1, refused=refused.append)
    busy = await connect(served)
    await busy.send(b"GET /api/chat HTTP/1.1\r\nHost: a\r\n\r\n")
    await asked.wait()
    late = await connect(served)
    answer = await late.until_closed()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"MAX_CONNECTIONS" in answer
    assert refused == [503]
    served.life.cancel()

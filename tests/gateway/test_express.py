"""The express lane: what it takes, what it leaves to Hypercorn, and how its connections begin, go on and end."""

import tracemalloc

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import express as module
from gateway.express import taken
from gateway.front import Front
from gateway.head import understand
from gateway.ollama import Answerer
from gateway.stream import GuardedStream
from tests.fakes.door import CHAT, EXPRESS, MAX_BODY_BYTES, TOO_LONG_S, Connect, House, front_of, serve
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import Conversation, hangs, says, starts, streams

LINE = b'{"response":"a","done":true}\n'


@pytest.fixture
def lane() -> str:
    return EXPRESS


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has gone to Hypercorn."""
    heard: list[bytes] = []
    put_back = GuardedStream.put_back

    def hears(stream: GuardedStream, data: bytes) -> None:
        heard.append(data)
        put_back(stream, data)

    monkeypatch.setattr(GuardedStream, "put_back", hears)
    return heard


# -- what it takes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "who"),
    [
        ("POST /api/chat HTTP/1.1|Host: a|Content-Length: 3", Answerer.WORKER),
        ("POST /v1/chat/completions HTTP/1.1|Host: a|Content-Length: 3|Connection: close", Answerer.WORKER),
        ("GET /api/tags?x=1 HTTP/1.1|Host: a", Answerer.PRIMARY),
        ("HEAD / HTTP/1.1|Host: a", Answerer.PRIMARY),
        ("GET /api/ps HTTP/1.1|Host: a", Answerer.FLEET),
        # Chimera's own pages
        ("GET /healthz HTTP/1.1|Host: a", None),
        ("GET /admin/instances HTTP/1.1|Host: a", None),
        # not understood completely, or not here
        ("POST /api/chat HTTP/1.0|Host: a|Content-Length: 3", None),
        ("POST /api/chat HTTP/1.1|Host: a|Transfer-Encoding: chunked", None),
        ("POST /api/chat HTTP/1.1|Host: a|Content-Length: 3|Expect: 100-continue", None),
        ("POST /api/chat HTTP/1.1|Host: a|Content-Length: 3|Upgrade: h2c|HTTP2-Settings: AAA", None),
        ("POST /api/chat HTTP/1.1|Host: a|Content-Length: 3|Upgrade: websocket", None),
        ("POST http://a/api/chat HTTP/1.1|Host: a|Content-Length: 3", None),
        ("POST /api/ch%61t HTTP/1.1|Host: a|Content-Length: 3", None),
        ("GET /api/tags#x HTTP/1.1|Host: a", None),
        ("post /api/chat HTTP/1.1|Host: a|Content-Length: 3", None),
        ("BREW /api/chat HTTP/1.1|Host: a|Content-Length: 3", None),
    ],
)
def test_it_takes_ordinary_requests_for_forwarded_paths(lines: str, who: Answerer | None) -> None:
    assert taken(understand(lines.replace("|", "\r\n").encode())) is who


async def test_a_connection_stays_with_hypercorn_from_the_first_request_that_is_not_for_the_lane(
    house: House, handed_over: list[bytes]
) -> None:
    await house.hall.worker("a", says(b"{}"))
    client = await house.client()
    for _ in range(2):
        await client.post("/api/chat", CHAT)
        await client.until(b"\r\n\r\n{}")
    assert handed_over == []
    page = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    await client.send(page)
    await client.until(b"ok")
    await client.post("/api/chat", CHAT)
    await client.until(b"\r\n\r\n{}")
    assert handed_over == [page]


async def test_a_request_with_a_body_is_handed_over_whole(house: House, handed_over: list[bytes]) -> None:
    server = await house.hall.worker("a", says(b"{}"))
    client = await house.client()
    await client.send(b"POST /api/ch%%61t HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT[:5])
    await wait_all_tasks_blocked()
    await client.send(CHAT[5:])
    await client.until(b"\r\n\r\n{}")
    assert server.received[0].body == CHAT
    assert handed_over[0].endswith(CHAT[:5])


async def test_beyond_the_bound_connections_are_hypercorns(house: House, handed_over: list[bytes]) -> None:
    """Only Chimera's own pages are answered there."""
    house.door.connections.bound = 1
    await house.hall.worker("a", hangs)
    first = await house.client()
    await first.post("/api/chat", CHAT)
    await wait_all_tasks_blocked()
    second = await house.client()
    await second.post("/api/chat", CHAT)
    assert b"MAX_CONNECTIONS" in await second.until_closed()
    assert len(handed_over) == 1


async def test_while_a_request_waits_its_body_is_kept_once(house: House) -> None:
    """In whatever parts it came: what waits is counted by its size (QUEUE_BYTES)."""
    await house.hall.worker("a", hangs)
    clients = [await house.client() for _ in range(5)]
    body = CHAT[:-1] + b" " * (MAX_BODY_BYTES - len(CHAT)) + CHAT[-1:]
    tracemalloc.start()
    try:
        for client in clients:  # the first is with its worker, the others wait
            await client.post("/api/chat", body)
            await wait_all_tasks_blocked(0.02)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert house.hall.admission.queue()["bytes"] == 4 * MAX_BODY_BYTES
    assert 5 * MAX_BODY_BYTES < kept < 1.5 * 5 * MAX_BODY_BYTES


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_head_and_first_part_go_out_together_and_each_part_as_it_comes(house: House) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await talk.chunk(LINE)
        await talk.chunk(b"")

    await house.hall.worker("a", starts(b"first\n", then=rest))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    got = await client.until(b"first\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    go_on.set()
    await client.until(b"0\r\n\r\n")


async def test_a_chunk_that_comes_by_itself_goes_as_it_came_and_is_counted(house: House) -> None:
    """Whoever wrote its size with a nought before it: nothing is written anew that is right as it is."""
    end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LINE), LINE)
    parts = [b"05\r\nhello\r\n", b"00A\r\nto you\r\n??\r\n", b"3\r\n", b"yes\r\n", end]
    seen = [parts[0], parts[1], b"", b"3\r\nyes\r\n", end]
    go_on = [trio.Event() for _ in parts]

    async def rest(talk: Conversation) -> None:
        for part, word in zip(parts, go_on, strict=True):
            await word.wait()
            await talk.send(part)

    await house.hall.worker("a", starts(b"first\n", then=rest))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    await client.until(b"first\n\r\n")
    for word, some in zip(go_on, seen, strict=True):
        word.set()
        await wait_all_tasks_blocked(0.02)
        assert not some or await client.until(some) == some


async def test_a_large_answer_comes_whole_to_a_client_that_reads_slowly(patient_house: House) -> None:
    size = 5_000_000
    await patient_house.hall.worker("a", streams(*[b"y" * 100_000] * (size // 100_000), kind="text/plain"))
    client = await patient_house.client()
    await client.post("/api/chat", CHAT, "Connection: close")
    await wait_all_tasks_blocked(0.02)
    got = await client.until_closed()
    assert got.partition(b"\r\n\r\n")[2].count(b"y") == size
    assert got.endswith(b"0\r\n\r\n")


async def test_who_asks_for_its_place_is_told_by_early_information(house: House) -> None:
    go_on = trio.Event()

    async def waits(talk: Conversation) -> None:
        await go_on.wait()
        await says(b"{}")(talk)

    server = await house.hall.worker("a", waits)
    first, second = await house.client(), await house.client()
    await first.post("/api/chat", CHAT)
    await server.asked.wait()
    await second.post("/api/chat", CHAT, "X-Chimera-Queue: 1")
    told = await second.until(b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 102 Processing\r\n")
    assert b"x-chimera-queue-position: 1\r\n" in told
    go_on.set()
    assert (await second.until(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200")


async def test_a_body_shorter_than_it_says_is_cut(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that a worker could: what it says is checked where it is read."""
    monkeypatch.setattr(module.ExpressReply, "write", _writes_half)
    await house.hall.worker("a", says(b"{    }"))
    client = await house.client()
    await client.post("/api/chat", CHAT)
    assert (await client.until_closed()) == b""


async def _writes_half(reply: module.ExpressReply, data: bytes) -> None:
    reply.sent_bytes += len(data) // 2


async def test_a_bug_of_ours_is_a_500_and_ends_its_connection_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    other = await house.client()
    await house.hall.worker("a", says(b"{}"))
    client = await house.client()
    with monkeypatch.context() as patch:
        patch.setattr(Front, "answer", fails)
        await client.post("/api/chat", CHAT)
        got = await client.until_closed()
    assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"bug in Chimera" in got
    await other.post("/api/chat", CHAT)
    await other.until(b"{}")


# -- the client leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closes", "closes its sending half"])
@pytest.mark.parametrize("before", [b"", b'{"response":"a"}\n'], ids=["before the first byte", "mid-stream"])
async def test_a_client_that_leaves_frees_its_worker(house: House, how: str, before: bytes) -> None:
    server = await house.hall.worker("a", starts(before, then=hangs) if before else hangs)
    client = await house.client()
    await client.post("/api/chat", CHAT)
    if before:
        await client.until(before)
    await server.asked.wait()
    if how == "closes":
        await client.stream.aclose()
    else:
        await client.stream.send_eof()
    with trio.fail_after(TOO_LONG_S):
        await server.client_left.wait()
        while house.door.connections:
            await trio.sleep(0.005)
    assert repr(house.hall.admission) == NOTHING_LEFT


async def test_a_client_that_leaves_the_queue_frees_its_place(house: House) -> None:
    client = await house.client()
    await client.post("/api/chat", CHAT)  # no worker is there
    with trio.fail_after(TOO_LONG_S):
        while not house.hall.admission.dispatcher.waiting:
            await trio.sleep(0.005)
        await client.stream.aclose()
        while house.hall.admission.dispatcher.waiting:
            await trio.sleep(0.005)


async def test_between_its_requests_a_connection_is_idle_and_makes_room_for_another(house: House) -> None:
    house.door.connections.bound = 1
    await house.hall.worker("a", streams(LINE))
    for _ in range(3):
        client = await house.client()
        await client.post("/api/chat", CHAT)
        await client.until(b"0\r\n\r\n")
        with trio.fail_after(TOO_LONG_S):
            await house.door.wait_empty()
    assert len(house.door.connections) == 1


async def test_who_leaves_with_the_last_byte_is_no_client_that_left(house: House) -> None:
    await house.hall.worker("a", streams(LINE))
    for _ in range(5):
        client = await house.client()
        await client.post("/api/chat", CHAT)
        await client.until(b"0\r\n\r\n")
        await client.stream.aclose()
    with trio.fail_after(TOO_LONG_S):
        while house.door.connections:
            await trio.sleep(0.005)
    rendered = house.hall.metrics.render(0, [], [], queue_bytes=0)
    assert b'outcome="ok"' in rendered
    assert b'outcome="client_left"' not in rendered


# -- going down --------------------------------------------------------------------------------------------------------


async def test_after_closing_an_answer_says_that_its_connection_ends(nursery: trio.Nursery, connect: Connect) -> None:
    hall, go_on = Hall(nursery), trio.Event()

    async def waits(talk: Conversation) -> None:
        await go_on.wait()
        await says(b"{}")(talk)

    server = await hall.worker("a", waits)
    served = await serve(nursery, front_of(hall), lane=EXPRESS)
    busy, idle = await connect(served), await connect(served)
    await busy.post("/api/chat", CHAT)
    await busy.post("/api/chat", CHAT)  # ahead: nobody will answer it
    await server.asked.wait()
    await served.door.close()
    assert await idle.until_closed() == b""
    go_on.set()
    got = await busy.until_closed()
    assert b"\r\nconnection: close\r\n" in got
    assert got.count(b"HTTP/1.1") == 1
    await served.door.wait_empty()
    hall.upstream.close()

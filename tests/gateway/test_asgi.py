"""The ASGI side: who answers, bodies of every kind, and clients that leave."""

import json
import re
from collections.abc import AsyncIterator, Iterable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import body as module
from gateway.asgi import INFORMATIONAL, AsgiLane, Send
from gateway.body import Room
from gateway.front import Front
from gateway.pulls import BODY_BYTES, Pulls
from tests.fakes.asgi import AsgiClient, Message
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import NDJSON, Conversation, dies, hangs, says, starts, streams

LINE = b'{"response":"a","done":true}\n'
CHAT = b'{"model":"m","messages":[{}]}'
MAX_BODY_BYTES = 1000


class House:
    """The front, what is behind it, and the pages beside it."""

    def __init__(self, hall: Hall) -> None:
        self.hall = hall
        self.pages_asked: list[str] = []
        self.pin_load_options = False

    async def pages(self, scope: Message, receive: object, send: Send) -> None:
        self.pages_asked.append(scope["path"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"page", "more_body": False})

    @property
    def front(self) -> AsgiLane:
        pulls = Pulls(self.hall.exchange)
        front = Front(
            self.hall.exchange, pulls, self.hall.metrics, max_body_bytes=MAX_BODY_BYTES,
            pin_load_options=self.pin_load_options,
        )  # fmt: skip
        return AsgiLane(front, self.pages)

    def client(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), path: str | None = None
    ) -> AsgiClient:
        return AsgiClient(self.front, method, target, headers, path=path)

    async def post(self, target: str, body: bytes) -> AsgiClient:
        return await self.client("POST", target, [("content-length", str(len(body)))]).ask(body)


@pytest.fixture
async def house(nursery: trio.Nursery) -> AsyncIterator[House]:
    made = House(Hall(nursery))
    yield made
    made.hall.upstream.close()
    assert repr(made.hall.admission) == NOTHING_LEFT


# -- who answers -----------------------------------------------------------------------------------------------


async def test_a_forwarded_request_is_answered_by_a_worker(house: House) -> None:
    server = await house.hall.worker("a", streams(LINE))
    client = await house.post("/api/chat?a=b%20c", CHAT)
    assert (client.status, client.body, client.complete) == (200, LINE, True)
    assert client.headers["content-type"] == NDJSON
    assert (server.received[0].target, server.received[0].body) == ("/api/chat?a=b%20c", CHAT)


async def test_the_path_reaches_the_worker_as_it_came(house: House) -> None:
    server = await house.hall.primary(says(b"{}"))
    await house.client("GET", "/api/x%2Fy/%C3%A9?q=%26", path="/api/x/y/é").ask()
    assert server.received[0].target == "/api/x%2Fy/%C3%A9?q=%26"


@pytest.mark.parametrize("target", ["/api/something/new", "/v1/models", "/"])
async def test_what_is_not_known_goes_to_the_primary_without_a_slot(house: House, target: str) -> None:
    await house.hall.primary(says(b"its answer"))
    client = await house.client("GET", target).ask()
    assert (client.body, client.headers["x-chimera-worker"]) == (b"its answer", "primary")


@pytest.mark.parametrize("body", [b"", b"no json", b"{}", b'{"prompt":"no model"}'])
async def test_a_body_that_no_server_could_use_is_refused_by_the_primary(house: House, body: bytes) -> None:
    primary = await house.hall.primary(says(b'{"error":"in its words"}', status=400))
    worker = await house.hall.worker("a", says(b"never asked"))
    client = await house.post("/api/chat", body)
    assert (client.status, client.body) == (400, b'{"error":"in its words"}')
    assert primary.received[0].body == body
    assert worker.received == []


async def test_pages_and_other_protocols_are_passed_on(house: House) -> None:
    assert (await house.client("GET", "/admin/instances").ask()).body == b"page"
    websocket = house.client("GET", "/api/chat")
    websocket.scope["type"] = "websocket"
    await websocket.run()
    assert house.pages_asked == ["/admin/instances", "/api/chat"]


async def test_a_head_request_gets_a_head(house: House) -> None:
    await house.hall.primary(says(b"Ollama is running"))
    client = await house.client("HEAD", "/").ask()
    assert (client.status, client.headers["content-length"], client.body) == (200, "17", b"")


async def test_errors_of_a_head_request_have_no_body(house: House) -> None:
    client = await house.client("HEAD", "/api/version").ask()
    assert (client.status, client.body, client.complete) == (503, b"", True)
    assert int(client.headers["content-length"]) > 0


async def test_the_clients_own_request_id_is_kept(house: House) -> None:
    await house.hall.primary(says(b"{}"))
    mine = await house.client("GET", "/api/tags", [("X-Request-Id", "mine-1")]).ask()
    bad = await house.client("GET", "/api/tags", [("X-Request-Id", "a b")]).ask()
    assert mine.headers["x-request-id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])


async def test_a_fault_is_told_in_the_words_of_the_api_that_was_asked(house: House) -> None:
    house.hall.admission.shut()
    ollama, openai, anthropic = [
        json.loads((await house.post(path, CHAT)).body)
        for path in ("/api/chat", "/v1/chat/completions", "/v1/messages")
    ]
    sentence = "the server is shutting down"
    assert ollama == {"error": sentence}
    assert openai["error"] == {"message": sentence, "type": "api_error", "param": None, "code": None}
    assert anthropic == {"type": "error", "error": {"type": "overloaded_error", "message": sentence}}


# -- bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/v1/embeddings", "/v1/messages"])
async def test_a_body_that_says_it_is_too_large_is_refused_at_once(house: House, path: str) -> None:
    client = house.client("POST", path, [("content-length", str(MAX_BODY_BYTES + 1))])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await client.first_write.wait()
        assert client.read_parts == 0
        client.send_body(b"x" * (MAX_BODY_BYTES + 1))
    assert (client.status, client.complete) == (413, True)
    assert "MAX_BODY_BYTES" in json.dumps(json.loads(client.body))


async def test_a_body_that_turns_out_too_large_is_refused(house: House) -> None:
    client = house.client("POST", "/api/chat", [("transfer-encoding", "chunked")])
    for _ in range(20):
        client.send_body(b"x" * 100, more=True)
    client.send_body(b"")
    await client.run()
    assert (client.status, client.complete) == (413, True)


async def test_a_body_of_just_the_right_size_is_taken(house: House) -> None:
    await house.hall.worker("a", says(b"{}"))
    body = CHAT.ljust(MAX_BODY_BYTES)
    assert (await house.post("/api/chat", body)).status == 200


async def test_the_rest_of_a_refused_body_is_not_read_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISCARD_BYTES", 5000)
    client = house.client("POST", "/api/chat", [("content-length", "1000000")])
    for _ in range(100):
        client.send_body(b"x" * 1000, more=True)
    await client.run()
    assert (client.status, client.complete) == (413, True)
    assert client.read_parts < 100


async def test_a_body_that_comes_in_parts_is_put_together(house: House) -> None:
    server = await house.hall.worker("a", says(b"{}"))
    client = house.client("POST", "/api/chat")
    for byte in CHAT:
        client.send_body(bytes([byte]), more=True)
    client.send_body(b"")
    await client.run()
    assert server.received[0].body == CHAT


async def test_an_upload_streams_through_and_is_not_held(house: House) -> None:
    primary = await house.hall.primary(says(b"", status=201))
    client = house.client("POST", "/api/blobs/sha256:1", [("transfer-encoding", "chunked")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        for number in range(3):
            client.send_body(b"x" * MAX_BODY_BYTES, more=True)
            while not primary.received or len(primary.received[0].body) < (number + 1) * MAX_BODY_BYTES:
                await trio.lowlevel.checkpoint()
        client.send_body(b"")
    assert (client.status, len(primary.received[0].body)) == (201, 3 * MAX_BODY_BYTES)


async def test_an_upload_keeps_its_declared_length(house: House) -> None:
    primary = await house.hall.primary(says(b"", status=201))
    await house.post("/api/blobs/sha256:1", b"abc")
    assert primary.received[0].header("content-length") == "3"
    assert primary.received[0].header("transfer-encoding") is None


async def test_an_upload_that_the_primary_refuses_early_is_answered_and_read_to_its_end(house: House) -> None:

    async def refuses(talk: Conversation) -> None:
        await says(b"no", "connection: close", status=400)(talk)
        await talk.die()

    await house.hall.primary(refuses, refuses_early=True)
    client = house.client("POST", "/api/blobs/sha256:1", [("transfer-encoding", "chunked")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        client.send_body(b"x", more=True)
        while not client.started.is_set():
            client.send_body(b"x" * 100_000, more=True)
            await wait_all_tasks_blocked()
        client.send_body(b"")
    assert (client.status, client.body, client.complete) == (400, b"no", True)


async def test_a_body_without_framing_reaches_the_primary(house: House) -> None:
    primary = await house.hall.primary(says(b"{}"))  # as HTTP/2 has it
    await house.client("POST", "/api/show").ask(b'{"model":"m"}')
    assert primary.received[0].body == b'{"model":"m"}'


async def test_a_client_that_is_too_slow_is_told_so_and_what_it_still_sends_is_not_waited_for(
    house: House, autojump_clock: trio.abc.Clock
) -> None:
    client = house.client("POST", "/v1/messages", [("content-length", "100")])
    client.send_body(b"{", more=True)
    await client.run()
    assert (client.status, client.headers["connection"], client.complete) == (408, "close", True)
    assert json.loads(client.body)["error"]["message"] == "the request body comes too slowly, or not at all"
    assert trio.current_time() == pytest.approx(module.PROGRESS_S)


async def test_the_rest_of_a_refused_body_may_come_slowly_too(house: House, autojump_clock: trio.abc.Clock) -> None:
    client = house.client("POST", "/api/chat", [("transfer-encoding", "chunked")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await trio.sleep(module.PROGRESS_S - 1)
        client.send_body(b"x" * 600, more=True)
        client.send_body(b"x" * 402, more=True)
    assert (client.status, client.complete) == (413, True)


# -- pulls -----------------------------------------------------------------------------------------------------


async def test_two_clients_pull_once_and_a_client_that_leaves_leaves_it_to_the_other(house: House) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await talk.chunk(b'{"status":"success"}\n')
        await talk.chunk(b"")

    primary = await house.hall.primary(starts(b'{"status":"pulling manifest"}\n', then=rest))
    front, body = house.front, b'{"model":"m"}'
    headers = [("content-length", str(len(body)))]
    first, second = (AsgiClient(front, "POST", "/api/pull", headers) for _ in range(2))
    async with trio.open_nursery() as nursery:
        await nursery.start(front.front.pulls.run)
        async with trio.open_nursery() as clients:
            for client in (first, second):
                clients.start_soon(client.ask, body)
            for client in (first, second):
                await client.first_write.wait()
            first.leave()
            go_on.set()
        nursery.cancel_scope.cancel()
    assert (second.complete, second.body) == (True, b'{"status":"pulling manifest"}\n{"status":"success"}\n')
    assert len(primary.received) == 1


async def test_a_pull_whose_body_is_unusual_goes_to_the_primary_unchanged(house: House) -> None:
    primary = await house.hall.primary(says(b"{}"))
    for body, headers in (
        (b'{"model":"m"}', [("transfer-encoding", "chunked")]),
        (b" " * BODY_BYTES + b'{"model":"m"}', [("content-length", str(BODY_BYTES + 13))]),
    ):
        await house.client("POST", "/api/pull", headers).ask(body)
        assert primary.received[-1].body == body


# -- the client leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/api/chat", "/api/blobs/sha256:1"])
async def test_a_client_that_leaves_while_it_sends_its_body_is_forgotten(house: House, target: str) -> None:
    await house.hall.primary(says(b"{}"))
    client = house.client("POST", target, [("content-length", "100")])
    client.send_body(b"{", more=True)
    client.leave()
    await client.run()
    assert not client.started.is_set()


async def test_a_client_that_leaves_the_queue_frees_its_place(house: House) -> None:
    client = house.client("POST", "/api/chat")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        await wait_all_tasks_blocked()
        assert house.hall.admission.queue()["depth"] == 1
        client.leave()
    assert repr(house.hall.admission) == NOTHING_LEFT
    assert not client.started.is_set()


async def test_a_client_that_leaves_before_the_first_byte_frees_its_worker(house: House) -> None:
    server = await house.hall.worker("a", hangs)
    client = house.client("POST", "/api/chat")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        await server.asked.wait()
        client.leave()
    await server.client_left.wait()


async def test_a_client_that_leaves_a_stream_frees_its_worker(house: House) -> None:
    server = await house.hall.worker("a", starts(LINE, then=hangs))
    client = house.client("POST", "/api/chat")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        await client.first_write.wait()
        client.leave()
    await server.client_left.wait()
    assert (client.body, client.complete) == (LINE, False)


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_client_that_leaves_the_primarys_answer_ends_it(house: House, method: str) -> None:
    primary = await house.hall.primary(starts(LINE, then=hangs))
    headers = [("content-length", "13")] if method == "POST" else []
    client = house.client(method, "/api/pull", headers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, b'{"model":"m"}' if method == "POST" else b"")
        await client.first_write.wait()
        client.leave()
    await primary.client_left.wait()


async def test_the_servers_cancellation_ends_everything(house: House) -> None:
    server = await house.hall.worker("a", starts(LINE, then=hangs))
    client = house.client("POST", "/api/chat")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        await client.first_write.wait()
        nursery.cancel_scope.cancel()
    await server.client_left.wait()


# -- a worker breaks -------------------------------------------------------------------------------------------


async def test_a_broken_stream_ends_with_an_error_line(house: House) -> None:
    await house.hall.worker("a", starts(LINE, then=dies))
    client = await house.post("/api/chat", CHAT)
    assert (client.complete, "error" in json.loads(client.body.splitlines()[-1])) == (True, True)


async def test_a_broken_body_without_lines_is_left_incomplete(house: House) -> None:
    await house.hall.worker("a", starts(b'{"half":', kind="application/json", then=dies))
    client = await house.post("/api/chat", CHAT)
    assert (client.body, client.complete) == (b'{"half":', False)


# -- what is counted -------------------------------------------------------------------------------------------


async def test_whatever_clients_ask_for_the_labels_are_few(house: House) -> None:
    await house.hall.worker("a", says(b"{}"))
    await house.hall.primary(says(b"{}"))
    for number in range(20):
        await house.client("GET", f"/api/{number}/x").ask()
        await house.client("BREW", f"/v1/{number}").ask()
    await house.post("/api/chat", CHAT)
    text = house.hall.metrics.render(0, [], []).decode()
    routes = set(re.findall(r'chimera_requests_total\{.*route="([^"]+)"', text))
    assert routes == {"primary", "/api/chat"}
    assert 'chimera_requests_total{outcome="ok",route="primary",status="200"} 40.0' in text


# -- all workers at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", b'{"model":"m"}'), ("/api/chat", b'{"model":"m","messages":[],"keep_alive":0}')],
)
async def test_a_load_and_an_unload_reach_every_worker_concerned(house: House, path: str, body: bytes) -> None:
    servers = [await house.hall.worker(name, says(b'{"done":true}')) for name in "abc"]
    for name in "abc":
        house.hall.admission.worker_models(name, frozenset({"m:latest"}))
    client = await house.post(path, body)
    assert (client.status, client.body, client.headers["x-chimera-worker"]) == (200, b'{"done":true}', "a,b,c")
    assert [server.received[0].body for server in servers] == [body] * 3


# -- options that would load a model anew ----------------------------------------------------------------------------

BIG = b'{"model":"m","messages":[{}],"options":{"num_ctx":8192,"seed":1}}'


@pytest.mark.parametrize(
    ("pin", "body", "dropped"), [(False, BIG, None), (True, BIG.replace(b'"num_ctx":8192,', b""), "num_ctx")]
)
async def test_load_options_are_passed_on_or_taken_out(
    house: House, pin: bool, body: bytes, dropped: str | None
) -> None:
    house.pin_load_options = pin
    server = await house.hall.worker("a", streams(LINE))
    client = await house.post("/api/chat", BIG)
    assert (server.received[0].body, client.headers.get("x-chimera-options-dropped")) == (body, dropped)
    assert server.received[0].header("content-length") == str(len(body))


# -- the place in the queue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False])
async def test_a_client_that_asks_hears_of_its_place_before_its_answer(house: House, asks: bool) -> None:
    go_on, told = trio.Event(), []

    async def inform(status: int, headers: list[tuple[bytes, bytes]]) -> None:
        told.append((status, dict(headers)))

    async def waits(talk: Conversation) -> None:
        await go_on.wait()
        await says(b"{}")(talk)

    server = await house.hall.worker("a", waits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.post, "/api/chat", CHAT)
        await server.asked.wait()
        headers = [("content-length", str(len(CHAT))), ("x-request-id", "r2")]
        second = house.client("POST", "/api/chat", [*headers, *([("x-chimera-queue", "1")] if asks else [])])
        second.scope["extensions"] = {INFORMATIONAL: inform}
        nursery.start_soon(second.ask, CHAT)
        await wait_all_tasks_blocked()
        go_on.set()
    assert second.status == 200
    assert told == ([(102, {b"x-request-id": b"r2", b"x-chimera-queue-position": b"1"})] if asks else [])


async def test_bodies_that_are_being_read_are_bounded_together(house: House) -> None:
    """Each alone is small enough; a thousand slow senders of large ones would take all memory before any ticket."""
    server = await house.hall.worker("a", streams(LINE))
    front = house.front
    front.front._reading = Room(2 * MAX_BODY_BYTES)
    part = b"x" * (MAX_BODY_BYTES - 100)
    async with trio.open_nursery() as nursery:
        slow = [AsgiClient(front, "POST", "/api/chat") for _ in range(2)]
        for client in slow:
            nursery.start_soon(client.run)
            client.send_body(part, more=True)
        await wait_all_tasks_blocked()
        third = AsgiClient(front, "POST", "/api/chat")
        assert (await third.ask(part)).status == 503
        for client in slow:
            client.leave()
    assert front.front._reading.bytes == 0
    assert (await AsgiClient(front, "POST", "/api/chat").ask(CHAT)).status == 200
    assert len(server.received) == 1

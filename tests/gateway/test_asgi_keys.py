"""API keys through the whole gateway: what each dialect's clients are told, and what a worker gets to see."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.asgi import AsgiLane, Message, Send
from gateway.front import Front
from gateway.keyring import Keyring
from gateway.limits import Limits
from gateway.pulls import Pulls
from tests.fakes.asgi import AsgiClient
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import Conversation, says, streams
from tests.gateway.test_keyring import FakeStore

CHAT = b'{"model":"m","messages":[{}]}'
LINE = b'{"response":"a","done":true}\n'
COUNTED = b'{"done":true,"prompt_eval_count":30,"eval_count":2}'
NEEDED = "an API key is needed (Authorization: Bearer KEY, or x-api-key: KEY)"
UNKNOWN = "this API key is not known here, or was revoked"
FORBIDDEN = "this API key may not change the model store"


class House:
    """A gateway that asks for keys."""

    def __init__(self, hall: Hall) -> None:
        self.hall = hall
        self.keyring = Keyring(FakeStore(), required=True)

    async def pages(self, scope: Message, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page", "more_body": False})

    async def key(self, **more: Any) -> str:
        limits = {name: more.pop(name) for name in list(more) if name in Limits.__slots__}
        secret, _ = await self.keyring.create("n", Limits(**limits), priority=9, models=more.pop("models", False))
        return secret

    def client(self, method: str, target: str, key: str | None = None, *more: tuple[str, str]) -> AsgiClient:
        hall = self.hall
        front = Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=1000, keyring=self.keyring)
        return AsgiClient(
            AsgiLane(front, self.pages), method, target, [*([("authorization", f"Bearer {key}")] if key else []), *more]
        )

    async def ask(
        self, target: str = "/api/chat", key: str | None = None, *more: tuple[str, str], method: str = "POST"
    ) -> AsgiClient:
        return await self.client(method, target, key, ("content-length", str(len(CHAT))), *more).ask(CHAT)


@pytest.fixture
async def house(nursery: trio.Nursery) -> AsyncIterator[House]:
    made = House(Hall(nursery))
    yield made
    made.hall.upstream.close()
    assert repr(made.hall.admission) == NOTHING_LEFT
    assert all(row["inflight"] == 0 for row in made.keyring.rows())


def openai_error(sentence: str, code: str, kind: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def anthropic_error(sentence: str, kind: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": sentence}}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/api/chat", {"error": "{}"}),
        ("/api/tags", {"error": "{}"}),
        ("/v1/chat/completions", openai_error("{}", "invalid_api_key")),
        ("/v1/models", openai_error("{}", "invalid_api_key")),
        ("/v1/messages", anthropic_error("{}", "authentication_error")),
    ],
)
async def test_401_in_every_dialect(house: House, path: str, error: dict[str, object]) -> None:
    method = "GET" if path in ("/api/tags", "/v1/models") else "POST"
    for key, sentence in ((None, NEEDED), ("sk-unused", UNKNOWN)):
        client = await house.ask(path, key, method=method)
        assert (client.status, client.complete) == (401, True)
        assert client.headers["www-authenticate"] == 'Bearer realm="chimera"'
        assert json.loads(client.body) == json.loads(json.dumps(error).replace("{}", sentence))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/api/chat", lambda said: {"error": said}),
        ("/v1/chat/completions", lambda said: openai_error(said, "rate_limit_exceeded", "rate_limit_error")),
        ("/v1/messages", lambda said: anthropic_error(said, "rate_limit_error")),
    ],
)
async def test_429_in_every_dialect(house: House, path: str, error: Any, mock_clock: MockClock) -> None:
    await house.hall.worker("a", says(b"{}"))
    key = await house.key(requests_per_minute=1)
    assert (await house.ask(path, key)).status == 200
    client = await house.ask(path, key)
    assert (client.status, client.headers["retry-after"]) == (429, "60")
    assert json.loads(client.body) == error("over this API key's limit of requests a minute (1)")


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("POST", "/api/pull", {"error": FORBIDDEN}),
        ("POST", "/api/blobs/sha256:1", {"error": FORBIDDEN}),
        ("DELETE", "/api/delete", {"error": FORBIDDEN}),
        ("DELETE", "/v1/models/m", openai_error(FORBIDDEN, "insufficient_permissions")),
        ("DELETE", "/v1/messages", anthropic_error(FORBIDDEN, "permission_error")),
    ],
)
async def test_403_in_every_dialect(house: House, method: str, path: str, error: dict[str, object]) -> None:
    primary = await house.hall.primary(says(b"{}"))
    client = await house.ask(path, await house.key(), method=method)
    assert (client.status, json.loads(client.body)) == (403, error)
    assert primary.received == []
    assert (await house.ask(path, await house.key(models=True), method=method)).status == 200


async def test_a_refusal_comes_before_the_body_is_read(house: House) -> None:
    client = house.client("POST", "/api/chat", None, ("content-length", "5"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await client.first_write.wait()
        assert client.read_parts == 0
        client.send_body(b"12345")
    assert client.status == 401


async def test_a_preflight_reaches_ollama_which_answers_it(house: House) -> None:
    primary = await house.hall.primary(says(b"", "access-control-allow-origin: *", status=204))
    headers = [("origin", "http://localhost:3000"), ("access-control-request-headers", "authorization")]
    client = await house.client("OPTIONS", "/api/chat", None, *headers).ask()
    assert (client.status, client.headers["access-control-allow-origin"]) == (204, "*")
    assert primary.received[0].header("access-control-request-headers") == "authorization"


async def test_what_is_not_ollamas_needs_no_key(house: House) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/admin/keys"):
        assert (await house.client("GET", path).ask()).body == b"page"


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_worker_never_sees_a_key(house: House, header: str) -> None:
    server = await house.hall.worker("a", says(b"{}"))
    primary = await house.hall.primary(says(b"{}"))
    key = await house.key()
    named = (header, f"Bearer {key}" if header == "authorization" else key)
    assert (await house.ask("/v1/messages", None, named, ("x-other", "1"))).status == 200
    assert (await house.ask("/api/show", None, named)).status == 200
    for received in (*server.received, *primary.received):
        assert received.header(header) is None
        assert key not in repr(received)
    assert server.received[0].header("x-other") == "1"


async def test_the_queue_is_fair_to_keys_and_knows_their_priority(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    infer = house.hall.exchange.infer

    async def looking(request: Any, *args: Any) -> None:
        seen.append((request.caller, request.priority))
        await infer(request, *args)

    monkeypatch.setattr(house.hall.exchange, "infer", looking)
    await house.hall.worker("a", says(b"{}"))
    key = await house.key()
    await house.ask("/api/chat", key)
    await house.ask("/api/chat", key, ("x-chimera-priority", "7"))
    house.keyring.required = False
    await house.ask("/api/chat", None, ("x-chimera-priority", "7"))
    assert seen == [("key:k1", 0), ("key:k1", 7), ("127.0.0.1", 0)]


async def test_a_priority_that_is_none_is_refused_in_one_line(house: House) -> None:
    client = await house.ask("/api/chat", await house.key(), ("x-chimera-priority", "urgent"))
    assert (client.status, json.loads(client.body)) == (
        400, {"error": "X-Chimera-Priority must be a whole number, 0 to 9"},
    )  # fmt: skip


async def test_tokens_are_taken_after_the_answer_and_the_next_one_waits(house: House, mock_clock: MockClock) -> None:
    await house.hall.worker("a", says(COUNTED))
    key = await house.key(tokens_per_minute=20)
    assert (await house.ask("/api/chat", key)).status == 200
    assert house.keyring.row("k1")["tokens_left"] == 20 - 32
    refused = await house.ask("/api/chat", key)
    assert (refused.status, refused.headers["retry-after"]) == (429, "39")
    mock_clock.jump(39)
    assert (await house.ask("/api/chat", key)).status == 200


async def test_a_request_holds_its_place_until_its_last_byte_whoever_ends_it(house: House) -> None:
    go_on = trio.Event()

    async def waits(talk: Conversation) -> None:
        await go_on.wait()
        await streams(LINE)(talk)

    await house.hall.worker("a", waits, slots=1)
    key = await house.key(concurrency=2)
    async with trio.open_nursery() as nursery:
        running, queued = (house.client("POST", "/api/chat", key) for _ in range(2))
        for client in (running, queued):
            nursery.start_soon(client.ask, CHAT)
            await wait_all_tasks_blocked()
        refused = await house.ask("/api/chat", key)
        assert (refused.status, house.keyring.row("k1")["inflight"]) == (429, 2)
        queued.leave()
        await wait_all_tasks_blocked()
        assert house.keyring.row("k1")["inflight"] == 1
        await house.keyring.revoke("k1")
        assert (await house.ask("/api/chat", key)).status == 401
        go_on.set()
    assert (running.status, running.body) == (200, LINE)
    assert not queued.started.is_set()

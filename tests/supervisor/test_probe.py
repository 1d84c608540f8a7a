"""What workers say when asked, and what strangers on their ports may say without harm."""

import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor import probe
from supervisor.errors import NotAChatModel, StartFailed
from supervisor.ports import owns_port
from supervisor.probe import Loaded, Prober
from tests.fakes.serving import free_port, serving

Talk = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    it = Prober()
    yield it
    await it.aclose()


@asynccontextmanager
async def answering(body: bytes, *, status: str = "200 OK", head: bytes | None = None) -> AsyncIterator[int]:
    """A server that answers everything with the same bytes; yields its port."""
    said = head if head is not None else b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body))

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            while data := await stream.receive_some(65536):
                if data.startswith((b"GET", b"POST")):  # else a body that came by itself
                    await stream.send_all(said + body)
                if head is not None:
                    return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_an_ollama_says_its_version_its_models_and_its_store(prober: Prober, tmp_path: Path) -> None:
    with serving(tmp_path, model="tiny") as fake:
        port = int(fake.url.rsplit(":", 1)[1])
        assert await prober.version(port) == "0.5.4"
        assert await prober.ps(port) == ()
        assert await prober.stored(port) == frozenset({"tiny:latest"})
        await prober.load(port, "tiny", 5)
        assert [model.name for model in await prober.ps(port) or ()] == ["tiny:latest"]
        assert await owns_port(fake.process.pid, port)
        assert not await owns_port(os.getpid(), port)


NO_GOOD_ANSWERS: list[tuple[bytes, str]] = [
    (b'{"version": "1"}', "500 Oops"),
    (b"{}", "200 OK"),
    (b"[]", "200 OK"),
    (b"null", "200 OK"),
    (b"7", "200 OK"),
    (b"<html>", "200 OK"),
    (b"", "200 OK"),
    (b"\xff\xfe\xfd", "200 OK"),
    (b'"\xff"', "200 OK"),
    (b'{"models": 5}', "200 OK"),
    (b'{"models": [{}]}', "200 OK"),
    (b'{"models": ["x"]}', "200 OK"),
    (b'{"version": "1"}', "301 Elsewhere"),
]


@pytest.mark.parametrize(("body", "status"), NO_GOOD_ANSWERS)
async def test_an_answer_that_is_not_ollamas_is_none(prober: Prober, body: bytes, status: str) -> None:
    async with answering(body, status=status) as port:
        assert await prober.version(port) is None
        assert await prober.ps(port) is None
        assert await prober.stored(port) is None


@pytest.mark.parametrize("size", [b"1e999", b"Infinity", b"NaN", b'"x"', b"[1]", b"9" * 5000])
async def test_a_size_that_is_none_makes_no_good_answer(prober: Prober, size: bytes) -> None:
    async with answering(b'{"models": [{"name": "m", "size": ' + size + b"}]}") as port:
        assert await prober.ps(port) is None


@pytest.mark.parametrize("head", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"])
async def test_a_stranger_that_does_not_speak_http_is_none(prober: Prober, head: bytes) -> None:
    async with answering(b"", head=head) as port:
        assert await prober.version(port) is None


async def test_no_listener_is_none(prober: Prober) -> None:
    port = free_port()
    assert await prober.version(port) is None
    assert await prober.stored(port) is None


async def test_a_listener_that_says_nothing_is_none_in_time(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, trio.fail_after(3):
        assert await prober.version(silent.getsockname()[1]) is None


async def test_a_listener_that_drips_is_none_in_time(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 0.2)

    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.02)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, quiet(drip), 0, host="127.0.0.1"))
            assert await prober.version(listeners[0].socket.getsockname()[1]) is None
            nursery.cancel_scope.cancel()


def quiet(handler: Talk) -> Talk:
    """A handler whose client may leave."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            return

    return handle


# -- what is loaded -----------------------------------------------------------------------------------------------

NEW = (
    b'{"models":[{"name":"a:latest","model":"a:latest","size":300,"size_vram":200,"context_length":4096,'
    b'"expires_at":"2026-11-24T19:20:00.123456789+01:00"}]}'
)
OLD = b'{"models":[{"name":"a:latest","size":300,"expires_at":"2318-01-01T00:00:00Z"}]}'  # 0.5.4, on a CPU, for ever
ODD = b'{"models":[{"name":"a:latest","size":300,"expires_at":"soon","context_length":"much"}]}'


@pytest.mark.parametrize(
    ("body", "loaded"),
    [
        (NEW, Loaded("a:latest", 300, 200, datetime(2026, 11, 24, 18, 20, 0, 123456, tzinfo=UTC), 4096)),
        (OLD, Loaded("a:latest", 300, 0, datetime(2318, 1, 1, tzinfo=UTC), None)),
        (ODD, Loaded("a:latest", 300, 0, None, None)),
    ],
)
async def test_what_is_loaded_is_read_from_old_and_new_versions(prober: Prober, body: bytes, loaded: Loaded) -> None:
    async with answering(body) as port:
        assert await prober.ps(port) == (loaded,)


@pytest.mark.parametrize("body", [b'{"models":null}', b'{"models":[]}'])
async def test_nothing_loaded_is_an_answer_too(prober: Prober, body: bytes) -> None:
    async with answering(body) as port:
        assert await prober.ps(port) == ()


# -- one token ----------------------------------------------------------------------------------------------------


async def canary(prober: Prober, port: int, **more: Any) -> str | None:
    asked: dict[str, Any] = {"context_length": 2048, "keep_alive": None, "timeout_s": 30.0}
    return await prober.canary(port, "tiny:latest", **(asked | more))


async def test_one_token_is_asked_of_a_real_server(prober: Prober, tmp_path: Path) -> None:
    with serving(tmp_path, model="tiny") as fake:
        port = int(fake.url.rsplit(":", 1)[1])
        assert await canary(prober, port) is None
        fake.behaves(hang_after=0)
        assert await canary(prober, port, timeout_s=0.2) == "no token came within 0.2 s"
        fake.behaves(error_line_after=0)
        assert "it answered 500: " in (await canary(prober, port) or "")
        fake.behaves(truncate_after=0)
        assert "the connection broke: " in (await canary(prober, port) or "")
    assert "the connection broke: " in (await canary(prober, port) or "")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("200 OK", b'{"response":"h","done":true}', None),
        ("200 OK", b'{"response":"h","done":false}', "its answer has no end"),
        ("200 OK", b'{"error":"unexpected EOF"}', "its answer has no end"),
        ("200 OK", b"<html>", "its answer has no end"),
        ("200 OK", b"[]", "its answer has no end"),
        ("503 Busy", b'{"error":"server busy"}', 'it answered 503: {"error":"server busy"}'),
        ("500 Oh", b"a\nb", "it answered 500: a b"),
    ],
)
async def test_what_went_wrong_is_said_in_one_line(prober: Prober, status: str, body: bytes, said: str | None) -> None:
    async with answering(body, status=status) as port:
        assert await canary(prober, port) == said


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("400 Bad Request", "^tiny:latest generates no text$"),
        ("404 Not Found", "^tiny:latest is not in the store$"),  # deleted while it was loaded
    ],
)
async def test_a_model_of_which_no_token_can_be_asked_is_no_fault_of_the_worker(
    prober: Prober, status: str, sentence: str
) -> None:
    async with answering(b'{"error":"it does not support generate"}', status=status) as port:
        with pytest.raises(NotAChatModel, match=sentence):
            await canary(prober, port)


@pytest.mark.parametrize(
    ("context_length", "keep_alive", "more"),
    [
        (2048, "90s", {"options": {"num_predict": 1, "num_ctx": 2048}, "keep_alive": "90s"}),
        (2048, -1, {"options": {"num_predict": 1, "num_ctx": 2048}, "keep_alive": -1}),
        (None, None, {"options": {"num_predict": 1}}),
    ],
)
async def test_the_question_is_one_that_loads_nothing_anew(
    prober: Prober, context_length: int | None, keep_alive: str | int | None, more: dict[str, Any]
) -> None:
    asked: list[bytes] = []

    async def talk(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(b"}"):
            data += await stream.receive_some(65536)
        asked.append(data.partition(b"\r\n\r\n")[2])
        await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"done":true}')

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        assert await canary(prober, port, context_length=context_length, keep_alive=keep_alive) is None
        nursery.cancel_scope.cancel()
    plain = {"model": "tiny:latest", "prompt": "hi", "raw": True, "stream": False}
    assert json.loads(asked[0]) == plain | more


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"load_error": "no space"}, r'^tiny cannot be loaded: \{"error":"no space"\}$'),
        ({"load_s": 30}, r"^tiny was not loaded within 0.3 s$"),
    ],
)
async def test_a_load_that_fails_says_why(
    prober: Prober, tmp_path: Path, keys: dict[str, object], sentence: str
) -> None:
    with serving(tmp_path, model="tiny") as fake:
        fake.behaves(**keys)
        with pytest.raises(StartFailed, match=sentence):
            await prober.load(int(fake.url.rsplit(":", 1)[1]), "tiny", 0.3)


async def test_a_load_from_a_server_that_is_gone_says_so(prober: Prober) -> None:
    with pytest.raises(StartFailed, match=r"^it went away while loading m: "):
        await prober.load(free_port(), "m", 1)


async def test_a_model_that_only_embeds_is_loaded_by_an_embedding(prober: Prober) -> None:
    asked: list[bytes] = []

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            while data := await stream.receive_some(65536):
                if not data.startswith(b"POST"):
                    continue  # the body
                asked.append(data.split()[1])
                good = b"/api/embed" in data.split(b"\r\n")[0]
                body = b"{}" if good else b'{"error":"does not support generate"}'
                status = b"200 OK" if good else b"400 Bad Request"
                await stream.send_all(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        await prober.load(listeners[0].socket.getsockname()[1], "embedder", 5)
        nursery.cancel_scope.cancel()
    assert asked == [b"/api/generate", b"/api/embed"]


async def test_a_refusal_of_both_ways_gives_the_first_reason(prober: Prober) -> None:
    async with answering(b"first", status="400 Bad Request") as port:
        with pytest.raises(StartFailed, match=r"^m cannot be loaded: first$"):
            await prober.load(port, "m", 5)

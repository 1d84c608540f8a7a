"""What workers say when asked, and what strangers on their ports may say without harm."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor import probe
from supervisor.errors import StartFailed
from supervisor.probe import PortBook, Prober, owns_port, port_holder, port_is_free
from tests.fakes.house import free_port_base
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
        assert await prober.models(port) == frozenset()
        assert await prober.stored(port) == frozenset({"tiny:latest"})
        await prober.load(port, "tiny", 5)
        assert await prober.models(port) == frozenset({"tiny:latest"})
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
        assert await prober.models(port) is None
        assert await prober.stored(port) is None


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


# -- ports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_not_free_and_its_holder_is_named(host: str) -> None:
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        assert not port_is_free(port)
        assert port_holder(port).startswith(f"process {os.getpid()} (")
    assert port_is_free(port)
    assert port_holder(port) == "another process"


def test_a_host_that_is_not_here_is_not_free() -> None:
    assert not port_is_free(free_port(), "192.0.2.1")


async def test_nobody_who_has_gone_owns_a_port() -> None:
    assert not await owns_port(2**22 + 1, 80)


def test_ports_are_given_one_by_one_and_the_preferred_one_if_it_is_free() -> None:
    base = free_port_base()
    book = PortBook(base, 3)
    assert [book.take(None), book.take(base + 2)] == [base, base + 2]
    assert book.take(base) == base + 1  # somebody has it
    with pytest.raises(StartFailed, match=rf"^every port from {base} to {base + 2} is taken \(WORKER_PORT_BASE\)$"):
        book.take(None)
    book.give_back(base + 1)
    book.give_back(base + 1)
    assert book.take(None) == base + 1


def test_a_port_that_a_stranger_listens_on_is_passed_over() -> None:
    base = free_port_base()
    with socket.create_server(("127.0.0.1", base)):
        assert PortBook(base, 3).take(base) == base + 1

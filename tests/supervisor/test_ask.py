"""Small questions over one kept connection: answers, refusals, and servers that are not what they should be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from supervisor import ask
from supervisor.ask import Asker

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@asynccontextmanager
async def server(*scripts: list[bytes]) -> AsyncIterator[tuple[int, list[int]]]:
    """A server that plays one script a connection, an answer a request; yields its port and what it was asked."""
    asked: list[int] = []
    left = list(scripts)

    async def serve(stream: trio.SocketStream) -> None:
        script, number = left.pop(0) if left else [], len(asked)
        asked.append(0)
        for answer in script:
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                part = await stream.receive_some(4096)
                if not part:
                    return
                data += part
            asked[number] += 1
            await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1], asked
        nursery.cancel_scope.cancel()


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    made = Asker()
    yield made
    made.close()


async def test_one_connection_serves_for_many_questions(asker: Asker) -> None:
    async with server([GOOD] * 5) as (port, asked):
        assert [await asker.get(port, "/") for _ in range(5)] == [b"hi"] * 5
        assert asked == [5]


async def test_a_connection_that_was_closed_meanwhile_costs_a_new_one(asker: Asker) -> None:
    async with server([GOOD], [GOOD]) as (port, asked):
        assert [await asker.get(port, "/") for _ in range(2)] == [b"hi", b"hi"]
        assert asked == [1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (5 * 1024**2),
        b"",
    ],
    ids=["refused", "cut", "another protocol", "endless", "closed"],
)
async def test_whatever_else_is_answered_is_none(asker: Asker, answer: bytes) -> None:
    async with server([answer], [answer]) as (port, _):
        assert await asker.get(port, "/") is None


async def test_nobody_there_is_none(asker: Asker) -> None:
    async with server() as (port, _):
        pass
    assert await asker.get(port, "/") is None


async def test_a_question_given_up_leaves_no_connection_behind(asker: Asker) -> None:
    async with server([GOOD, b""], [GOOD]) as (port, _):
        assert await asker.get(port, "/") == b"hi"
        with trio.move_on_after(0):
            await asker.get(port, "/")
        assert asker._idle == {}
        assert await asker.get(port, "/") == b"hi"


async def test_a_question_given_up_while_it_is_answered_closes_its_connection(asker: Asker) -> None:
    halfway, left = trio.Event(), trio.Event()

    async def half(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        halfway.set()
        try:
            await stream.receive_some(1)  # returns when the other side closes
        except trio.BrokenResourceError:
            pass  # so it does by a reset
        left.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, half, 0, host="127.0.0.1"))
            async with trio.open_nursery() as asking:
                asking.start_soon(asker.get, listeners[0].socket.getsockname()[1], "/")
                await halfway.wait()
                asking.cancel_scope.cancel()
            assert asker._idle == {}
            await left.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        GOOD + GOOD,  # the second answers no question of ours
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ],
    ids=["more than asked for", "to be closed", "an old protocol"],
)
async def test_a_connection_that_cannot_serve_again_is_not_kept(asker: Asker, answer: bytes) -> None:
    async with server([answer, GOOD], [answer, GOOD]) as (port, asked):
        assert [await asker.get(port, "/") for _ in range(2)] == [b"hi", b"hi"]
        assert asker._idle == {}
        assert asked == [1, 1]


async def test_an_answer_in_pieces_and_in_chunks_is_put_together(asker: Asker) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    async with server([b"HTTP/1.1 100 Continue\r\n\r\n" + chunked, GOOD]) as (port, asked):
        assert [await asker.get(port, "/") for _ in range(2)] == [b"hello", b"hi"]
        assert asked == [2]


async def test_a_connection_that_nobody_uses_is_closed_in_the_end(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "IDLE_CONNECTION_S", 0.0)
    async with server([GOOD] * 9) as (pruned, _), server([GOOD] * 9) as (port, _):
        assert await asker.get(pruned, "/") == b"hi"
        connection = asker._idle[pruned]
        assert await asker.get(port, "/") == b"hi"
        assert set(asker._idle) == {port}
        assert connection.stream.socket.fileno() == -1


async def test_questions_at_the_same_time_do_not_wait_for_each_other(asker: Asker) -> None:
    async with server([GOOD], [GOOD], [GOOD]) as (port, asked):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(asker.get, port, "/")
        assert asked == [1, 1, 1]
        assert len(asker._idle) == 1

"""One exchange with a worker, over real sockets; the worker is scripted."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway import link as link_module
from gateway import upstream as module
from gateway.errors import ConnectFailed, FirstByteTimeout, Stalled, WorkerLost
from gateway.headers import Headers
from gateway.upstream import Answer, Upstream
from tests.fakes.worker_server import (
    Behaviour,
    Conversation,
    dies,
    dies_mid_chunk,
    hangs,
    says,
    starts,
    streams,
    worker_server,
)

HOST: Headers = [(b"host", b"127.0.0.1")]
# A test that hangs says so; no result depends on it.
TOO_LONG_S = 10.0


@asynccontextmanager
async def running(
    first_byte_timeout_s: float = TOO_LONG_S, stall_timeout_s: float = TOO_LONG_S
) -> AsyncIterator[Upstream]:
    made = Upstream(first_byte_timeout_s=first_byte_timeout_s, stall_timeout_s=stall_timeout_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running() as made:
        yield made


async def whole(answer: Answer) -> bytes:
    body = b""
    while part := await answer.read():
        body += part
    return body


async def get(upstream: Upstream, port: int, target: bytes = b"/") -> bytes:
    async with upstream.exchange(port, "GET", target, HOST, None) as answer:
        return await whole(answer)


async def post(upstream: Upstream, port: int, body: bytes) -> bytes:
    headers: Headers = [*HOST, (b"content-length", str(len(body)).encode())]
    async with upstream.exchange(port, "POST", b"/api/chat?a=b", headers, body) as answer:
        return await whole(answer)


async def close_delimited(talk: Conversation) -> None:
    await talk.head("connection: close")
    await talk.send(b"until the end")
    await talk.die()


async def after_continue(talk: Conversation) -> None:
    await talk.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
    await says(b"until the end")(talk)


async def in_small_pieces(talk: Conversation) -> None:
    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\nuntil the end":
        await talk.send(bytes([byte]))


@pytest.mark.parametrize(
    "answers",
    [says(b"until the end"), streams(b"until ", b"the end"), close_delimited, after_continue, in_small_pieces],
)
async def test_every_framing_of_a_body_is_read_to_its_end(upstream: Upstream, answers: Behaviour) -> None:
    async with worker_server(answers) as worker:
        assert await get(upstream, worker.port) == b"until the end"


async def test_the_request_arrives_as_it_was_sent(upstream: Upstream) -> None:
    async with worker_server(says(b"{}")) as worker:
        await post(upstream, worker.port, b'{"model":"m"}')
        (request,) = worker.received
        assert (request.method, request.target, request.body) == ("POST", "/api/chat?a=b", b'{"model":"m"}')


async def test_status_and_headers_are_there_before_the_body(upstream: Upstream) -> None:
    async with (
        worker_server(starts(kind="text/event-stream", then=hangs)) as worker,
        upstream.exchange(worker.port, "GET", b"/", HOST, None) as answer,
    ):
        assert answer.status == 200
        assert (b"content-type", b"text/event-stream") in answer.headers


async def test_chunks_that_came_together_are_read_together(upstream: Upstream) -> None:
    async def all_at_once(talk: Conversation) -> None:
        await talk.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")

    async with worker_server(all_at_once) as worker, upstream.exchange(worker.port, "GET", b"/", HOST, None) as answer:
        assert [await answer.read(), await answer.read(), await answer.read()] == [b"ab", b"", b""]


# -- the pool --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [says(b"x"), streams(b"x"), says(b""), says(b"", status=404)])
async def test_a_connection_is_used_again(upstream: Upstream, answers: Behaviour) -> None:
    async with worker_server(answers) as worker:
        for _ in range(3):
            await get(upstream, worker.port)
        await post(upstream, worker.port, b"{}")
        assert [request.connection for request in worker.received] == [1, 1, 1, 1]


async def test_a_head_request_has_no_body_and_leaves_the_connection_good(upstream: Upstream) -> None:
    async with worker_server(says(b"not sent")) as worker:
        for _ in range(2):
            async with upstream.exchange(worker.port, "HEAD", b"/", HOST, None) as answer:
                assert await whole(answer) == b""
        assert worker.connections == 1


async def test_two_exchanges_at_once_have_two_connections(upstream: Upstream) -> None:
    async with worker_server(says(b"x")) as worker:
        async with upstream.exchange(worker.port, "GET", b"/1", HOST, None) as first:
            assert await get(upstream, worker.port, b"/2") == b"x"
            assert await whole(first) == b"x"
        assert worker.connections == 2


async def test_a_connection_that_the_worker_ends_after_the_answer_is_not_used_again(upstream: Upstream) -> None:
    async with worker_server(says(b"x", "connection: close")) as worker:
        await get(upstream, worker.port)
        await get(upstream, worker.port)
        assert worker.connections == 2


async def test_a_connection_that_died_idle_is_not_used(upstream: Upstream) -> None:
    async def answers_and_closes(talk: Conversation) -> None:
        await says(b"x")(talk)
        await talk.die()

    async with worker_server(answers_and_closes, says(b"y")) as worker:
        await get(upstream, worker.port)
        (idle,) = upstream._idle[worker.port]
        await trio.lowlevel.wait_readable(idle.sock)  # the close has arrived
        assert await get(upstream, worker.port) == b"y"
        assert [request.connection for request in worker.received] == [1, 2]


async def test_bytes_that_nobody_asked_for_spoil_a_connection(upstream: Upstream) -> None:
    async def says_too_much(talk: Conversation) -> None:
        await talk.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
        )

    async with worker_server(says_too_much, says(b"good")) as worker:
        assert await get(upstream, worker.port) == b"x"
        assert await get(upstream, worker.port) == b"good"


async def test_a_connection_that_was_idle_too_long_is_not_used(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker_server(says(b"x")) as worker:
        await get(upstream, worker.port)
        monkeypatch.setattr(link_module, "IDLE_CONNECTION_S", -1.0)
        await get(upstream, worker.port)
        assert worker.connections == 2
        await worker.idle_closed.wait()


async def test_no_more_idle_connections_are_kept_than_agreed(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_PER_WORKER", 1)
    async with worker_server(says(b"x")) as worker:
        async with upstream.exchange(worker.port, "GET", b"/1", HOST, None) as first:
            await get(upstream, worker.port)
            await whole(first)
        await worker.idle_closed.wait()
        assert len(upstream._idle[worker.port]) == 1


async def test_a_pooled_connection_that_breaks_costs_the_request_one_retry(upstream: Upstream) -> None:
    async with worker_server(says(b"x"), dies, says(b"again")) as worker:
        await get(upstream, worker.port)
        assert await post(upstream, worker.port, b"{}") == b"again"
        assert [(request.connection, request.body) for request in worker.received[1:]] == [(1, b"{}"), (2, b"{}")]


async def test_the_retry_is_the_only_one(upstream: Upstream) -> None:
    async with worker_server(says(b"x"), dies) as worker:
        await get(upstream, worker.port)
        with pytest.raises(WorkerLost):
            await get(upstream, worker.port)
        assert len(worker.received) == 3


async def test_a_new_connection_that_breaks_is_not_retried_here(upstream: Upstream) -> None:
    async with worker_server(dies) as worker:
        with pytest.raises(WorkerLost, match="before it answered"):
            await get(upstream, worker.port)
        assert len(worker.received) == 1


@pytest.mark.parametrize("way", ["close", "forget"])
async def test_idle_connections_are_closed_when_asked(upstream: Upstream, way: str) -> None:
    async with worker_server(says(b"x")) as worker:
        await get(upstream, worker.port)
        if way == "aclose":
            upstream.close()
        else:
            upstream.forget(worker.port)
            upstream.forget(worker.port)
        await worker.idle_closed.wait()


# -- leaving early ---------------------------------------------------------------------------------------------


async def test_leaving_before_the_end_closes_the_connection(upstream: Upstream) -> None:
    async with worker_server(starts(b"x", then=hangs)) as worker:
        async with upstream.exchange(worker.port, "GET", b"/", HOST, None) as answer:
            assert await answer.read() == b"x"
        await worker.client_left.wait()


async def test_an_answer_that_was_not_read_to_its_end_spoils_the_connection(upstream: Upstream) -> None:
    async with worker_server(says(b"x")) as worker:
        async with upstream.exchange(worker.port, "GET", b"/", HOST, None):
            pass
        await get(upstream, worker.port)
        assert worker.connections == 2


@pytest.mark.parametrize("answers", [hangs, starts(then=hangs), starts(b"x", then=hangs)])
async def test_cancellation_closes_the_connection(upstream: Upstream, answers: Behaviour) -> None:
    async with worker_server(answers) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(get, upstream, worker.port)
        await worker.asked.wait()
        nursery.cancel_scope.cancel()
    assert not upstream._idle.get(worker.port)
    assert worker.connections == 1


async def test_the_worker_sees_that_its_client_was_cancelled(upstream: Upstream) -> None:
    async with worker_server(hangs) as worker:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, upstream, worker.port)
            await worker.asked.wait()
            nursery.cancel_scope.cancel()
        await worker.client_left.wait()


# -- workers that fail -----------------------------------------------------------------------------------------


async def test_a_port_that_nobody_listens_on_is_a_failed_connection(upstream: Upstream) -> None:
    async with worker_server(dies) as worker:
        pass
    with pytest.raises(ConnectFailed, match="refused"):
        await get(upstream, worker.port)


async def test_having_no_descriptor_left_is_a_failed_connection(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(ConnectFailed, match="Too many open files"):
        await get(upstream, 1)


async def test_a_worker_that_is_killed_while_it_computes_is_lost(upstream: Upstream) -> None:
    async with worker_server(hangs) as worker, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(WorkerLost):
                await get(upstream, worker.port)

        nursery.start_soon(ask)
        await worker.asked.wait()
        worker.die()


async def half_a_head(talk: Conversation) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-")
    await talk.die()


async def no_http(talk: Conversation) -> None:
    await talk.send(b"what do you want?\r\n\r\n")
    await talk.until_left()


async def endless_head(talk: Conversation) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000)
    await talk.until_left()


@pytest.mark.parametrize("fails", [dies, half_a_head, no_http, endless_head])
async def test_a_broken_head_is_a_lost_worker(upstream: Upstream, fails: Behaviour) -> None:
    async with worker_server(fails) as worker:
        with pytest.raises(WorkerLost, match="before it answered"):
            await get(upstream, worker.port)


async def answers_without_a_head(talk: Conversation) -> None:
    await talk.send(b"the answer itself " * 3000 + b"\r\n\r\n")
    await talk.until_left()


async def test_what_broke_is_told_without_what_was_said(upstream: Upstream) -> None:
    """It goes into logs, where no answer may stand."""
    async with worker_server(answers_without_a_head) as worker:
        with pytest.raises(WorkerLost) as caught:
            await get(upstream, worker.port)
    assert str(caught.value) == "before it answered: its answer is no HTTP: Expected HTTP/, RTSP/ or ICE/"


async def short_of_its_length(talk: Conversation) -> None:
    await talk.head("content-length: 100")
    await talk.send(b"data")
    await talk.die()


async def bad_chunk_header(talk: Conversation) -> None:
    await talk.head("transfer-encoding: chunked")
    await talk.chunk(b"data")
    await talk.send(b"not a length\r\n")
    await talk.until_left()


@pytest.mark.parametrize(
    ("fails", "delivered"),
    [
        (starts(b"data", then=dies), b"data"),
        (starts(b"data", then=dies_mid_chunk), b"datahalf a chunk"),
        (short_of_its_length, b"data"),
        (bad_chunk_header, b"data"),
        (starts(then=dies), b""),
    ],
)
async def test_what_came_before_a_break_is_delivered_and_then_the_worker_is_lost(
    upstream: Upstream, fails: Behaviour, delivered: bytes
) -> None:
    body = b""
    async with worker_server(fails) as worker, upstream.exchange(worker.port, "GET", b"/", HOST, None) as answer:
        while len(body) < len(delivered):
            body += await answer.read()
        for _ in range(2):
            with pytest.raises(WorkerLost, match="while it answered"):
                await answer.read()
    assert body == delivered
    assert not upstream._idle.get(worker.port)


async def test_no_first_byte_in_time_is_said_so() -> None:
    async with worker_server(hangs) as worker, running(first_byte_timeout_s=0.05) as upstream:
        with pytest.raises(FirstByteTimeout):
            await get(upstream, worker.port)
        with trio.fail_after(TOO_LONG_S):
            await worker.client_left.wait()


async def test_silence_within_an_answer_is_said_so() -> None:
    async with worker_server(starts(b"x", then=hangs)) as worker, running(stall_timeout_s=0.5) as upstream:
        async with upstream.exchange(worker.port, "GET", b"/", HOST, None) as answer:
            assert await answer.read() == b"x"
            with pytest.raises(Stalled):
                await answer.read()
        with trio.fail_after(TOO_LONG_S):
            await worker.client_left.wait()


# -- bodies that come in parts ---------------------------------------------------------------------------------

CHUNKED: Headers = [*HOST, (b"transfer-encoding", b"chunked")]


class Parts:
    """A body in parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = iter(parts)
        self.taken = 0

    def __aiter__(self) -> "Parts":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for part in self._parts:
            self.taken += 1
            return part
        raise StopAsyncIteration


async def upload(upstream: Upstream, port: int, headers: Headers, body: Parts) -> tuple[int, bytes]:
    async with upstream.exchange(port, "POST", b"/api/blobs/sha256:1", headers, body) as answer:
        return answer.status, await whole(answer)


@pytest.mark.parametrize("framing", [(b"transfer-encoding", b"chunked"), (b"content-length", b"6")])
async def test_a_body_in_parts_is_sent_as_it_comes(upstream: Upstream, framing: tuple[bytes, bytes]) -> None:
    async with worker_server(says(b"", status=201)) as worker:
        assert await upload(upstream, worker.port, [*HOST, framing], Parts(b"abc", b"def")) == (201, b"")
        assert worker.received[0].body == b"abcdef"


async def test_a_body_in_parts_never_meets_a_stale_connection(upstream: Upstream) -> None:
    async with worker_server(says(b"x"), says(b"", status=201)) as worker:
        await get(upstream, worker.port)
        assert (await upload(upstream, worker.port, CHUNKED, Parts(b"abc")))[0] == 201
        assert [request.connection for request in worker.received] == [1, 2]


async def test_an_upload_that_is_refused_early_has_the_refusal_for_an_answer(upstream: Upstream) -> None:
    async def refuses(talk: Conversation) -> None:
        await says(b"no", "connection: close", status=400)(talk)
        await talk.stream.send_eof()
        await talk.die()

    async with worker_server(refuses, refuses_early=True) as worker:
        body = Parts(*[b"x" * 1_000_000] * 200)
        assert await upload(upstream, worker.port, CHUNKED, body) == (400, b"no")
        assert body.taken < 200


async def test_a_worker_lost_during_an_upload_is_lost(upstream: Upstream) -> None:
    async with worker_server(dies, refuses_early=True) as worker:
        with pytest.raises(WorkerLost):
            await upload(upstream, worker.port, CHUNKED, Parts(*[b"x" * 1_000_000] * 200))


async def test_a_body_that_fails_closes_the_connection(upstream: Upstream) -> None:
    class Broken(Parts):
        async def __anext__(self) -> bytes:
            if self.taken:
                raise ZeroDivisionError
            return await super().__anext__()

    async with worker_server(says(b"x")) as worker:
        with pytest.raises(ZeroDivisionError):
            await upload(upstream, worker.port, CHUNKED, Broken(b"abc"))
        await worker.idle_closed.wait()


async def test_the_progress_of_an_upload_is_what_its_deadline_counts() -> None:
    class Slow(Parts):
        async def __anext__(self) -> bytes:
            await trio.sleep(0.4)
            return await super().__anext__()

    async with worker_server(says(b"", status=201)) as worker, running(first_byte_timeout_s=1.5) as upstream:
        assert (await upload(upstream, worker.port, CHUNKED, Slow(*[b"x"] * 6)))[0] == 201

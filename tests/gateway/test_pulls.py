"""Two requests for the same pull become one: who gets which lines, who ends it, and what errors look like."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio

from gateway.errors import Dialect, FirstByteTimeout, PrimaryAway, ShuttingDown, Stalled
from gateway.pulls import KEPT_LINES, Pull, Pulls
from gateway.request import Request
from tests.fakes.hall import Hall
from tests.fakes.reply import RecordingReply
from tests.fakes.worker_server import Conversation, WorkerServer, dies, hangs, says, starts, streams

MANIFEST = b'{"status":"pulling manifest"}\n'
SUCCESS = b'{"status":"success"}\n'


def layer(digest: str, completed: int) -> bytes:
    line = {"status": f"pulling {digest}", "digest": f"sha256:{digest}", "total": 100, "completed": completed}
    return json.dumps(line).encode() + b"\n"


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not holds():
            await trio.sleep(0.001)


def _heard(reply: RecordingReply, chunk: bytes) -> bool:
    return reply.body.endswith(chunk) if chunk else reply.ended


class Desk:
    """Pulls, and a primary whose one answer the test writes chunk by chunk."""

    def __init__(self, hall: Hall, nursery: trio.Nursery) -> None:
        self.hall = hall
        self.nursery = nursery
        self.primary: WorkerServer
        self.pulls: Pulls
        self._to_send, self._sending = trio.open_memory_channel[bytes](100)

    async def open(self, *script: Callable[[Conversation], Awaitable[None]]) -> None:
        self.primary = await self.hall.primary(*(script or (starts(then=self._scripted),)))
        self.pulls = Pulls(self.hall.exchange)
        await self.nursery.start(self.pulls.run)

    async def _scripted(self, talk: Conversation) -> None:
        async for chunk in self._sending:
            await talk.chunk(chunk)
            if not chunk:
                return

    async def says(self, witness: RecordingReply, *chunks: bytes) -> None:
        """Have the primary send chunks, an empty one for the end, each as soon as `witness` has the one before."""
        for chunk in chunks:
            self._to_send.send_nowait(chunk)
            await until(partial(_heard, witness, chunk))

    async def ask(self, reply: RecordingReply, **fields: object) -> None:
        body = json.dumps({"model": "m", **fields}).encode()
        request = Request("POST", "/api/pull", b"/api/pull", [], Dialect.OLLAMA, "req-1")
        await self.pulls.answer(request, body, reply)

    def client(self, **fields: object) -> tuple[RecordingReply, trio.CancelScope]:
        """Ask for a pull in a task; the scope is the client's leaving."""
        reply, scope = RecordingReply(), trio.CancelScope()

        async def run() -> None:
            with scope:
                await self.ask(reply, **fields)

        self.nursery.start_soon(run)
        return reply, scope

    def bodies(self) -> list[dict[str, object]]:
        return [json.loads(received.body) for received in self.primary.received]


@pytest.fixture
async def desk(nursery: trio.Nursery) -> AsyncIterator[Desk]:
    made = Desk(Hall(nursery), nursery)
    yield made
    made.hall.upstream.close()
    if hasattr(made, "pulls"):
        assert made.pulls._pulls == {}
    nursery.cancel_scope.cancel()


# -- one pull --------------------------------------------------------------------------------------------------


async def test_a_lone_pull_is_answered_line_by_line(desk: Desk) -> None:
    await desk.open()
    reply, _ = desk.client()
    await desk.says(reply, MANIFEST)
    assert (reply.status, reply.body, reply.ended) == (200, MANIFEST, False)
    await desk.says(reply, layer("a", 50), layer("a", 100), SUCCESS, b"")
    assert reply.body == MANIFEST + layer("a", 50) + layer("a", 100) + SUCCESS
    assert (reply.ended, reply.header("x-chimera-worker"), reply.header("content-type")) == (
        True, "primary", "application/x-ndjson",
    )  # fmt: skip
    assert desk.bodies() == [{"model": "m:latest", "insecure": False, "stream": True}]


async def test_a_line_that_comes_in_two_parts_is_one_line(desk: Desk) -> None:
    await desk.open(streams(MANIFEST[:10], MANIFEST[10:] + SUCCESS[:-1]))
    reply = RecordingReply()
    await desk.ask(reply)
    assert reply.body == MANIFEST + SUCCESS


# -- two requests for the same pull ----------------------------------------------------------------------------


async def test_who_comes_later_sees_the_state_at_once_and_then_each_line(desk: Desk) -> None:
    await desk.open()
    first, _ = desk.client()
    begun = [MANIFEST, layer("a", 50), layer("a", 100), layer("b", 10)]
    await desk.says(first, *begun)
    second, _ = desk.client(model="m:latest")
    await second.first_write.wait()
    assert second.body == MANIFEST + layer("a", 100) + layer("b", 10)
    await desk.says(second, layer("b", 100), SUCCESS, b"")
    await until(lambda: first.ended)
    assert first.body == b"".join([*begun, layer("b", 100), SUCCESS])
    assert second.body == MANIFEST + layer("a", 100) + layer("b", 10) + layer("b", 100) + SUCCESS
    assert (first.ended, second.ended, len(desk.primary.received)) == (True, True, 1)


async def test_who_wants_no_stream_gets_the_last_line(desk: Desk) -> None:
    await desk.open()
    streamed, _ = desk.client()
    whole, _ = desk.client(stream=False)
    await desk.says(streamed, MANIFEST)
    assert not whole.started
    await desk.says(streamed, SUCCESS, b"")
    await until(lambda: whole.ended)
    assert (whole.status, json.loads(whole.body), whole.ended) == (200, {"status": "success"}, True)
    assert (streamed.body, len(desk.primary.received)) == (MANIFEST + SUCCESS, 1)


async def test_a_client_that_leaves_leaves_the_pull_to_the_others(desk: Desk) -> None:
    await desk.open()
    first, first_leaves = desk.client()
    second, _ = desk.client()
    await desk.says(first, MANIFEST)
    first_leaves.cancel()
    await desk.says(second, SUCCESS, b"")
    assert (first.body, second.body, second.ended) == (MANIFEST, MANIFEST + SUCCESS, True)


async def test_when_the_last_client_leaves_the_pull_ends_and_the_next_one_is_new(desk: Desk) -> None:
    await desk.open(starts(MANIFEST, then=hangs), streams(SUCCESS))
    leaving = [desk.client(stream=stream)[1] for stream in (True, False)]
    await desk.primary.asked.wait()
    for scope in leaving:
        scope.cancel()
    await desk.primary.client_left.wait()
    reply = RecordingReply()
    await desk.ask(reply)
    assert (reply.body, len(desk.primary.received)) == (SUCCESS, 2)


async def test_different_pulls_are_not_one(desk: Desk) -> None:
    await desk.open(streams(SUCCESS))
    async with trio.open_nursery() as nursery:
        for fields in ({}, {"model": "n"}, {"insecure": True}):
            nursery.start_soon(partial(desk.ask, RecordingReply(), **fields))
    assert len(desk.primary.received) == 3


@pytest.mark.parametrize(
    "fields", [{"username": "u", "password": "p"}, {"model": 5}, {"stream": 1}, {"Insecure": True}, {"stream": None}]
)
async def test_a_pull_out_of_the_ordinary_goes_to_the_primary_unchanged(desk: Desk, fields: dict[str, object]) -> None:
    await desk.open(streams(SUCCESS))
    reply = RecordingReply()
    await desk.ask(reply, **fields)
    assert desk.bodies() == [{"model": "m", **fields}]
    assert reply.body == SUCCESS


# -- what goes wrong -------------------------------------------------------------------------------------------


async def test_an_error_line_reaches_all_in_the_form_they_asked_for(desk: Desk) -> None:
    await desk.open()
    streamed, _ = desk.client()
    whole, _ = desk.client(stream=False)
    await desk.says(streamed, MANIFEST, b'{"error":"no space left"}\n', b"")
    await until(lambda: whole.ended)
    assert streamed.body == MANIFEST + b'{"error":"no space left"}\n'
    assert (streamed.ended, whole.status, json.loads(whole.body)) == (True, 500, {"error": "no space left"})


async def test_a_refusal_reaches_all_as_it_is(desk: Desk) -> None:
    go_on = trio.Event()

    async def refuses(talk: Conversation) -> None:
        await go_on.wait()
        await says(b'{"error":"invalid model name"}', status=400)(talk)

    await desk.open(refuses)
    replies = [desk.client(stream=stream)[0] for stream in (True, False)]
    await desk.primary.asked.wait()
    go_on.set()
    await until(lambda: all(reply.ended for reply in replies))
    assert [(reply.status, reply.body, reply.ended) for reply in replies] == [
        (400, b'{"error":"invalid model name"}', True)
    ] * 2
    assert len(desk.primary.received) == 1


async def test_an_answer_that_ends_without_a_last_line_is_worded_as_ollama_does(desk: Desk) -> None:
    await desk.open()
    streamed, _ = desk.client()
    whole, _ = desk.client(stream=False)
    await desk.says(streamed, MANIFEST, b"")
    await until(lambda: whole.ended)
    assert (streamed.body, streamed.ended) == (MANIFEST, True)
    assert (whole.status, json.loads(whole.body)) == (500, {"error": "unexpected end of progress response"})


async def test_a_primary_that_is_away_is_told_to_all(desk: Desk) -> None:
    await desk.open(dies)
    for stream in (True, False):
        with pytest.raises(PrimaryAway):
            await desk.ask(RecordingReply(), stream=stream)


async def test_a_primary_that_is_lost_within_the_pull_ends_streams_with_an_error_line(desk: Desk) -> None:
    await desk.open(starts(MANIFEST, then=dies))
    reply = RecordingReply()
    await desk.ask(reply)
    *_, last = reply.body.splitlines()
    assert json.loads(last) == {"error": "the primary ollama server was lost before the pull was complete"}
    assert reply.ended
    with pytest.raises(PrimaryAway):
        await desk.ask(RecordingReply(), stream=False)


async def test_a_primary_that_falls_silent_is_told(desk: Desk) -> None:
    desk.hall.patience(first_byte_timeout_s=0.5, stall_timeout_s=0.5)
    await desk.open(hangs, starts(MANIFEST, then=hangs), starts(MANIFEST, then=hangs))
    with pytest.raises(FirstByteTimeout):
        await desk.ask(RecordingReply())
    reply = RecordingReply()
    await desk.ask(reply)
    assert reply.body.endswith(b'{"error": "the primary ollama server fell silent within the pull"}\n')
    with pytest.raises(Stalled):
        await desk.ask(RecordingReply(), stream=False)


async def test_when_the_pulls_end_their_clients_are_told(desk: Desk) -> None:
    await desk.open(starts(MANIFEST, then=hangs))
    told: list[bool] = []

    async def client(reply: RecordingReply, stream: bool) -> None:
        try:
            await desk.ask(reply, stream=stream)
        except ShuttingDown:
            told.append(stream)

    streamed = RecordingReply()
    pulls = Pulls(desk.hall.exchange)
    desk.pulls = pulls
    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
        await nursery.start(pulls.run)
        clients.start_soon(client, streamed, True)
        clients.start_soon(client, RecordingReply(), False)
        await streamed.first_write.wait()
        nursery.cancel_scope.cancel()
    assert told == [False]
    assert b'"error"' in streamed.body.splitlines()[-1]


# -- what is kept ----------------------------------------------------------------------------------------------


def test_what_is_kept_is_bounded_however_many_lines_come() -> None:
    pull = Pull(None, "req-1")  # type: ignore[arg-type]  # what it is of does not matter
    for number in range(KEPT_LINES * 3):
        pull.take(layer(str(number), 1))
    for completed in range(1000):
        pull.take(layer("big", completed))
    pull.take(b"no json\n")
    kept = [line for _, line in pull.lines.values()]
    assert len(kept) == KEPT_LINES
    assert kept[-2:] == [layer("big", 999), b"no json\n"]

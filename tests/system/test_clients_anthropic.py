"""Anthropic's own client against the gateway, with a scripted worker that speaks /v1/messages.

Newer versions of Ollama do; the embedded one does not, and its refusal is compared in test_clients.py. Each scenario
is run against the worker itself and through the gateway: the client gives its user the same.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import anthropic
import pytest
import trio
from pydantic import BaseModel
from trio.testing import wait_all_tasks_blocked

from gateway.app import make_app
from gateway.asgi import App, AsgiLane
from gateway.door import listen, run_gateway
from gateway.front import Front
from gateway.pulls import Pulls
from tests.fakes.fleet_admin import FakeFleet
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import SSE, Behaviour, WorkerServer, dies, hangs, says, starts, streams

# A test that hangs says so; no result depends on it.
TOO_LONG_S = 20.0
MAX_BODY_BYTES = 100_000


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def message(*content: dict[str, Any], stop_reason: str | None = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": list(content),
        "stop_reason": stop_reason, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 3},
    }  # fmt: skip


def begins(index: int, block: dict[str, Any]) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def goes_on(index: int, **delta: str) -> bytes:
    return event("content_block_delta", index=index, delta=delta)


def ends(stop_reason: str) -> bytes:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return event("message_delta", delta=delta, usage={"output_tokens": 3}) + event("message_stop")


TEXT = {"type": "text", "text": "It is “fine”."}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
BEGUN = event("message_start", message=message(stop_reason=None))
STREAMED = [
    BEGUN, event("ping"), begins(0, {"type": "text", "text": ""}), goes_on(0, type="text_delta", text="It is "),
    goes_on(0, type="text_delta", text="“fine”."), event("content_block_stop", index=0), ends("end_turn"),
]  # fmt: skip
CALLED = [
    BEGUN, begins(0, TOOL | {"input": {}}), goes_on(0, type="input_json_delta", partial_json='{"city": '),
    goes_on(0, type="input_json_delta", partial_json='"Paris"}'), event("content_block_stop", index=0),
    ends("tool_use"),
]  # fmt: skip


def cut_oddly(events: list[bytes]) -> list[bytes]:
    """Cut a stream where no event ends, within characters too."""
    whole = b"".join(events)
    return [whole[at : at + 7] for at in range(0, len(whole), 7)]


def whole(**fields: Any) -> Behaviour:
    return says(json.dumps(fields).encode())


def refuses(status: int, kind: str, sentence: str) -> Behaviour:
    return says(
        json.dumps({"type": "error", "error": {"type": kind, "message": sentence}, "request_id": "req_1"}).encode(),
        status=status,
    )


@dataclass
class Place:
    """A gateway, and the means to put workers behind it and clients before it."""

    nursery: trio.Nursery
    hall: Hall
    port: int
    stack: AsyncExitStack
    workers: list[WorkerServer] = field(default_factory=list)

    async def worker(self, *script: Behaviour) -> WorkerServer:
        """Put a worker behind the gateway."""
        self.workers.append(await self.hall.worker(f"w{len(self.workers) + 1}", *script))
        return self.workers[-1]

    async def client(self, port: int | None = None) -> anthropic.AsyncAnthropic:
        """Make a client of the gateway, or of another port."""
        made = anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{port or self.port}", api_key="secret", max_retries=0, timeout=TOO_LONG_S
        )
        return await self.stack.enter_async_context(made)

    async def both(self, behaviour: Behaviour, do: "Scenario") -> Any:
        """Return what a scenario gives, the same from the worker itself and through the gateway."""
        worker = await self.worker(behaviour)
        own = await do(await self.client(worker.port))
        assert await do(await self.client()) == own
        return own


Scenario = Callable[[anthropic.AsyncAnthropic], Awaitable[Any]]
ASK: dict[str, Any] = {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "Weather in Paris?"}]}
TOOLS: list[Any] = [
    {"name": "weather", "description": "Say it.",
     "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
]  # fmt: skip


@pytest.fixture
async def place(nursery: trio.Nursery) -> AsyncIterator[Place]:
    hall = Hall(nursery)
    pages = make_app(FakeFleet(), hall.admission, hall.metrics, None)
    front = Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=MAX_BODY_BYTES)
    lane = AsgiLane(front, cast("App", pages))
    sockets = listen("127.0.0.1", 0)

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        await run_gateway(
            lane, sockets, express=front, stall_timeout_s=TOO_LONG_S, max_connections=10, task_status=task_status
        )

    await nursery.start(serve)
    async with AsyncExitStack() as stack:
        with trio.fail_after(TOO_LONG_S):
            yield Place(nursery, hall, sockets[0].getsockname()[1], stack)
    await wait_all_tasks_blocked()
    assert repr(hall.admission) == NOTHING_LEFT
    hall.upstream.close()
    nursery.cancel_scope.cancel()


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_a_whole_answer(place: Place) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        return await client.messages.create(**ASK)

    answer = await place.both(whole(**message(TEXT)), do)
    assert answer.content[0].text == "It is “fine”."


async def test_a_raw_stream(place: Place) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        return [part async for part in await client.messages.create(**ASK, stream=True)]

    parts = await place.both(streams(*STREAMED, kind=SSE), do)
    assert [part.type for part in parts][-1] == "message_stop"


@pytest.mark.parametrize("cut", [lambda events: events, cut_oddly, lambda events: [b"".join(events)]])
async def test_a_streams_text_however_it_comes_in_parts(
    place: Place, cut: Callable[[list[bytes]], list[bytes]]
) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        async with client.messages.stream(**ASK) as stream:
            texts = [text async for text in stream.text_stream]
            return texts, await stream.get_final_message()

    texts, final = await place.both(streams(*cut(STREAMED), kind=SSE), do)
    assert texts == ["It is ", "“fine”."]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 3)


async def test_tools(place: Place) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        return await client.messages.create(**ASK, tools=TOOLS)

    answer = await place.both(whole(**message(TOOL, stop_reason="tool_use")), do)
    assert answer.content[0].input == {"city": "Paris"}
    sent = [json.loads(received.body) for received in place.workers[0].received]
    assert sent[0] == sent[1]
    assert sent[0]["tools"] == TOOLS


async def test_tools_in_a_stream(place: Place) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        async with client.messages.stream(**ASK, tools=TOOLS) as stream:
            return [part async for part in stream]

    parts = await place.both(streams(*CALLED, kind=SSE), do)
    assert parts[-1].message.content[0].input == {"city": "Paris"}


class Weather(BaseModel):
    """What is asked for where an answer is to have a form."""

    warm: bool


async def test_structured_output(place: Place) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        return (await client.messages.parse(**ASK, output_format=Weather)).parsed_output

    parsed = await place.both(whole(**message({"type": "text", "text": '{"warm": true}'})), do)
    assert parsed == Weather(warm=True)


async def test_counting_tokens_is_asked_of_the_primary(place: Place) -> None:
    """As every path under /v1 that Chimera does not know."""
    primary = WorkerServer([whole(input_tokens=9)])
    await place.nursery.start(primary.run)
    place.hall.exchange.primary_port = primary.port
    counted = await (await place.client()).messages.count_tokens(model="m", messages=ASK["messages"])
    assert counted.input_tokens == 9


# -- what the worker gets ----------------------------------------------------------------------------------------------


async def test_the_key_stays_here_and_the_version_goes_on(place: Place) -> None:
    worker = await place.worker(whole(**message(TEXT)))
    await (await place.client()).messages.create(**ASK)
    (received,) = worker.received
    assert (received.header("x-api-key"), received.header("authorization")) == (None, None)
    assert received.header("anthropic-version")
    assert "secret" not in str(received)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (404, "not_found_error", anthropic.NotFoundError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.OverloadedError),
    ],
)
async def test_a_refusal_is_the_workers_own(place: Place, status: int, kind: str, error: type[Exception]) -> None:
    async def do(client: anthropic.AsyncAnthropic) -> Any:
        told = []
        for streamed in (False, True):
            with pytest.raises(error) as caught:
                await client.messages.create(**ASK, stream=streamed)
            refusal = cast("anthropic.APIStatusError", caught.value)
            told.append((str(refusal), refusal.status_code, refusal.body))
        return told

    told = await place.both(refuses(status, kind, "model 'm' says no"), do)
    assert "model 'm' says no" in told[0][0]


def streams_to(port: int, texts: list[str]) -> anthropic.APIStatusError | None:
    """Take a stream's text as it comes, in a thread; return the error that it ends with."""
    with (
        anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="any", max_retries=0) as client,
        client.messages.stream(**ASK) as stream,
    ):
        try:
            texts.extend(stream.text_stream)
        except anthropic.APIStatusError as error:
            return error
    return None


async def test_an_error_within_a_stream_is_the_workers_own(place: Place) -> None:
    failed = event("error", error={"type": "api_error", "message": "out of memory"})
    worker = await place.worker(streams(*STREAMED[:4], failed, kind=SSE))
    for port in (worker.port, place.port):
        texts: list[str] = []
        error = await trio.to_thread.run_sync(streams_to, port, texts)
        assert error is not None
        assert (texts, said(error)) == (["It is "], ("api_error", "out of memory"))


async def refused(place: Place, **more: Any) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await (await place.client()).messages.create(**ASK | more)
    return caught.value


def said(error: anthropic.APIStatusError) -> tuple[str, str]:
    """The kind and the words of an error in Anthropic's form."""
    body = cast("dict[str, Any]", error.body)
    assert body["type"] == "error"
    return body["error"]["type"], body["error"]["message"]


async def test_the_gateways_own_refusals_have_anthropics_form(place: Place) -> None:
    place.hall.admission.fleet_wanted(0)
    nobody = await refused(place)
    assert (nobody.status_code, said(nobody)[0]) == (503, "overloaded_error")
    assert nobody.response.headers["retry-after"] == "30"
    large = await refused(place, messages=[{"role": "user", "content": "x" * MAX_BODY_BYTES}])
    assert isinstance(large, anthropic.RequestTooLargeError)
    assert said(large)[0] == "request_too_large"


async def test_a_full_queue_is_an_overload(place: Place) -> None:
    await place.worker(hangs)
    client = await place.client()

    async def ask() -> None:
        await client.messages.create(**ASK)

    async with trio.open_nursery() as asking:
        for _ in range(5):  # one slot, a queue of four
            asking.start_soon(ask)
        while place.hall.admission.queue()["depth"] < 4:
            await trio.lowlevel.checkpoint()
        full = await refused(place)
        asking.cancel_scope.cancel()
    assert (full.status_code, *said(full)) == (
        503, "overloaded_error", "server busy, please try again.  maximum pending requests exceeded",
    )  # fmt: skip


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_a_worker_lost_before_its_first_byte_costs_the_client_nothing(place: Place) -> None:
    lost = await place.worker(dies)
    await place.worker(whole(**message(TEXT)))
    answer = await (await place.client()).messages.create(**ASK)
    assert answer.content[0].type == "text"
    assert len(lost.received) == 1


@pytest.mark.parametrize("parts", [STREAMED[:4], [*STREAMED[:4], STREAMED[4][:30]]], ids=["between", "within"])
async def test_a_worker_lost_mid_stream_is_an_error_and_never_an_end(place: Place, parts: list[bytes]) -> None:
    """Whether it was lost between two events or within one."""
    await place.worker(starts(*parts, kind=SSE, then=dies))
    texts: list[str] = []
    error = await trio.to_thread.run_sync(streams_to, place.port, texts)
    assert error is not None
    assert texts == ["It is "]
    assert said(error) == ("api_error", "the worker was lost before its answer was complete")


async def test_a_client_that_leaves_mid_stream_ends_the_work(place: Place) -> None:
    worker = await place.worker(starts(*STREAMED[:4], kind=SSE, then=hangs))

    def leave() -> str:
        with (
            anthropic.Anthropic(base_url=f"http://127.0.0.1:{place.port}", api_key="any") as client,
            client.messages.stream(**ASK) as stream,
        ):
            return next(iter(stream.text_stream))

    assert await trio.to_thread.run_sync(leave) == "It is "
    await worker.client_left.wait()
    while repr(place.hall.admission) != NOTHING_LEFT:
        await trio.lowlevel.checkpoint()

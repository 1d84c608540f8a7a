"""One request from arrival to its last byte, with scripted workers on real sockets."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import exchange as module
from gateway.errors import (
    ConnectFailed,
    FirstByteTimeout,
    ModelLethal,
    PrimaryAway,
    QueueFull,
    QueueTimeout,
    Stalled,
    WorkerLost,
    dialect_of,
)
from gateway.ollama import ERROR_BYTES, Ask, Kind
from gateway.request import Request, answer_error
from gateway.retry import MOST_ATTEMPTS
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.reply import RecordingReply
from tests.fakes.worker_server import (
    NDJSON,
    SSE,
    Behaviour,
    Conversation,
    WorkerServer,
    dies,
    dies_mid_chunk,
    hangs,
    says,
    starts,
    streams,
)

ASK = Ask(Kind.INFERENCE, "m")
BODY = b'{"model":"m","messages":[{}]}'
LINE = b'{"response":"a","done":true}\n'


def request(path: str, method: str = "POST", **more: Any) -> Request:
    headers = [(b"host", b"gateway:8000"), (b"content-type", b"application/json"), (b"authorization", b"Bearer secret")]
    return Request(method, path, path.encode(), more.pop("headers", headers), dialect_of(path), "req-1", **more)


async def ask(hall: Hall, path: str = "/api/chat", reply: RecordingReply | None = None) -> RecordingReply:
    reply = RecordingReply() if reply is None else reply
    await hall.exchange.infer(request(path), ASK, BODY, reply)
    return reply


# -- an answer -------------------------------------------------------------------------------------------------


async def test_an_answer_is_relayed_and_says_where_it_came_from(hall: Hall) -> None:
    server = await hall.worker("a", streams(LINE, b'{"done":true}\n'))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.ended) == (200, LINE + b'{"done":true}\n', True)
    assert [reply.header(f"x-{name}") for name in ("request-id", "chimera-worker", "chimera-attempts")] == [
        "req-1", "a", "1",
    ]  # fmt: skip
    assert str(reply.header("x-chimera-queue-ms")).isdecimal()
    (received,) = server.received
    assert (received.body, received.target) == (BODY, "/api/chat")
    assert received.header("host") == f"127.0.0.1:{server.port}"
    assert received.header("authorization") is None
    assert received.header("x-request-id") == "req-1"


@pytest.mark.parametrize("status", [200, 400, 404, 500])
async def test_a_workers_own_answer_is_relayed_whatever_it_says(hall: Hall, status: int) -> None:
    await hall.worker("a", says(b'{"error":"its own"}', status=status))
    await hall.worker("b", says(b"never asked"))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.header("x-chimera-worker")) == (status, b'{"error":"its own"}', "a")


async def test_the_head_reaches_the_client_with_the_first_chunk_not_with_the_last(hall: Hall) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await talk.chunk(b"")

    await hall.worker("a", starts(LINE, then=rest))
    reply = RecordingReply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, hall, "/api/chat", reply)
        await reply.first_write.wait()
        assert (reply.body, reply.ended) == (LINE, False)
        go_on.set()
    assert reply.ended


# -- a worker is lost before its first byte --------------------------------------------------------------------


async def test_a_request_whose_worker_is_lost_is_answered_by_another(hall: Hall) -> None:
    lost = await hall.worker("a", dies)
    await hall.worker("b", streams(LINE))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.ended, reply.aborted) == (200, LINE, True, False)
    assert (reply.header("x-chimera-attempts"), reply.header("x-chimera-worker")) == ("2", "b")
    assert len(lost.received) == 1


async def test_a_head_without_a_byte_of_body_still_lets_another_worker_answer(hall: Hall) -> None:
    await hall.worker("a", starts(then=dies))
    await hall.worker("b", streams(LINE))
    assert (await ask(hall)).header("x-chimera-attempts") == "2"


async def test_a_worker_that_takes_no_connection_is_passed_over(hall: Hall) -> None:
    gone = await hall.worker("a", dies)
    gone.die()
    await wait_all_tasks_blocked()
    await hall.worker("b", streams(LINE))
    assert (await ask(hall)).header("x-chimera-worker") == "b"


async def test_the_only_worker_lost_and_replaced_answers_in_its_new_life(hall: Hall) -> None:
    async def crashes(talk: Conversation) -> None:
        hall.admission.worker_lost("a")
        replaced.set()
        await talk.die()

    replaced = trio.Event()
    await hall.worker("a", crashes)
    reply = RecordingReply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, hall, "/api/chat", reply)
        await replaced.wait()
        await hall.worker("a", streams(LINE))
    assert (reply.body, reply.header("x-chimera-attempts")) == (LINE, "2")


async def test_when_all_workers_are_lost_the_client_is_told(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOSS_NOTICED_S", 0.01)
    for name in "abc":
        await hall.worker(name, dies)
        hall.admission.worker_models(name, frozenset({"m:latest"}))
    asked = request("/api/chat")
    reply = RecordingReply()
    with pytest.raises(WorkerLost) as caught:
        await hall.exchange.infer(asked, ASK, BODY, reply)
    assert asked.attempts == 3
    await answer_error(asked, caught.value, reply)
    assert (reply.status, reply.header("retry-after")) == (502, "1")
    assert json.loads(reply.body) == {
        "error": "the worker was lost before it answered, and so were the others that were tried"
    }


async def test_nobody_is_tried_more_often_than_agreed(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOSS_NOTICED_S", 0.0)
    servers = [await hall.worker(name, dies) for name in "abcdefg"]
    hall.admission.worker_models("g", frozenset({"m:latest"}))
    with pytest.raises(WorkerLost):
        await ask(hall)
    assert sum(len(server.received) for server in servers) == MOST_ATTEMPTS


async def test_a_failed_connection_of_the_only_worker_is_told(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOSS_NOTICED_S", 0.01)
    (await hall.worker("a", dies)).die()
    await wait_all_tasks_blocked()
    with pytest.raises(ConnectFailed):
        await ask(hall)


# -- a worker that has no room ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_worker_that_cannot_just_now_is_passed_over(hall: Hall, status: int) -> None:
    await hall.worker("a", says(b'{"error":"busy"}', status=status))
    await hall.worker("b", says(b'{"done":true}'))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.header("x-chimera-attempts")) == (200, b'{"done":true}', "2")


@pytest.mark.parametrize("workers", ["a", "ab", "abcdefg"])
async def test_when_no_worker_can_just_now_the_last_ones_own_words_are_relayed(hall: Hall, workers: str) -> None:
    for name in workers:
        await hall.worker(name, says(b'{"error":"busy"}', "retry-after: 3", status=503))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.header("retry-after")) == (503, b'{"error":"busy"}', "3")
    assert reply.header("x-chimera-attempts") == str(min(len(workers), MOST_ATTEMPTS))


# -- a worker's runner dies before the first byte --------------------------------------------------------------

DIED = "an error was encountered while running the model: unexpected EOF"


def dead_runners_answers(text: str = DIED) -> dict[str, Behaviour]:
    """The forms in which Ollama tells it before anything else."""
    error = json.dumps({"error": text}).encode()
    openai = json.dumps({"error": {"message": text, "type": "api_error"}}).encode()

    async def in_two_parts(talk: Conversation) -> None:
        await starts(error[:12], then=lambda talk: talk.chunk(error[12:] + b"\n"))(talk)
        await talk.chunk(b"")

    return {
        "status 500": says(error, status=500),
        "status 500, OpenAI": says(openai, status=500),
        "first line": streams(error + b"\n"),
        "first line in two parts": in_two_parts,
        "first event": streams(b"data: " + openai + b"\n\n", kind=SSE),
        "first event with a name": streams(b"event: error\ndata: " + openai + b"\n\n", kind=SSE),
    }


@pytest.mark.parametrize("form", dead_runners_answers())
async def test_a_request_whose_runner_died_is_answered_by_another_worker(hall: Hall, form: str) -> None:
    await hall.worker("a", dead_runners_answers()[form])
    await hall.worker("b", streams(LINE))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.header("x-chimera-attempts")) == (200, LINE, "2")
    assert hall.deaths == ["a"]


@pytest.mark.parametrize(("text", "deaths"), [(DIED, ["a"]), ("the prompt is too long", [])])
async def test_an_error_at_an_answers_end_is_counted_and_a_dead_runner_told(
    hall: Hall, text: str, deaths: list[str]
) -> None:
    await hall.worker("a", streams(LINE, json.dumps({"error": text}).encode() + b"\n"))
    await ask(hall)
    assert hall.deaths == deaths
    assert b'chimera_broken_answers_total{cause="error_line"} 1.0' in hall.metrics.render(0, [], [])


async def test_the_only_worker_whose_runner_died_is_asked_once_more(hall: Hall) -> None:
    server = await hall.worker("a", says(b'{"error":"%s"}' % DIED.encode(), status=500), streams(LINE))
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.header("x-chimera-attempts")) == (200, LINE, "2")
    assert len(server.received) == 2


@pytest.mark.parametrize("workers", ["a", "ab", "abcdefg"])
async def test_when_every_runner_dies_the_last_workers_own_words_are_relayed(hall: Hall, workers: str) -> None:
    said = b'{"error":"%s"}' % DIED.encode()
    servers = [await hall.worker(name, says(said, status=500)) for name in workers]
    reply = await ask(hall)
    assert (reply.status, reply.body) == (500, said)
    assert sum(len(server.received) for server in servers) == min(len(workers) + 1, MOST_ATTEMPTS)


@pytest.mark.parametrize("form", dead_runners_answers())
async def test_another_error_is_passed_on(hall: Hall, form: str) -> None:
    await hall.worker("a", dead_runners_answers("x")[form])
    await hall.worker("b", streams(b"never asked"))
    reply = await ask(hall)
    assert b'x"' in reply.body
    assert (reply.header("x-chimera-worker"), reply.header("x-chimera-attempts"), reply.ended) == ("a", "1", True)


NO_LOAD = [
    "unable to load model: /models/blobs/sha256-1",
    "llama runner process has terminated: error loading model: x",
    "model requires more system memory (9.0 GiB) than is available (1.0 GiB)",
]


@pytest.mark.parametrize("text", NO_LOAD)
async def test_a_model_that_one_worker_cannot_load_another_may(hall: Hall, text: str) -> None:
    """The pair of model and worker cools; the worker goes on serving other models."""
    bad = await hall.worker("a", says(json.dumps({"error": text}).encode(), status=500), streams(LINE))
    await hall.worker("b", streams(LINE), slots=2)
    reply = await ask(hall)
    assert (reply.body, reply.header("x-chimera-worker"), reply.header("x-chimera-attempts")) == (LINE, "b", "2")
    assert (await ask(hall)).header("x-chimera-worker") == "b"
    assert len(bad.received) == 1
    worker = hall.admission.dispatcher.worker("a")
    assert worker is not None
    assert (list(worker.cooled), worker.breaker.failures, hall.deaths) == (["m:latest"], 0, [])


@pytest.mark.parametrize("text", NO_LOAD)
async def test_of_a_model_that_none_can_load_the_last_workers_own_words_are_relayed(hall: Hall, text: str) -> None:
    said = json.dumps({"error": text}).encode()
    servers = [await hall.worker(name, says(said, status=500)) for name in "ab"]
    reply = await ask(hall)
    assert (reply.status, reply.body) == (500, said)
    assert [len(server.received) for server in servers] == [1, 1]


async def test_a_model_that_ends_who_loads_it_does_not_take_the_fleet_down(hall: Hall) -> None:
    """A damaged file can make `ollama serve` end while it loads it; here five workers would have been lost."""
    servers = [await hall.worker(name, dies) for name in "abcde"]
    with pytest.raises(ModelLethal):
        await ask(hall)
    with pytest.raises(ModelLethal):
        await ask(hall)
    assert sum(len(server.received) for server in servers) == 2


async def test_a_model_that_others_have_loaded_is_not_to_blame_for_lost_workers(hall: Hall) -> None:
    for name in "abc":
        await hall.worker(name, dies)
    await hall.worker("d", streams(LINE))
    hall.admission.worker_models("d", frozenset({"m:latest"}))
    hall.admission.cordon("d")
    for _ in range(2):
        with pytest.raises(WorkerLost):
            await ask(hall)
    hall.admission.uncordon("d")
    assert (await ask(hall)).body == LINE


async def test_a_model_that_answers_is_well(hall: Hall) -> None:
    await hall.worker("a", dies, streams(LINE), dies, streams(LINE))
    await hall.worker("b", dies, streams(LINE), dies, streams(LINE))
    hall.admission.worker_lost("b")
    with pytest.raises(WorkerLost):
        await ask(hall)
    assert (await ask(hall)).body == LINE
    hall.exchange.lost_loading(hall.admission.dispatcher.ready()[0], "other", WorkerLost("x"))
    assert hall.exchange._lethal.paused_s("other", trio.current_time()) is None, "one may be chance"


async def test_a_model_that_a_worker_has_loaded_meanwhile_is_asked_for_again(hall: Hall) -> None:
    """Its file was mended, or a worker's warm-up managed it: the pause has lost its reason."""
    for name in "ab":
        await hall.worker(name, dies, streams(LINE))
    for fault in (WorkerLost, ModelLethal):
        with pytest.raises(fault):
            await ask(hall)
    hall.admission.worker_models("a", frozenset({"m:latest"}))
    assert (await ask(hall)).body == LINE


async def test_what_the_primary_breaks_off_costs_a_key_nothing(hall: Hall) -> None:
    await hall.primary(starts(LINE, then=dies))
    spent: list[int] = []
    await hall.exchange.to_primary(request("/api/pull", spent=spent.append), b"{}", RecordingReply())
    assert sum(spent) == 0


async def test_a_gateway_without_retries_left_passes_on_what_it_got(hall: Hall) -> None:
    hall.exchange._budget.left = 0.0
    hall.exchange._budget._at = trio.current_time() + 1000.0
    await hall.worker("a", says(b'{"error":"busy"}', status=503))
    await hall.worker("b", streams(b"never asked"))
    reply = await ask(hall)
    assert (reply.status, reply.body) == (503, b'{"error":"busy"}')


async def test_a_worker_much_slower_than_another_is_known_by_its_answers(hall: Hall, autojump_clock: MockClock) -> None:
    def paced(token_s: float) -> Behaviour:
        async def behave(talk: Conversation) -> None:
            await talk.head("content-type: application/x-ndjson", "transfer-encoding: chunked")
            for _ in range(8):
                await trio.sleep(token_s)
                await talk.chunk(LINE)
            await talk.chunk(b"")

        return behave

    await hall.worker("a", paced(1.0))
    await hall.worker("b", paced(0.1))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask, hall)
    lives = {worker.id: worker.life for worker in hall.admission.dispatcher.ready()}
    paces = hall.admission.dispatcher._paces
    slow = paces.slower("m:latest")
    assert (slow[lives["a"]] > 5, lives["b"] in slow) == (True, False)


@pytest.mark.parametrize("status", [400, 404])
async def test_a_refusal_is_not_taken_for_a_dead_runner_whatever_it_says(hall: Hall, status: int) -> None:
    said = b'{"error":"unexpected EOF"}'  # also what Ollama says of a body cut short
    await hall.worker("a", says(said, status=status))
    await hall.worker("b", streams(b"never asked"))
    assert ((await ask(hall)).body, hall.admission.inflight("b")) == (said, 0)


async def test_only_the_beginning_of_an_error_is_looked_at(hall: Hall) -> None:
    said = b'{"error":"%s' % (b"x" * ERROR_BYTES) + DIED.encode() + b'"}'
    await hall.worker("a", says(said, status=500))
    await hall.worker("b", streams(b"never asked"))
    assert (await ask(hall)).body == said


async def test_an_error_line_after_the_first_byte_is_relayed(hall: Hall) -> None:
    error = b'{"error":"%s"}\n' % DIED.encode()
    await hall.worker("a", streams(LINE, error))
    await hall.worker("b", streams(b"never asked"))
    assert (await ask(hall)).body == LINE + error


# -- a worker that is silent -----------------------------------------------------------------------------------


async def test_a_request_that_gets_no_first_byte_is_given_to_one_more_worker(hall: Hall) -> None:
    hall.patience(first_byte_timeout_s=0.5)
    silent = await hall.worker("a", hangs)
    await hall.worker("b", streams(LINE))
    reply = await ask(hall)
    assert (reply.body, reply.header("x-chimera-attempts")) == (LINE, "2")
    assert [(who, phase, silent_s) for who, _, phase, silent_s in hall.silences] == [("a", "first byte", 0.5)]
    await silent.client_left.wait()


async def test_a_request_that_gets_no_first_byte_twice_is_told_so(hall: Hall) -> None:
    hall.patience(first_byte_timeout_s=0.5)
    servers = [await hall.worker(name, hangs) for name in "abc"]
    with pytest.raises(FirstByteTimeout):
        await ask(hall)
    assert [len(server.received) for server in servers] == [1, 1, 0]
    assert [who for who, *_ in hall.silences] == ["a", "b"]


@pytest.mark.parametrize("sent", [[], [LINE]])
async def test_a_silence_is_told_of_the_life_that_was_asked(hall: Hall, sent: list[bytes]) -> None:
    hall.patience(stall_timeout_s=0.5)

    async def outlived(talk: Conversation) -> None:
        hall.admission.worker_lost("a")
        hall.admission.worker_ready("a", port=1, slots=1, models=frozenset(), cordoned=False)
        await hangs(talk)

    await hall.worker("a", starts(*sent, then=outlived))
    (worker,) = hall.admission.ready()
    try:
        await ask(hall)
    except Stalled:
        assert not sent
    assert hall.silences == [("a", worker.ready_at, "stall", 0.5)]


async def test_the_primarys_silence_is_not_the_watchs_news(hall: Hall) -> None:
    hall.patience(stall_timeout_s=0.5)
    await hall.primary(starts(LINE, then=hangs))
    await hall.exchange.to_primary(request("/api/push"), b"{}", RecordingReply())
    assert hall.silences == []


# -- what an answer shows of its worker ------------------------------------------------------------------------


async def test_every_byte_is_progress_of_its_worker(hall: Hall) -> None:
    go_on = trio.Event()

    async def rest(talk: Conversation) -> None:
        await go_on.wait()
        await talk.chunk(LINE)
        await talk.chunk(b"")

    await hall.worker("a", starts(LINE, then=rest))
    await hall.worker("b", streams(b"never asked"))
    reply = RecordingReply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, hall, "/api/chat", reply)
        await reply.first_write.wait()
        first = hall.admission.progress_at("a")
        assert first is not None
        await wait_all_tasks_blocked()
        go_on.set()
    assert (hall.admission.progress_at("a") or 0) > first
    assert hall.admission.progress_at("b") is None


@pytest.mark.parametrize(("status", "loaded"), [(200, {"m:latest"}), (400, set()), (500, set())])
async def test_a_good_answer_shows_that_its_model_is_loaded(hall: Hall, status: int, loaded: set[str]) -> None:
    await hall.worker("a", says(b"{}", status=status))
    await ask(hall)
    (worker,) = hall.admission.ready()
    assert worker.loaded == loaded


@pytest.mark.parametrize(
    ("answer", "leaves"), [(streams(LINE), False), (starts(LINE, then=dies), False), (starts(LINE, then=hangs), True)]
)
async def test_a_model_that_an_answer_unloads_is_not_taken_for_loaded(
    hall: Hall, answer: Behaviour, leaves: bool
) -> None:
    """A `keep_alive` of 0 with a prompt: Ollama unloads the model as soon as nobody uses it, however that ended."""
    await hall.worker("a", answer)
    (worker,) = hall.admission.ready()
    reply = RecordingReply()
    unloading = Ask(Kind.INFERENCE, "m", unloads=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.exchange.infer, request("/api/chat"), unloading, b"{}", reply)
        await reply.first_write.wait()
        if not reply.ended:
            assert worker.holds("m:latest")
            hall.admission.worker_models("a", frozenset({"m:latest"}))  # a poll, while it is still loaded
        if leaves:
            nursery.cancel_scope.cancel()
    assert not worker.holds("m:latest")


# -- a worker is lost within its answer ------------------------------------------------------------------------


@pytest.mark.parametrize("then", [dies, dies_mid_chunk])
async def test_a_broken_ndjson_stream_ends_with_an_error_line(hall: Hall, then: Behaviour) -> None:
    await hall.worker("a", starts(LINE, then=then))
    await hall.worker("b", says(b"never asked"))
    reply = await ask(hall)
    assert reply.body.startswith(LINE)
    *_, last, nothing = reply.body.split(b"\n")
    assert (json.loads(last), nothing) == ({"error": "the worker was lost before its answer was complete"}, b"")
    assert (reply.ended, reply.aborted, reply.header("x-chimera-attempts")) == (True, False, "1")


def events_of(body: bytes) -> list[tuple[str, list[str]]]:
    """Server-sent events as the standard reads them: a name and lines of data, ended by an empty line."""
    events: list[tuple[str, list[str]]] = []
    name, data = "message", list[str]()
    for line in body.decode().split("\n"):
        field, _, value = line.partition(": ")
        if not line and data:
            events.append((name, data))
        if not line:
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
    return events


@pytest.mark.parametrize(
    "sent",
    [
        b'data: {"a":1}\n\n',
        b'data: {"a":1}\n',  # within an event, though at a line's end
        b'event: content_block_delta\ndata: {"a"',
        b"event: content_block_delta\n",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_broken_event_stream_ends_with_an_error_event_of_its_own(hall: Hall, path: str, sent: bytes) -> None:
    await hall.worker("a", starts(sent, kind=SSE, then=dies))
    reply = await ask(hall, path)
    assert reply.body.startswith(sent)
    assert reply.ended
    name, (data,) = events_of(reply.body)[-1]
    told = json.loads(data)
    assert told["error"]["message"] == "the worker was lost before its answer was complete"
    assert (name, told.get("type")) == (("error", "error") if path == "/v1/messages" else ("message", None))


async def test_a_broken_body_without_lines_is_cut(hall: Hall) -> None:
    await hall.worker("a", starts(b'{"half":', kind="application/json", then=dies))
    reply = await ask(hall)
    assert (reply.body, reply.ended, reply.aborted) == (b'{"half":', False, True)


async def test_a_broken_stream_of_declared_length_is_cut_for_nothing_can_be_added_to_it(hall: Hall) -> None:
    async def behaviour(talk: Conversation) -> None:
        await talk.head("content-type: application/x-ndjson", "content-length: 1000")
        await talk.send(LINE)
        await talk.die()

    await hall.worker("a", behaviour)
    reply = await ask(hall)
    assert (reply.body, reply.ended, reply.aborted) == (LINE, False, True)


async def test_a_worker_that_falls_silent_within_its_answer_is_told_of(hall: Hall) -> None:
    hall.patience(stall_timeout_s=0.5)
    server = await hall.worker("a", starts(LINE, then=hangs))
    reply = await ask(hall)
    assert json.loads(reply.body.splitlines()[-1]) == {"error": "the worker fell silent within its answer"}
    await server.client_left.wait()


async def test_a_worker_that_falls_silent_after_its_head_is_not_replaced(hall: Hall) -> None:
    hall.patience(stall_timeout_s=0.5)
    await hall.worker("a", starts(then=hangs))
    await hall.worker("b", says(b"never asked"))
    with pytest.raises(Stalled):
        await ask(hall)


async def test_no_first_byte_in_time_is_told(hall: Hall) -> None:
    hall.patience(first_byte_timeout_s=0.5)
    server = await hall.worker("a", hangs)
    with pytest.raises(FirstByteTimeout):
        await ask(hall)
    await server.client_left.wait()


# -- the queue -------------------------------------------------------------------------------------------------


async def test_a_request_that_waited_says_so(hall: Hall) -> None:
    async with trio.open_nursery() as nursery:
        reply = RecordingReply()
        nursery.start_soon(ask, hall, "/api/chat", reply)
        await wait_all_tasks_blocked()
        await trio.sleep(0.02)
        await hall.worker("a", streams(LINE))
    assert int(reply.header("x-chimera-queue-ms") or 0) >= 20


async def test_a_full_queue_and_a_long_wait_are_told(hall: Hall) -> None:
    hall.admission.queue_timeout_s = 0.05
    with pytest.raises(QueueTimeout):
        await ask(hall)
    hall.admission.dispatcher.queue_size = 0
    with pytest.raises(QueueFull):
        await ask(hall)


async def test_a_slot_serves_one_request_at_a_time(hall: Hall) -> None:
    busy = most = 0

    async def counted(talk: Conversation) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await trio.sleep(0.005)
        busy -= 1
        await says(b"{}")(talk)

    hall.admission.dispatcher.queue_size = 100
    server = await hall.worker("a", counted, slots=2)
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(ask, hall)
    assert (most, len(server.received)) == (2, 12)


# -- the client leaves -----------------------------------------------------------------------------------------

Stage = Callable[[Hall, trio.Nursery], Awaitable[WorkerServer | None]]


async def queued(hall: Hall, nursery: trio.Nursery) -> None:
    nursery.start_soon(ask, hall)
    await wait_all_tasks_blocked()
    assert repr(hall.admission) == "<Admission 0 leases, 1 tickets>"


async def waiting_for_the_first_byte(hall: Hall, nursery: trio.Nursery) -> WorkerServer:
    server = await hall.worker("a", hangs)
    nursery.start_soon(ask, hall)
    await server.asked.wait()
    return server


async def with_the_head_received(hall: Hall, nursery: trio.Nursery) -> WorkerServer:
    server = await hall.worker("a", starts(then=hangs))
    nursery.start_soon(ask, hall)
    await server.asked.wait()
    await wait_all_tasks_blocked()
    return server


async def in_the_middle_of_a_stream(hall: Hall, nursery: trio.Nursery) -> WorkerServer:
    server = await hall.worker("a", starts(LINE, then=hangs))
    reply = RecordingReply()
    nursery.start_soon(ask, hall, "/api/chat", reply)
    await reply.first_write.wait()
    return server


async def in_the_middle_of_a_whole_answer(hall: Hall, nursery: trio.Nursery) -> WorkerServer:
    async def half(talk: Conversation) -> None:
        await talk.head("content-type: application/json", "content-length: 1000")
        await talk.send(b'{"half":')
        await talk.until_left()

    server = await hall.worker("a", half)
    reply = RecordingReply()
    nursery.start_soon(ask, hall, "/api/chat", reply)
    await reply.first_write.wait()
    return server


async def on_the_second_attempt(hall: Hall, nursery: trio.Nursery) -> WorkerServer:
    await hall.worker("a", dies)
    server = await hall.worker("b", hangs)
    nursery.start_soon(ask, hall)
    await server.asked.wait()
    return server


@pytest.mark.parametrize(
    "stage",
    [
        queued, waiting_for_the_first_byte, with_the_head_received, in_the_middle_of_a_stream,
        in_the_middle_of_a_whole_answer, on_the_second_attempt,
    ],
)  # fmt: skip
async def test_a_client_that_leaves_frees_its_place_and_its_worker(hall: Hall, stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        server = await stage(hall, nursery)
        nursery.cancel_scope.cancel()
    assert repr(hall.admission) == NOTHING_LEFT
    if server is not None:
        await server.client_left.wait()


async def test_a_client_that_leaves_while_its_worker_is_being_connected_frees_its_place(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = trio.Event()

    async def never(_self: object, _address: object) -> None:
        connecting.set()
        await trio.sleep_forever()

    server = await hall.worker("a", says(b"{}"))
    monkeypatch.setattr(trio._socket._SocketType, "connect", never)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, hall)
        await connecting.wait()
        nursery.cancel_scope.cancel()
    assert repr(hall.admission) == NOTHING_LEFT
    assert server.received == []


# -- the primary -----------------------------------------------------------------------------------------------


async def test_the_primary_answers_without_a_slot(hall: Hall) -> None:
    server = await hall.primary(says(b'{"models":[]}'))
    reply = RecordingReply()
    await hall.exchange.to_primary(request("/api/tags", "GET"), None, reply)
    assert (reply.status, reply.body, reply.header("x-chimera-worker")) == (200, b'{"models":[]}', "primary")
    assert server.received[0].header("content-length") is None


async def test_a_primary_that_is_away_is_told_of(hall: Hall) -> None:
    (await hall.primary(dies)).die()
    await wait_all_tasks_blocked()
    reply = RecordingReply()
    with pytest.raises(PrimaryAway):
        await hall.exchange.to_primary(request("/api/tags", "GET"), None, reply)
    await hall.primary(dies)
    with pytest.raises(PrimaryAway):
        await hall.exchange.to_primary(request("/api/tags", "GET"), None, reply)
    assert not reply.started


async def test_the_primarys_own_503_is_relayed(hall: Hall) -> None:
    await hall.primary(says(b'{"error":"x"}', status=503))
    reply = RecordingReply()
    await hall.exchange.to_primary(request("/api/show"), b"{}", reply)
    assert reply.status == 503


async def test_a_head_request_gets_its_head(hall: Hall) -> None:
    await hall.primary(says(b"Ollama is running"))
    reply = RecordingReply()
    await hall.exchange.to_primary(request("/", "HEAD"), None, reply)
    assert (reply.status, reply.header("content-length"), reply.body, reply.ended) == (200, "17", b"", True)


# -- a stream that ends as if all were well ----------------------------------------------------------------------

MID = b'{"message":{"content":"a"},"done":false}\n'
EVENT = b'data: {"choices":[]}\n\n'
CUT_SHORT = "the worker was lost before its answer was complete"


@pytest.mark.parametrize(
    ("path", "parts", "kind", "added"),
    [
        ("/api/chat", [MID], NDJSON, json.dumps({"error": CUT_SHORT}).encode() + b"\n"),
        ("/api/chat", [MID, MID[:9]], NDJSON, b"\n" + json.dumps({"error": CUT_SHORT}).encode() + b"\n"),
        ("/api/generate", [], NDJSON, json.dumps({"error": CUT_SHORT}).encode() + b"\n"),
        ("/v1/chat/completions", [EVENT], SSE, b"data: %s\n\n"),
        ("/v1/messages", [b"event: ping\ndata: {}\n\n"], SSE, b"event: error\ndata: %s\n\n"),
    ],
)
async def test_a_stream_without_its_last_word_does_not_pass_for_whole(
    hall: Hall, path: str, parts: list[bytes], kind: str, added: bytes
) -> None:
    await hall.worker("a", streams(*parts, kind=kind))
    reply = await ask(hall, path)
    rest = reply.body.removeprefix(b"".join(parts))
    assert rest.startswith(added.partition(b"%s")[0])
    assert CUT_SHORT.encode() in rest
    assert (reply.ended, reply.aborted) == (True, False)
    assert b'chimera_broken_answers_total{cause="no_end"} 1.0' in hall.metrics.render(0, [], [])


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_has_no_last_word_either(hall: Hall, status: int) -> None:
    """RFC 9110, 6.4.1: a line added to it could not be sent."""

    async def answers(talk: Conversation) -> None:
        await talk.head(f"content-type: {NDJSON}", status=status)

    await hall.worker("a", answers)
    reply = await ask(hall)
    assert (reply.status, reply.body, reply.ended) == (status, b"", True)
    assert b"chimera_broken_answers_total{" not in hall.metrics.render(0, [], [])


@pytest.mark.parametrize(
    ("path", "parts", "kind"),
    [
        ("/api/chat", [MID, b'{"done":tr', b"ue}", b"\n"], NDJSON),
        ("/api/generate", [MID, b'{"done":true,"context":[' + b"7," * 40_000 + b'7],"total_duration":5}\n'], NDJSON),
        ("/v1/completions", [EVENT, b"data: [DO", b"NE]\n", b"\n"], SSE),
        ("/v1/messages", [b"event: message_stop\ndata: {}\n\n"], SSE),
        ("/v1/audio/transcriptions", [b"data: whatever\n\n"], SSE),
    ],
)
async def test_a_stream_with_its_last_word_is_whole_however_it_comes(
    hall: Hall, path: str, parts: list[bytes], kind: str
) -> None:
    await hall.worker("a", streams(*parts, kind=kind))
    assert (await ask(hall, path)).body == b"".join(parts)
    assert b"chimera_broken_answers_total{" not in hall.metrics.render(0, [], [])


@pytest.mark.parametrize("behaviour", [says(b'{"response":"a"}'), says(MID, kind=NDJSON), says(b"{}", status=404)])
async def test_an_answer_with_a_length_needs_no_last_word(hall: Hall, behaviour: Behaviour) -> None:
    await hall.worker("a", behaviour)
    assert b"error" not in (await ask(hall)).body
    assert b"chimera_broken_answers_total{" not in hall.metrics.render(0, [], [])


async def test_the_primarys_streams_are_left_alone(hall: Hall) -> None:
    await hall.primary(streams(b'{"status":"success"}\n'))
    reply = RecordingReply()
    await hall.exchange.to_primary(request("/api/push"), b"{}", reply)
    assert reply.body == b'{"status":"success"}\n'


async def test_the_tokens_are_those_of_the_last_word(hall: Hall) -> None:
    usage = b'data: {"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
    await hall.worker("a", streams(usage % (0, 0), usage % (12, 34), b"data: [DONE]\n\n", kind=SSE))
    asked = request("/v1/completions")
    await hall.exchange.infer(asked, ASK, BODY, RecordingReply())
    assert (asked.phases.prompt_tokens, asked.phases.answer_tokens) == (12, 34)
    (tried,) = asked.phases.tries
    assert tried.sent_at is not None
    assert tried.first_byte_at is not None
    assert tried.last_byte_at is not None
    assert tried.began_at <= tried.sent_at <= tried.first_byte_at <= tried.last_byte_at <= (tried.ended_at or 0.0)


# -- what an answer took ---------------------------------------------------------------------------------------------

COUNTED = b'{"done":true,"prompt_eval_count":30,"eval_count":2}\n'


@pytest.mark.parametrize(
    ("script", "tokens"),
    [
        (says(COUNTED), [32]),
        (streams(LINE, LINE, COUNTED), [32]),
        (starts(LINE, then=dies), [1]),
        (says(b'{"error":"its own"}', status=400), [0]),
    ],
)
async def test_whoever_wants_to_know_hears_once_how_many_tokens_an_answer_took(
    hall: Hall, script: Behaviour, tokens: list[int]
) -> None:
    await hall.worker("a", script)
    spent: list[int] = []
    await hall.exchange.infer(request("/api/chat", spent=spent.append), ASK, BODY, RecordingReply())
    assert spent == tokens


async def test_a_stream_that_does_not_say_is_counted_by_its_parts(hall: Hall) -> None:
    """As OpenAI's streams are unless they are asked for their usage: each part has a token or so."""
    reply = RecordingReply()

    async def rest(talk: Conversation) -> None:
        await reply.first_write.wait()
        await talk.chunk(LINE)
        await talk.chunk(b"")

    await hall.worker("a", starts(LINE, then=rest))
    spent: list[int] = []
    await hall.exchange.infer(request("/api/chat", spent=spent.append), ASK, BODY, reply)
    assert spent == [2]


async def test_a_client_that_leaves_before_the_count_is_counted_by_what_it_got(hall: Hall) -> None:
    await hall.worker("a", starts(LINE, then=hangs))
    spent: list[int] = []
    reply = RecordingReply()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.exchange.infer, request("/api/chat", spent=spent.append), ASK, BODY, reply)
        await reply.first_write.wait()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert spent == [1]

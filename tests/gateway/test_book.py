"""Each request has one line when it has ended, on every path, and no line tells what was said."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from gateway.access import AccessLog, json_line
from gateway.asgi import AsgiLane
from gateway.book import Book
from gateway.front import Front
from gateway.pulls import Pulls
from gateway.request import Request
from tests.fakes.asgi import AsgiClient
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.worker_server import Behaviour, dies, hangs, says, starts, streams

PROMPT, ANSWER, KEY = "canary-in-the-prompt", "canary-in-the-answer", "canary-in-the-key"
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).encode()
MID = b'{"message":{"content":"%s"},"done":false}\n' % ANSWER.encode()
DONE = b'{"message":{"content":"%s"},"done":true,"prompt_eval_count":7,"eval_count":3}\n' % ANSWER.encode()
ERROR = b'{"error":"its runner died"}\n'


class House:
    """A gateway whose access lines are kept, and whose other log lines too."""

    def __init__(self, hall: Hall) -> None:
        self.hall = hall
        self.lines: list[str] = []
        access = AccessLog(self.lines.append, "on", form=json_line, now=lambda: 0.0)
        self.book = Book(hall.metrics, access)
        self.notes: list[tuple[Any, ...]] = []

    @property
    def front(self) -> AsgiLane:
        exchange = self.hall.exchange
        exchange._notes = self
        front = Front(exchange, Pulls(exchange), self.hall.metrics, max_body_bytes=10_000, book=self.book)
        return AsgiLane(front, self._no_pages)

    def begins(self, *noted: Any) -> None:
        self.notes.append(("begins", *noted))

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        assert after_s >= 0
        self.notes.append(("ends", worker_id, request_id, status, outcome))

    async def _no_pages(self, *_: Any) -> None:
        raise AssertionError("no page was asked for")

    def client(self, path: str = "/api/chat", **headers: str) -> AsgiClient:
        own = {"authorization": f"Bearer {KEY}", "x-api-key": KEY, "x-request-id": "req-1"}
        return AsgiClient(self.front, "POST", path, [*own.items(), *headers.items()])

    @property
    def line(self) -> dict[str, Any]:
        """The one line there is."""
        (line,) = self.lines
        fields: dict[str, Any] = json.loads(line)
        return fields


@pytest.fixture
async def house(nursery: trio.Nursery) -> AsyncIterator[House]:
    made = House(Hall(nursery))
    with capture_logs() as logged:
        yield made
    made.hall.upstream.close()
    assert repr(made.hall.admission) == NOTHING_LEFT
    said = "".join([*made.lines, repr(logged), repr(made.notes), made.hall.metrics.render(0, [], []).decode()])
    assert not any(canary in said for canary in (PROMPT, ANSWER, KEY))


OK: Behaviour = streams(MID, DONE)

# What two workers do, and what is said of the request then.
ENDS: list[tuple[str, list[Behaviour], dict[str, Any]]] = [
    ("whole", [OK], {"status": 200, "outcome": "ok", "prompt_tokens": 7, "answer_tokens": 3, "worker": "a"}),
    ("by another worker", [dies, OK], {"status": 200, "outcome": "ok", "attempts": 2, "worker": "b"}),
    (
        "the client's fault",
        [says(b'{"error":"no such model"}', status=404)],
        {"status": 404, "outcome": "client_error"},
    ),
    ("an error", [says(b'{"error":"oops"}', status=500)], {"status": 500, "outcome": "error", "first_byte_ms": 0}),
    ("an error line", [streams(MID, ERROR)], {"status": 200, "outcome": "broken", "prompt_tokens": None}),
    ("no end", [streams(MID)], {"status": 200, "outcome": "broken"}),
    ("lost within", [starts(MID, then=dies)], {"status": 200, "outcome": "broken"}),
    ("all lost", [dies, dies], {"status": 502, "outcome": "error", "attempts": 2}),
]


@pytest.mark.parametrize(("workers", "said"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
async def test_a_request_has_one_line_that_says_how_it_ended(
    house: House, workers: list[Behaviour], said: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    for name, behaviour in zip("ab", workers, strict=False):
        await house.hall.worker(name, behaviour)
    client = await house.client().ask(CHAT)
    common = {"request": "req-1", "client": "127.0.0.1", "method": "POST", "path": "/api/chat", "model": "m",
              "bytes_in": len(CHAT), "bytes_out": len(client.body), "event": "request"}  # fmt: skip
    assert common.items() <= house.line.items()
    assert said.items() <= house.line.items()


async def test_a_request_that_got_no_slot_says_how_long_it_waited(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    await house.client().ask(CHAT)
    waited = {"status": 503, "outcome": "refused", "worker": None, "queue_ms": 20000, "total_ms": 20000}
    assert waited.items() <= house.line.items()
    assert b'chimera_queue_refusals_total{cause="queue_timeout"} 1.0' in house.hall.metrics.render(0, [], [])


async def test_one_that_is_silent_for_too_long_is_a_timeout(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.hall.patience(first_byte_timeout_s=3.0)
    await house.hall.worker("a", hangs)
    await house.client().ask(CHAT)
    assert (house.line["status"], house.line["outcome"], house.line["total_ms"]) == (504, "timeout", 3000)
    assert [note[-1] for note in house.notes] == ["m", "timeout"]


async def test_one_whose_body_is_too_large_is_the_clients_fault(house: House) -> None:
    await house.client(**{"content-length": "10001"}).ask(b"x" * 10_001)
    assert (house.line["status"], house.line["outcome"], house.line["model"]) == (413, "client_error", None)


LEAVES: list[tuple[str, list[Behaviour], Callable[[AsgiClient, Hall], Any]]] = [
    ("queue", [], lambda _, hall: hall.admission.queue()["depth"]),
    ("worker", [hangs], lambda _, hall: hall.admission.inflight("a")),
    ("answer", [starts(MID, then=hangs)], lambda client, _: client.body),
]


@pytest.mark.parametrize(("phase", "workers", "there"), LEAVES, ids=[row[0] for row in LEAVES])
async def test_a_client_that_leaves_has_its_line_too(
    house: House, phase: str, workers: list[Behaviour], there: Callable[[AsgiClient, Hall], Any]
) -> None:
    for behaviour in workers:
        await house.hall.worker("a", behaviour)
    client = house.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        while not there(client, house.hall):
            await trio.lowlevel.checkpoint()
        client.leave()
    assert house.line["outcome"] == "client_left"
    assert f'chimera_clients_left_total{{phase="{phase}"}} 1.0'.encode() in house.hall.metrics.render(0, [], [])


async def test_a_client_that_leaves_while_it_sends_is_known(house: House) -> None:
    client = house.client(**{"content-length": "100"})
    client.send_body(b"{", more=True)
    client.leave()
    await client.run()
    assert (house.line["outcome"], house.line["bytes_in"], house.line["read_ms"]) == ("client_left", 1, None)


async def test_a_request_that_is_cut_has_its_line_too(house: House) -> None:
    await house.hall.worker("a", starts(MID, then=hangs))
    client = house.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, CHAT)
        await client.first_write.wait()
        nursery.cancel_scope.cancel()
    assert (house.line["outcome"], house.line["status"], house.notes[-1][-1]) == ("cut", 200, "cut")


async def test_a_bug_of_ours_has_its_line_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def buggy(*_: Any) -> None:
        raise KeyError(PROMPT)

    monkeypatch.setattr(house.hall.exchange, "infer", buggy)
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True, allow_unwrapped=True):
        await house.client().ask(CHAT)
    assert house.line["outcome"] == "error"


async def test_a_request_to_the_primary_and_a_load_have_theirs(house: House) -> None:
    await house.hall.primary(says(b'{"models":[]}'))
    for name in "ab":
        await house.hall.worker(name, says(b'{"done":true}'))
    await house.client("/api/show").ask(b'{"model":"m"}')
    await house.client("/api/generate").ask(b'{"model":"m"}')
    shown, loaded = (json.loads(line) for line in house.lines)
    assert (shown["worker"], shown["outcome"], shown["attempts"]) == ("primary", "ok", 1)
    assert (loaded["worker"], loaded["outcome"], loaded["model"]) == ("a", "ok", "m")
    assert sorted(note[:2] for note in house.notes) == [
        ("begins", "a"), ("begins", "b"), ("begins", "primary"), ("ends", "a"), ("ends", "b"), ("ends", "primary"),
    ]  # fmt: skip


async def test_a_worker_is_noted_to_have_been_given_the_clients_request_id(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    first = await house.hall.worker("a", dies)
    await house.hall.worker("b", OK)
    await house.client().ask(CHAT)
    assert house.notes == [
        ("begins", "a", "req-1", "m"), ("ends", "a", "req-1", 0, "lost"),
        ("begins", "b", "req-1", "m"), ("ends", "b", "req-1", 200, "ok"),
    ]  # fmt: skip
    assert first.received[0].header("x-request-id") == "req-1"
    text = house.hall.metrics.render(
        0, [{"id": id_, "placement": "cpu", "state": "IDLE", "inflight": 0, "restarts": 0} for id_ in "ab"], []
    )
    assert b'chimera_worker_requests_total{outcome="lost",worker="a"} 1.0' in text
    assert b'chimera_worker_requests_total{outcome="ok",worker="b"} 1.0' in text


async def test_who_traces_hears_of_the_beginning_and_of_the_end(nursery: trio.Nursery) -> None:
    hall, heard = Hall(nursery), []

    class Tracer:
        def begin(self, request: Request) -> None:
            heard.append(("begin", request.phases.outcome))

        def end(self, request: Request, route: str) -> None:
            heard.append((route, request.phases.outcome))

    await hall.worker("a", OK)
    front = Front(
        hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=1000, book=Book(hall.metrics, None, Tracer())
    )
    await AsgiClient(AsgiLane(front, House(hall)._no_pages), "POST", "/api/chat").ask(CHAT)
    assert heard == [("begin", ""), ("/api/chat", "ok")]
    hall.upstream.close()


async def test_a_secret_is_in_no_line_of_the_standard_librarys_log_either(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    structlog.get_logger("gateway").debug("the log is listened to")
    await house.hall.worker("a", starts(MID, then=dies))
    await house.client(f"/api/chat?key={KEY}").ask(CHAT)
    assert house.line["path"] == "/api/chat"
    assert not any(canary in caplog.text for canary in (PROMPT, ANSWER, KEY))

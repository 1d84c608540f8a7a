"""Answers made of many workers'."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway import fleetwide as module
from gateway.errors import Dialect, WorkerLost
from gateway.exchange import Request
from gateway.fleetwide import Fleetwide, merged_ps, models_of
from gateway.ollama import Ask, Kind
from tests.fakes.hall import NOTHING_LEFT, Hall
from tests.fakes.reply import RecordingReply
from tests.fakes.worker_server import Behaviour, dies, hangs, says


def request(method: str, path: str) -> Request:
    headers = [(b"accept-encoding", b"gzip"), (b"content-type", b"application/json")]
    return Request(method, path, path.encode(), headers, Dialect.OLLAMA, "req-1")


@pytest.fixture
async def hall(nursery: trio.Nursery) -> AsyncIterator[Hall]:
    made = Hall(nursery)
    yield made
    await made.upstream.aclose()
    assert repr(made.admission) == NOTHING_LEFT


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "size": 10, "size_vram": 4, "expires_at": "2026-01-01T10:00:00Z", **more}


# -- /api/ps -----------------------------------------------------------------------------------------------------------


def test_one_row_for_each_model_with_the_memory_of_all_its_copies() -> None:
    merged = merged_ps(
        {
            "a": [model("m", digest="d"), model("n")],
            "b": [model("m", expires_at="2026-01-01T11:00:00Z", size_vram=None)],
            "c": [],
        }
    )
    assert merged == {
        "models": [
            model("m", digest="d", size=20, expires_at="2026-01-01T11:00:00Z", workers=["a", "b"]),
            model("n", workers=["a"]),
        ]
    }


def test_no_worker_means_no_models() -> None:
    assert merged_ps({}) == {"models": []}


def test_a_size_that_is_no_number_counts_as_none() -> None:
    """A worker that says nonsense must not cost the others' rows, nor the answer."""
    merged = merged_ps({"a": [model("m")], "b": [model("m", size="x", size_vram={})], "c": [model("m", size=[1])]})
    assert (merged["models"][0]["size"], merged["models"][0]["workers"]) == (10, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (b'{"models":[{"name":"m"}]}', [{"name": "m"}]),
        (b'{"models":[]}', []),
        (b'{"models":null}', []),
        (b"{}", None),
        (b"[]", None),
        (b"null", None),
        (b"<html>", None),
        (b"\xff", None),
        (b'{"models":{"name":"m"}}', None),
        (b'{"models":["m"]}', None),
        (b"[" * 100_000, None),
    ],
)
def test_only_an_answer_in_the_known_form_counts(body: bytes, models: list[dict[str, Any]] | None) -> None:
    assert models_of(body) == models


@given(st.lists(st.lists(st.sampled_from("mnop"), unique=True, max_size=4), max_size=4))
def test_every_copy_is_counted_once(holdings: list[list[str]]) -> None:
    merged = merged_ps({str(at): [model(name) for name in names] for at, names in enumerate(holdings)})
    for row in merged["models"]:
        assert row["workers"] == [str(at) for at, names in enumerate(holdings) if row["name"] in names]
        assert row["size"] == 10 * len(row["workers"])
    assert {row["name"] for row in merged["models"]} == {name for names in holdings for name in names}


async def ps(hall: Hall, method: str = "GET") -> RecordingReply:
    reply = RecordingReply()
    await Fleetwide(hall.exchange).ps(request(method, "/api/ps"), reply)
    return reply


async def test_the_fleets_models_are_asked_of_every_worker(hall: Hall) -> None:
    for name in "ab":
        await hall.worker(name, says(json.dumps({"models": [model("m")]}).encode()))
    reply = await ps(hall)
    assert json.loads(reply.body)["models"][0]["workers"] == ["a", "b"]
    assert (reply.status, reply.header("content-length")) == (200, str(len(reply.body)))


@pytest.mark.parametrize("fails", [dies, hangs, says(b"<html>"), says(b"{}", status=500)])
async def test_a_worker_that_gives_no_good_answer_is_left_out(
    hall: Hall, fails: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PS_TIMEOUT_S", 2.0)
    await hall.worker("a", fails)
    await hall.worker("b", says(json.dumps({"models": [model("m")]}).encode()))
    assert json.loads((await ps(hall)).body)["models"][0]["workers"] == ["b"]


async def test_a_worker_is_not_asked_for_a_compressed_answer(hall: Hall) -> None:
    server = await hall.worker("a", says(b'{"models":[]}'))
    await ps(hall)
    assert server.received[0].header("accept-encoding") is None


async def test_a_head_request_gets_the_length_alone(hall: Hall) -> None:
    reply = await ps(hall, "HEAD")
    assert (reply.body, reply.header("content-length"), reply.ended) == (b"", str(len(b'{"models": []}')), True)


# -- load and unload ---------------------------------------------------------------------------------------------------


async def load(hall: Hall, kind: Kind, name: str = "m") -> RecordingReply:
    reply = RecordingReply()
    body = json.dumps({"model": name}).encode()
    await Fleetwide(hall.exchange).load(request("POST", "/api/generate"), Ask(kind, name), body, reply)
    return reply


async def test_a_load_reaches_every_ready_worker(hall: Hall) -> None:
    servers = [await hall.worker(name, says(b'{"done":true}')) for name in "abc"]
    hall.admission.cordon("c")
    reply = await load(hall, Kind.LOAD)
    assert (reply.status, reply.body, reply.header("x-chimera-worker")) == (200, b'{"done":true}', "a,b")
    assert [len(server.received) for server in servers] == [1, 1, 0]


@pytest.mark.parametrize(("name", "loaded"), [("m", "m:latest"), ("m:latest", "m:latest"), ("m:8b", "m:8b")])
async def test_an_unload_reaches_the_workers_that_hold_the_model(hall: Hall, name: str, loaded: str) -> None:
    servers = [await hall.worker(worker_id, says(b'{"done":true}')) for worker_id in "abc"]
    for worker_id in "bc":
        hall.admission.worker_models(worker_id, frozenset({loaded}))
    reply = await load(hall, Kind.UNLOAD, name)
    assert reply.header("x-chimera-worker") == "b,c"
    assert [len(server.received) for server in servers] == [0, 1, 1]


async def test_an_unload_of_what_nobody_holds_is_answered_by_one(hall: Hall) -> None:
    servers = [await hall.worker(name, says(b'{"done":true}')) for name in "ab"]
    await load(hall, Kind.UNLOAD)
    assert [len(server.received) for server in servers] == [1, 0]


async def test_the_first_refusal_is_the_answer(hall: Hall) -> None:
    await hall.worker("a", says(b'{"done":true}'))
    await hall.worker("b", says(b'{"error":"not found"}', status=404))
    reply = await load(hall, Kind.LOAD)
    assert (reply.status, reply.body) == (404, b'{"error":"not found"}')


async def test_a_worker_lost_while_it_loads_does_not_spoil_the_others_answer(hall: Hall) -> None:
    await hall.worker("a", dies)
    await hall.worker("b", says(b'{"done":true}'))
    assert (await load(hall, Kind.LOAD)).header("x-chimera-worker") == "b"


async def test_all_workers_lost_while_they_load_is_told(hall: Hall) -> None:
    await hall.worker("a", dies)
    with pytest.raises(WorkerLost):
        await load(hall, Kind.LOAD)


async def test_with_no_worker_ready_a_load_waits_for_one(hall: Hall) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, hall, Kind.LOAD)
        await wait_all_tasks_blocked()
        assert hall.admission.queue()["depth"] == 1
        server = await hall.worker("a", says(b'{"done":true}'))
    assert len(server.received) == 1


async def test_a_client_that_leaves_ends_every_load(hall: Hall) -> None:
    servers = [await hall.worker(name, hangs) for name in "ab"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, hall, Kind.LOAD)
        for server in servers:
            await server.asked.wait()
        nursery.cancel_scope.cancel()
    for server in servers:
        await server.client_left.wait()


async def test_a_load_and_an_unload_show_what_is_loaded_now(hall: Hall) -> None:
    await hall.worker("a", says(b'{"done":true}'))
    await hall.worker("b", says(b'{"error":"not found"}', status=404))
    a, b = hall.admission.ready()
    await load(hall, Kind.LOAD)
    assert (set(a.loaded), set(b.loaded)) == ({"m:latest"}, set())
    await load(hall, Kind.UNLOAD)
    assert (set(a.loaded), set(b.loaded)) == (set(), set())


async def test_a_load_that_makes_no_progress_is_told_to_the_watch(hall: Hall) -> None:
    hall.patience(first_byte_timeout_s=0.5)
    await hall.worker("a", hangs)
    with pytest.raises(WorkerLost):
        await load(hall, Kind.LOAD)
    assert [(who, phase) for who, _, phase, _ in hall.silences] == [("a", "first byte")]

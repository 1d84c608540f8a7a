"""Answers made of many workers'."""

import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway import fleetwide as module
from gateway.errors import Dialect, ModelLethal, WorkerLost
from gateway.fleetwide import Fleetwide, merged_ps, models_of
from gateway.ollama import Ask, Kind
from gateway.request import Request
from tests.fakes.hall import Hall
from tests.fakes.reply import RecordingReply
from tests.fakes.worker_server import Behaviour, dies, hangs, says


def request(method: str, path: str) -> Request:
    headers = [(b"accept-encoding", b"gzip"), (b"content-type", b"application/json")]
    return Request(method, path, path.encode(), headers, Dialect.OLLAMA, "req-1")


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


def test_what_stays_longest_comes_first() -> None:
    ends = {
        "soon": "2026-01-01T10:00:00.9Z",
        "forever": "2318-03-06T22:15:47.707600128Z",
        "sooner": "2026-01-01T11:00:00+02:00",
        "loading": "0001-01-01T00:00:00Z",
        "odd": "tomorrow",
        "later": "2026-01-01T10:00:00.95Z",
    }
    merged = merged_ps({"a": [model(name, expires_at=at) for name, at in ends.items()]})
    assert [row["name"] for row in merged["models"]] == ["forever", "later", "soon", "sooner", "loading", "odd"]


def test_a_model_stays_until_its_last_copy_goes() -> None:
    early, late = model("m", expires_at="2026-01-01T10:00:00.9Z"), model("m", expires_at="2026-01-01T10:00:00.95Z")
    for answers in ({"a": [early], "b": [late]}, {"a": [late], "b": [early]}):
        assert merged_ps(answers)["models"][0]["expires_at"] == late["expires_at"]


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


async def ps(hall: Hall) -> RecordingReply:
    reply = RecordingReply()
    await Fleetwide(hall.exchange).ps(request("GET", "/api/ps"), reply)
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


async def test_a_cordoned_worker_still_says_what_takes_its_memory(hall: Hall) -> None:
    await hall.worker("a", says(json.dumps({"models": [model("m")]}).encode()))
    hall.admission.cordon("a")
    assert json.loads((await ps(hall)).body)["models"][0]["workers"] == ["a"]


async def test_one_workers_answer_is_passed_on_byte_for_byte_but_for_who_gave_it(hall: Hall) -> None:
    own = b'{"models":[{"name":"m","size":10,"details":{"a":["b"]},"expires_at":"2026-01-01T10:00:00.123456789Z"}]}'
    await hall.worker("a", says(own))
    assert (await ps(hall)).body.replace(b',"workers":["a"]', b"") == own


async def test_it_says_whom_it_asked(hall: Hall) -> None:
    for name in "ab":
        await hall.worker(name, says(b'{"models":[]}'))
    reply = await ps(hall)
    assert (reply.header("x-chimera-worker"), reply.header("x-request-id")) == ("a,b", "req-1")


# -- load and unload ---------------------------------------------------------------------------------------------------


async def load(hall: Hall, kind: Kind, name: str = "m", fleetwide: Fleetwide | None = None) -> RecordingReply:
    reply = RecordingReply()
    body = json.dumps({"model": name}).encode()
    asked = request("POST", "/api/generate")
    await (fleetwide or Fleetwide(hall.exchange)).load(asked, Ask(kind, name), body, reply)
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


async def test_an_unload_of_what_nobody_is_known_to_hold_reaches_every_worker(hall: Hall) -> None:
    """What is known of the workers is as old as the last poll."""
    servers = [await hall.worker(name, says(b'{"done":true}')) for name in "ab"]
    reply = await load(hall, Kind.UNLOAD)
    assert [len(server.received) for server in servers] == [1, 1]
    assert (reply.body, reply.header("x-chimera-worker")) == (b'{"done":true}', "a,b")


async def test_an_unload_reaches_a_cordoned_worker_and_a_load_does_not(hall: Hall) -> None:
    servers = [await hall.worker(name, says(b'{"done":true}')) for name in "ab"]
    for name in "ab":
        hall.admission.worker_models(name, frozenset({"m:latest"}))
    hall.admission.cordon("b")
    await load(hall, Kind.UNLOAD)
    assert [len(server.received) for server in servers] == [1, 1]
    await load(hall, Kind.LOAD)
    assert [len(server.received) for server in servers] == [2, 1]


async def test_an_unload_finds_a_load_that_is_under_way(hall: Hall) -> None:
    fleetwide = Fleetwide(hall.exchange)
    loading = await hall.worker("a", hangs, says(b'{"done":true}'))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, hall, Kind.LOAD, "m", fleetwide)
        await loading.asked.wait()
        holding = await hall.worker("b", says(b'{"done":true}'))
        hall.admission.worker_models("b", frozenset({"m:latest"}))
        assert (await load(hall, Kind.UNLOAD, "m", fleetwide)).header("x-chimera-worker") == "a,b"
        nursery.cancel_scope.cancel()
    assert (await load(hall, Kind.UNLOAD, "m", fleetwide)).header("x-chimera-worker") == "a,b", "nobody holds it now"
    hall.admission.worker_models("b", frozenset({"m:latest"}))
    assert (await load(hall, Kind.UNLOAD, "m", fleetwide)).header("x-chimera-worker") == "b", "the load was given up"
    assert len(holding.received) == 3


async def test_an_answer_without_a_body_is_passed_on(hall: Hall) -> None:
    await hall.worker("a", says(b"", status=403))  # Ollama's to a foreign Origin
    reply = await load(hall, Kind.LOAD)
    assert (reply.status, reply.body, reply.ended) == (403, b"", True)


async def test_a_load_passes_over_a_worker_under_suspicion_while_there_is_another(hall: Hall) -> None:
    servers = [await hall.worker(name, says(b'{"done":true}')) for name in "ab"]
    hall.admission.avoid("a", avoided=True)
    await load(hall, Kind.LOAD)
    assert [len(server.received) for server in servers] == [0, 1]
    hall.admission.avoid("b", avoided=True)
    await load(hall, Kind.LOAD)
    assert [len(server.received) for server in servers] == [1, 2]


DONE, REFUSED = says(b'{"done":true}'), says(b'{"error":"no room"}', status=500)


@pytest.mark.parametrize(
    ("kind", "behaviours", "status", "worker"),
    [
        (Kind.LOAD, [REFUSED, DONE, DONE], 200, "b,c"),  # it can be used
        (Kind.LOAD, [REFUSED, REFUSED], 500, "a,b"),
        (Kind.UNLOAD, [DONE, REFUSED], 500, "b"),  # it is still there
        (Kind.UNLOAD, [DONE, DONE], 200, "a,b"),
    ],
)
async def test_of_several_answers_the_client_gets_the_one_that_is_true_of_the_fleet(
    hall: Hall, kind: Kind, behaviours: list[Behaviour], status: int, worker: str
) -> None:
    for name, behaviour in zip("abc", behaviours, strict=False):
        await hall.worker(name, behaviour)
    reply = await load(hall, kind)
    assert (reply.status, reply.header("x-chimera-worker")) == (status, worker)
    assert reply.body == (b'{"done":true}' if status == 200 else b'{"error":"no room"}')


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
    hall.admission.worker_models("b", frozenset({"m:latest"}))
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


async def test_a_model_that_nobody_has_is_loaded_by_one_first(hall: Hall) -> None:
    """A damaged one that ends who loads it must not end them all at once."""
    servers = [await hall.worker(name, dies) for name in "abcd"]
    for _ in range(2):
        with pytest.raises(ModelLethal):
            await load(hall, Kind.LOAD)
    assert [len(server.received) for server in servers] == [1, 1, 0, 0]


async def test_a_worker_with_no_room_for_a_model_is_passed_over_for_it(hall: Hall) -> None:
    no_room = b'{"error":"model requires more system memory (9 GiB) than is available (1 GiB)"}'
    await hall.worker("a", says(no_room, status=500))
    await hall.worker("b", says(b'{"done":true}'))
    reply = await load(hall, Kind.LOAD)
    assert (reply.status, reply.header("x-chimera-worker")) == (200, "b")
    assert [list(worker.cooled) for worker in hall.admission.ready()] == [["m:latest"], []]


async def test_a_load_that_makes_no_progress_is_told_to_the_watch(hall: Hall) -> None:
    hall.patience(first_byte_timeout_s=0.5)
    await hall.worker("a", hangs)
    with pytest.raises(WorkerLost):
        await load(hall, Kind.LOAD)
    assert [(who, phase) for who, _, phase, _ in hall.silences] == [("a", "first byte")]

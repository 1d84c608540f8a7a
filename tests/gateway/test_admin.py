"""The admin API, asked through Quart's test client."""

import json
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio

from gateway import admin as module
from gateway.admin import DOMAINS_KEY, PROXIES_KEY
from gateway.admission import Admission
from gateway.app import make_app
from gateway.dispatch import QUEUE_BYTES
from gateway.metrics import Metrics
from gateway.traefik import Domains, traefik_document
from tests.fakes.asgi import AsgiClient
from tests.fakes.fleet_admin import FakeFleet, FleetError

LOCAL = {"scope_base": {"client": ("127.0.0.1", 40000)}, "headers": {"host": "127.0.0.1:8000"}}


def app_of(fleet: FakeFleet, token: str | None = None) -> QuartTrio:
    return make_app(fleet, Admission(4, 300.0, lambda: 0.5), Metrics(), token)


async def ask(
    fleet: FakeFleet, method: str, path: str, body: object = None, *, token: str | None = None, **more: Any
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    answer = await app_of(fleet, token).test_client().open(path, method=method, data=data, **{**LOCAL, **more})
    text = await answer.get_data(as_text=True)
    return answer.status_code, json.loads(text) if answer.content_type == "application/json" else text


# -- the calls ---------------------------------------------------------------------------------------------------------


async def test_the_fleet_is_shown_with_its_queue_and_its_primary() -> None:
    status, shown = await ask(FakeFleet(), "GET", "/admin/instances")
    assert (status, [row["id"] for row in shown["instances"]]) == (200, ["cpu-1", "cpu-2"])
    assert shown["queue"] == {"depth": 0, "size": 4, "oldest_s": 0.0, "bytes": 0, "size_bytes": QUEUE_BYTES}
    assert shown["primary"]["id"] == "primary"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "ordered"),
    [
        ("POST", "/admin/instances/spawn", None, 202, ("spawn", None, 1, None)),
        ("POST", "/admin/instances/spawn", {"gpu": 0, "count": 2, "slots": 8}, 202, ("spawn", 0, 2, 8)),
        ("POST", "/admin/instances/spawn?gpu=cpu&count=2", None, 202, ("spawn", "cpu", 2, None)),
        ("POST", "/admin/instances/prune", None, 202, ("prune", None, None, False, False)),
        ("POST", "/admin/instances/prune", {"ids": ["cpu-1"]}, 202, ("prune", ["cpu-1"], None, False, False)),
        ("POST", "/admin/instances/prune?idle=1&force=1", None, 202, ("prune", None, None, True, True)),
        ("DELETE", "/admin/instances/cpu-1", None, 202, ("prune", ["cpu-1"], None, False, False)),
        ("DELETE", "/admin/instances/cpu-1?force=1", None, 202, ("prune", ["cpu-1"], None, False, True)),
        ("POST", "/admin/instances/cpu-1/drain", None, 202, ("drain", "cpu-1")),
        ("POST", "/admin/instances/cpu-1/cordon", None, 202, ("cordon", "cpu-1")),
        ("POST", "/admin/instances/cpu-1/uncordon", None, 202, ("uncordon", "cpu-1")),
        ("POST", "/admin/instances/cpu-1/restart", None, 202, ("restart", "cpu-1")),
        ("POST", "/admin/gpus/GPU-1/quarantine", None, 202, ("quarantine", "GPU-1")),
        ("POST", "/admin/gpus/GPU-1/release", None, 202, ("release", "GPU-1")),
    ],
)
async def test_an_order_reaches_the_fleet(
    method: str, path: str, body: object, status: int, ordered: tuple[object, ...]
) -> None:
    fleet = FakeFleet()
    assert (await ask(fleet, method, path, body))[0] == status
    assert fleet.ordered == [ordered]


async def test_a_spawn_answers_with_the_new_workers_alone() -> None:
    _, answer = await ask(FakeFleet(), "POST", "/admin/instances/spawn", {"count": 2})
    assert [row["id"] for row in answer["instances"]] == ["new-0", "new-1"]


@pytest.mark.parametrize("call", ["spawn", "prune"])
async def test_an_answer_waits_when_asked_to(call: str) -> None:
    fleet = FakeFleet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, fleet, "POST", f"/admin/instances/{call}?wait=1")
        await fleet.waiting.wait()
        (fleet.settled if call == "spawn" else fleet.gone).set()


@pytest.mark.parametrize("call", ["spawn", "prune"])
async def test_no_answer_waits_for_ever(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_TIMEOUT_S", 0.02)
    assert (await ask(FakeFleet(), "POST", f"/admin/instances/{call}?wait=1"))[0] == 202


async def test_one_worker_and_the_gpus_are_shown() -> None:
    assert (await ask(FakeFleet(), "GET", "/admin/instances/cpu-1"))[1]["id"] == "cpu-1"
    assert (await ask(FakeFleet(), "GET", "/admin/gpus"))[1]["fault"] == "no driver"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FleetError("not_understood", "count is 0; it must be at least 1"), 400),
        (FleetError("not_found", "there is no GPU 7"), 404),
        (FleetError("no_room", "GPU 0 is quarantined"), 409),
    ],
)
@pytest.mark.parametrize("path", ["instances/spawn", "instances/prune", "instances/cpu-1/drain", "gpus/x/release"])
async def test_a_refusal_of_the_fleet_is_told_in_its_words(error: Exception, status: int, path: str) -> None:
    fleet = FakeFleet(refuses=error)
    assert await ask(fleet, "POST", f"/admin/{path}") == (status, {"error": str(error)})


async def test_a_request_in_no_known_form_is_refused_with_the_fields_name() -> None:
    fleet = FakeFleet()
    status, answer = await ask(fleet, "POST", "/admin/instances/spawn", {"cuont": 2})
    assert status == 400
    assert "cuont" in answer["error"]
    assert "count" in answer["error"], "it says which fields there are"
    assert fleet.ordered == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/instances/nobody"),
        ("POST", "/admin/instances/nobody/drain"),
        ("GET", "/admin/instances/nobody/logs"),
        ("GET", "/admin/instances/nobody/logs?follow=1"),
    ],
)
async def test_a_worker_that_is_not_there_is_not_found(method: str, path: str) -> None:
    assert await ask(FakeFleet(), method, path) == (404, {"error": "there is no worker 'nobody'"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/admin/instances/cpu-1/explode", 404),
        ("GET", "/admin/nothing", 404),
        ("DELETE", "/admin/instances", 405),
        ("GET", "/admin/instances/cpu-1/drain", 405),
    ],
)
async def test_what_there_is_not_is_refused_as_json(method: str, path: str, status: int) -> None:
    answered, answer = await ask(FakeFleet(), method, path)
    assert (answered, list(answer)) == (status, ["error"])


async def test_a_large_body_is_refused() -> None:
    status, answer = await ask(FakeFleet(), "POST", "/admin/instances/spawn", b" " * 2_000_000)
    assert (status, list(answer)) == (413, ["error"])


# -- who asks ----------------------------------------------------------------------------------------------------------

CALLS = [
    ("GET", "/admin/instances"), ("POST", "/admin/instances/spawn"), ("POST", "/admin/instances/prune"),
    ("DELETE", "/admin/instances/cpu-1"), ("POST", "/admin/instances/cpu-1/drain"), ("GET", "/admin/gpus"),
    ("GET", "/admin/instances/cpu-1/logs"), ("GET", "/admin/events"), ("POST", "/admin/gpus/x/quarantine"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_every_call_asks_for_the_token(method: str, path: str) -> None:
    fleet = FakeFleet()
    status, answer = await ask(fleet, method, path, token="s3cret")
    assert (status, "ADMIN_TOKEN" in answer["error"], fleet.ordered) == (401, True, [])
    headers = {"host": "chimera.example", "authorization": "Bearer s3cret"}
    far = {"client": ("192.0.2.7", 1)}
    assert (await ask(fleet, method, path, token="s3cret", headers=headers, scope_base=far))[0] in (200, 202)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_without_a_token_every_call_answers_this_machine_only(method: str, path: str) -> None:
    fleet = FakeFleet()
    assert (await ask(fleet, method, path, scope_base={"client": ("192.0.2.7", 1)}))[0] == 403
    assert (await ask(fleet, method, path, headers={"host": "evil.example"}))[0] == 403
    assert fleet.ordered == []


async def test_a_missing_token_is_asked_for_by_name() -> None:
    answer = await app_of(FakeFleet(), "s3cret").test_client().get("/admin/instances", **LOCAL)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


# -- logs and events ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "text"),
    [("", "one\ntwo\nthrée\n"), ("?n=1", "thrée\n"), ("?n=0", ""), ("?follow=0", "one\ntwo\nthrée\n")],
)
async def test_the_last_lines_of_a_log(query: str, text: str) -> None:
    assert await ask(FakeFleet(), "GET", f"/admin/instances/cpu-1/logs{query}") == (200, text)


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "100001", "%C2%B2", "9" * 5000, ""])
async def test_a_count_of_lines_that_is_none_is_refused(count: str) -> None:
    status, answer = await ask(FakeFleet(), "GET", f"/admin/instances/cpu-1/logs?n={count}")
    assert (status, answer["error"].startswith("n is")) == (400, True)


async def test_events_are_lines_of_json() -> None:
    status, text = await ask(FakeFleet(), "GET", "/admin/events")
    assert (status, json.loads(text)) == (200, {"event": "worker_ready", "worker": "cpu-1"})


# -- who stands in front of it -----------------------------------------------------------------------------------------


async def test_traefik_is_told_by_the_address_that_it_asked_by() -> None:
    app = app_of(FakeFleet())
    app.config[DOMAINS_KEY] = Domains(("api.example",), ("chat.example",))
    asked = {**LOCAL, "headers": {"host": "127.0.0.1:8123"}}
    answer = await app.test_client().get("/admin/traefik?entrypoints=web,websecure&resolver=le", **asked)
    assert answer.status_code == 200
    assert await answer.get_json() == traefik_document(
        Domains(("api.example",), ("chat.example",)), "http://127.0.0.1:8123",
        entry_points=("web", "websecure"), resolver="le",
    )  # fmt: skip


async def test_traefik_is_told_nothing_while_no_name_leads_here() -> None:
    status, answer = await ask(FakeFleet(), "GET", "/admin/traefik")
    assert status == 404
    assert "TRAEFIK_API_DOMAIN" in answer["error"]


async def test_what_traefik_cannot_mean_is_refused() -> None:
    status, answer = await ask(FakeFleet(), "GET", "/admin/traefik?entryPoints=web")
    assert status == 400
    assert "entrypoints, resolver, tls" in answer["error"]


@pytest.mark.parametrize(
    ("trusted", "client", "status"),
    [
        ("", "203.0.113.9", 403),
        ("", "127.0.0.1", 403),
        ("127.0.0.1", "203.0.113.9", 403),
        ("127.0.0.1", "127.0.0.1", 200),
    ],
)
async def test_who_comes_through_a_proxy_on_this_machine_is_not_this_machine_unless_the_proxy_is_trusted_and_says_so(
    trusted: str, client: str, status: int
) -> None:
    app = app_of(FakeFleet())
    app.config[PROXIES_KEY].settle(filter(None, [trusted]))
    headers = {"host": "127.0.0.1:8000", "x-forwarded-for": client}
    answer = await app.test_client().get("/admin/instances", **{**LOCAL, "headers": headers})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ("/admin/instances/cpu-1/logs?follow=1&n=2", "two\nthrée\n"),
        ("/admin/events?follow=1", '{"event": "worker_ready", "worker": "cpu-1"}\n'),
    ],
)
async def test_following_ends_when_the_reader_leaves(path: str, begins: str) -> None:
    fleet = FakeFleet()
    client = AsgiClient(app_of(fleet), "GET", path, [("host", "127.0.0.1")])  # type: ignore[arg-type]  # Quart's own types
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ask)
        await fleet.following.wait()
        assert client.body.decode() == begins
        client.leave()
    await fleet.follow_ended.wait()
    assert not client.complete

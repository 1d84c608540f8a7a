"""The admin API's calls for keys, asked through Quart's test client."""

import json
from typing import Any

import msgspec
import pytest

from gateway.admin_asks import NotUnderstood
from gateway.admin_keys import MOST, KeyAsk, read_fields
from gateway.admission import Admission
from gateway.app import make_app
from gateway.keyring import Keyring
from gateway.limits import Limits
from gateway.metrics import Metrics
from tests.fakes.fleet_admin import FakeFleet
from tests.gateway.test_keyring import FakeStore

LOCAL = {"client": ("127.0.0.1", 40000)}
HOST = {"host": "127.0.0.1:8000"}


class Office:
    """An admin API with a keyring behind it."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.keyring = Keyring(self.store, required=True)

    async def ask(self, method: str, path: str, body: object = None, *, token: str | None = None) -> tuple[int, Any]:
        app = make_app(FakeFleet(), Admission(4, 300.0, lambda: 0.5), Metrics(), token, self.keyring)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        more: dict[str, Any] = {"scope_base": LOCAL, "headers": HOST}
        answer = await app.test_client().open(path, method=method, data=data, **more)
        return answer.status_code, json.loads(await answer.get_data())


@pytest.fixture
async def office() -> Office:
    return Office()


# -- what was asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"name": " laptop "}, {"name": "laptop"}),
        ({"name": "Zoë’s"}, {"name": "Zoë’s"}),
        ({"concurrency": 1, "requests_per_minute": MOST}, {"concurrency": 1, "requests_per_minute": MOST}),
        ({"concurrency": "2", "models": "true", "priority": "9"}, {"concurrency": 2, "models": True, "priority": 9}),
        ({"tokens_per_minute": None}, {"tokens_per_minute": None}),
        ({"tokens_per_minute": "none"}, {"tokens_per_minute": None}),
        ({"models": False, "priority": 0}, {"models": False, "priority": 0}),
        ({}, {}),
    ],
)
def test_fields_are_read_from_json_and_from_a_query(given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert read_fields(KeyAsk(**given)) == fields


NO_LIMITS: list[object] = [0, -1, 1.5, True, "many", "", [], MOST + 1, "9" * 30, "٣"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("name", name) for name in ("", "  ", None, 5, "x" * 101, "two\nlines", "a\x1b[31m")),
        *(("concurrency", limit) for limit in NO_LIMITS),
        *(("priority", priority) for priority in (10, -1, None, "high", True, 1.0)),
        *(("models", truth) for truth in (None, 1, "perhaps", "")),
    ],
)
def test_what_makes_no_sense_is_named(name: str, given: object) -> None:
    with pytest.raises(NotUnderstood, match=f"not understood: {name} must be "):
        read_fields(KeyAsk(**{name: given}))


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(NotUnderstood) as error:
        read_fields(KeyAsk(concurrency=0, requests_per_minute="x", priority=99, models="x"), needed=("name",))
    assert str(error.value) == (
        f"not understood: name is missing; concurrency must be a whole number, 1 to {MOST}, or null for no limit; "
        f"requests_per_minute must be a whole number, 1 to {MOST}, or null for no limit; "
        "priority must be a whole number, 0 to 9; models must be true or false"
    )


def test_the_fields_are_those_of_a_key() -> None:
    assert set(msgspec.structs.asdict(KeyAsk())) == {"name", *Limits.__slots__, "priority", "models"}


# -- the calls -----------------------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_changed_and_revoked(office: Office) -> None:
    status, made = await office.ask("POST", "/admin/keys", {"name": "laptop", "concurrency": 2, "priority": 3})
    secret = made.pop("key")
    assert (status, made["id"], made["concurrency"], made["models"]) == (201, "k1", 2, False)
    assert await office.ask("GET", "/admin/keys") == (200, {"keys": [made], "required": True})
    assert await office.ask("GET", "/admin/keys/k1") == (200, made)
    status, changed = await office.ask("PATCH", "/admin/keys/k1", {"concurrency": None, "tokens_per_minute": 500})
    assert (status, changed) == (200, made | {"concurrency": None, "tokens_per_minute": 500, "tokens_left": 500})
    status, changed = await office.ask("PATCH", "/admin/keys/k1?name=desk&models=true&priority=0")
    assert (status, changed["name"], changed["models"], changed["priority"]) == (200, "desk", True, 0)
    assert await office.ask("DELETE", "/admin/keys/k1") == (200, {"revoked": "k1"})
    assert await office.ask("GET", "/admin/keys") == (200, {"keys": [], "required": True})
    assert secret.startswith(made["prefix"])


async def test_no_answer_but_the_first_has_a_secret_and_none_a_hash(office: Office) -> None:
    _, made = await office.ask("POST", "/admin/keys", {"name": "laptop"})
    digest = office.store.keys["k1"].digest.hex()
    assert digest not in json.dumps(made)
    for method, path in (("GET", "/admin/keys"), ("GET", "/admin/keys/k1"), ("PATCH", "/admin/keys/k1")):
        _, shown = await office.ask(method, path)
        assert made["key"] not in json.dumps(shown)
        assert digest not in json.dumps(shown)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/admin/keys", None, 400, "name is missing"),
        ("POST", "/admin/keys", {"name": "x", "concurrency": 0}, 400, "concurrency must be"),
        ("POST", "/admin/keys", {"name": "x", "limit": 1}, 400, "unknown field `limit`"),
        ("POST", "/admin/keys", b"name=x", 400, "not JSON"),
        ("PATCH", "/admin/keys/k1", {"models": None}, 400, "models must be"),
        ("PATCH", "/admin/keys/k9", {"priority": 1}, 404, "there is no key 'k9'; keys here: k1"),
        ("GET", "/admin/keys/k9", None, 404, "there is no key 'k9'"),
        ("DELETE", "/admin/keys/k9", None, 404, "there is no key 'k9'"),
        ("PUT", "/admin/keys", {}, 405, "method not allowed"),
    ],
)
async def test_what_cannot_be_done_is_one_line(
    office: Office, method: str, path: str, body: object, status: int, said: str
) -> None:
    await office.keyring.create("first", Limits(), priority=0, models=False)
    answered, error = await office.ask(method, path, body)
    assert (answered, list(error)) == (status, ["error"])
    assert said in error["error"]
    assert [row["name"] for row in office.keyring.rows()] == ["first"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/admin/keys?name=x"), ("PATCH", "/admin/keys/k1"), ("DELETE", "/admin/keys/k1")]
)
async def test_while_the_database_is_away_nothing_is_changed(office: Office, method: str, path: str) -> None:
    await office.ask("POST", "/admin/keys", {"name": "first"})
    office.store.away = True
    assert await office.ask(method, path) == (503, {"error": "nothing was changed: the database is away"})
    assert len(office.keyring.rows()) == 1


@pytest.mark.parametrize(("method", "path"), [("GET", "/admin/keys"), ("POST", "/admin/keys?name=x")])
async def test_only_who_may_administer_may_make_keys(office: Office, method: str, path: str) -> None:
    status, error = await office.ask(method, path, token="s3cret")
    assert (status, error) == (401, {"error": "the admin API needs Authorization: Bearer ADMIN_TOKEN"})
    assert office.keyring.rows() == []

"""`chimera keys`: what it asks of the gateway, what it prints, and where."""

from typing import Any

import pytest

from tests.fakes.command_line import Chimera, Gateway, asks, chimera, gateway

__all__ = ["asks", "chimera", "gateway"]  # fixtures

SECRET = "chimera-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
ROW: dict[str, Any] = {
    "id": "k1", "name": "laptop", "prefix": "chimera-AAEC", "concurrency": 4, "requests_per_minute": 60,
    "tokens_per_minute": None, "priority": 0, "models": False, "created_at": "2026-01-02T03:04:05+00:00",
    "last_used_at": None, "inflight": 1, "requests_left": 59, "tokens_left": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ([], {"name": "laptop", "models": False}),
        (["--models", "--priority", "9"], {"name": "laptop", "models": True, "priority": 9}),
        (
            ["--concurrency", "4", "--requests-per-minute", "60", "--tokens-per-minute", "none"],
            {"name": "laptop", "models": False, "concurrency": 4, "requests_per_minute": 60, "tokens_per_minute": None},
        ),
    ],
)
def test_a_new_key_is_alone_on_standard_output(
    asks: Chimera, gateway: Gateway, words: list[str], body: dict[str, Any]
) -> None:
    gateway.says("POST /admin/keys", ROW | {"key": SECRET}, 201)
    done = asks("keys", "create", "laptop", *words)
    assert (done.exit_code, done.stdout) == (0, f"{SECRET}\n")
    assert done.stderr == "k1  laptop: keep it now, it cannot be shown again\n"
    assert gateway.asked == [("POST", "/admin/keys", body)]


def test_keys_are_a_table_or_json(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("GET /admin/keys", {"keys": [ROW], "required": True})
    head, row = asks("keys", COLUMNS="200").stdout.splitlines()
    assert head.split()[:3] == ["key", "name", "begins"]
    assert row.split() == ["k1", "laptop", "chimera-AAEC…", "1", "of", "4", "59", "of", "60", "any", "0",
                           "no", "never"]  # fmt: skip
    assert '"requests_left": 59' in asks("keys", "--json").stdout


def test_a_list_says_when_keys_are_not_asked_for(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("GET /admin/keys", {"keys": [ROW], "required": False})
    assert asks("keys").stdout.endswith("requests without a key are answered too, until API_KEYS_REQUIRED=true\n")
    gateway.says("GET /admin/keys", {"keys": [], "required": False})
    assert asks("keys").stdout == "no keys; make one with: chimera keys create NAME\n"


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        (["--concurrency", "2"], {"concurrency": 2}, "concurrency 2"),
        (["--requests-per-minute", "none"], {"requests_per_minute": None}, "requests_per_minute none"),
        (["--no-models", "--priority", "0"], {"models": False, "priority": 0}, "models false, priority 0"),
        (["--name", "desk"], {"name": "desk"}, "name desk"),
    ],
)
def test_what_is_named_is_changed(
    asks: Chimera, gateway: Gateway, words: list[str], body: dict[str, Any], said: str
) -> None:
    gateway.says("PATCH /admin/keys/k1", ROW | body)
    done = asks("keys", "limit", "k1", *words)
    assert (done.exit_code, done.stdout) == (0, f"k1  {body.get('name', 'laptop')}: {said}\n")
    assert gateway.asked == [("PATCH", "/admin/keys/k1", body)]


def test_a_key_is_revoked(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("DELETE /admin/keys/k1", {"revoked": "k1"})
    assert asks("keys", "revoke", "k1").stdout == "revoked k1\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["limit", "k1"], "say what is to change"),
        (["limit", "k1", "--concurrency", "0"], "'0' is not a whole number from 1 on, or none"),
        (["create", "x", "--tokens-per-minute", "many"], "'many' is not a whole number from 1 on, or none"),
        (["create", "x", "--priority", "10"], "not in the range 0<=x<=9"),
        (["create"], "Missing argument 'NAME'"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(asks: Chimera, gateway: Gateway, words: list[str], said: str) -> None:
    done = asks("keys", *words)
    assert (done.exit_code, said in done.stderr) == (2, True)
    assert gateway.asked == []


def test_a_refusal_is_the_gateways_own_sentence(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("DELETE /admin/keys/..%2Fk9", {"error": "there is no key '../k9'; keys here: none"}, 404)
    done = asks("keys", "revoke", "../k9")
    assert (done.exit_code, done.stderr) == (1, "chimera: there is no key '../k9'; keys here: none\n")


def test_the_settings_faults_are_told_as_by_every_command(chimera: Chimera) -> None:
    done = chimera("keys", GATEWAY_PORT="x")
    assert done.exit_code == 78
    assert done.stderr.startswith("chimera: bad configuration: GATEWAY_PORT: ")

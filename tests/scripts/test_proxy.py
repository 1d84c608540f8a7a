"""The configurations that scripts/proxy ships, against what they are about. tests/system/test_proxy.py runs them."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from gateway.admin_asks import TraefikAsk, understood
from gateway.stream import KEEP_ALIVE_S
from gateway.traefik import Domains, traefik_document
from supervisor.config import Settings
from supervisor.config_load import load_settings
from tests.fakes.proxies import SNIPPETS, Place, fitted, nginx_conf

SHIPPED = sorted(path.name for path in SNIPPETS.iterdir())


def shipped(name: str) -> str:
    return (SNIPPETS / name).read_text(encoding="utf-8")


def parsed(name: str) -> Any:
    return yaml.safe_load(shipped(name))


@pytest.fixture
def settings() -> Settings:
    return load_settings({"HOME": "/home/somebody"}, {})


@pytest.mark.parametrize("name", SHIPPED)
def test_each_says_where_it_goes_and_what_to_change_there_and_here(name: str) -> None:
    top = re.split(r"\n(?!#)", shipped(name))[0]
    for word in ("Where: ", "Change: ", "In chimera.env: "):
        assert word in top, f"{name} does not say {word!r}"
    assert "TRUSTED_PROXIES=127.0.0.1" in top or "as in traefik.yaml" in top


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("nginx.conf", r"proxy_read_timeout (\d+)s"),
        ("haproxy.cfg", r"timeout server (\d+)s"),
        ("haproxy.cfg", r"timeout client (\d+)s"),
        ("Caddyfile", r"response_header_timeout (\d+)s"),
    ],
)
def test_none_gives_up_before_chimera_does(name: str, wait: str, settings: Settings) -> None:
    (wait_s,) = re.findall(wait, shipped(name))
    assert int(wait_s) > settings.queue_timeout_s + settings.first_byte_timeout_s


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("nginx.conf", r"keepalive_timeout (\d+)s"),
        ("Caddyfile", r"keepalive (\d+)s"),
        ("traefik-file.yaml", r"idleConnTimeout: (\d+)s"),
    ],
)
def test_each_lets_an_idle_connection_go_before_chimera_does(name: str, idle: str) -> None:
    (idle_s,) = re.findall(idle, shipped(name))
    assert int(idle_s) < KEEP_ALIVE_S


def test_nginx_takes_bodies_as_large_as_chimera_does(settings: Settings) -> None:
    sizes = re.findall(r"client_max_body_size (\d+)(m?);", shipped("nginx.conf"))
    assert sizes == [(str(settings.max_body_bytes // 1024**2), "m"), ("0", "")]


def test_traefiks_file_is_what_it_is_told_over_http() -> None:
    assert parsed("traefik-file.yaml") == traefik_document(
        Domains(("chimera.example",)), "http://127.0.0.1:8000", entry_points=("websecure",), resolver="letsencrypt"
    )


def test_traefik_asks_for_what_it_may_ask_for_and_has_what_it_names() -> None:
    static = parsed("traefik.yaml")
    asked = {
        name: values[0] for name, values in parse_qs(urlsplit(static["providers"]["http"]["endpoint"]).query).items()
    }
    ask = understood(TraefikAsk, asked, b"")
    assert set(ask.entrypoints.split(",")) <= set(static["entryPoints"])
    assert ask.resolver in static["certificatesResolvers"]


def test_what_is_fitted_to_this_machine_must_be_there(tmp_path: Any) -> None:
    assert fitted("listen 80;", {"listen 80;": "listen 1;"}) == "listen 1;"
    with pytest.raises(AssertionError, match="not in the shipped text"):
        fitted("listen 81;", {"listen 80;": "listen 1;"})
    made = nginx_conf(Place(tmp_path, 1, 2, 3))
    assert "8000" not in made
    assert "server 127.0.0.1:3;" in made

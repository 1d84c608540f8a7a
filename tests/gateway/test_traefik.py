"""What Traefik is told."""

from typing import Any

import pytest

from gateway.stream import KEEP_ALIVE_S
from gateway.traefik import IDLE_S, Domains, traefik_document

URL = "http://127.0.0.1:8000"


def empty(node: Any, path: str = "") -> list[str]:
    """Where an object or a list is empty, which Traefik refuses but in `tls`."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [path] if node in ({}, []) and not path.endswith(".tls") else []
    return found + [deeper for key, value in inner for deeper in empty(value, f"{path}.{key}")]


def test_the_api_at_one_name() -> None:
    assert traefik_document(Domains(("api.example",)), URL) == {
        "http": {
            "routers": {
                "chimera-api": {
                    "rule": "(Host(`api.example`)) && !PathPrefix(`/admin`) && !PathPrefix(`/metrics`)",
                    "service": "chimera-api",
                    "middlewares": ["chimera"],
                }
            },
            "services": {
                "chimera-api": {
                    "loadBalancer": {
                        "servers": [{"url": URL}],
                        "passHostHeader": True,
                        "serversTransport": "chimera",
                        "responseForwarding": {"flushInterval": "-1ms"},
                        "healthCheck": {"path": "/healthz", "interval": "10s", "timeout": "5s"},
                    }
                }
            },
            "middlewares": {"chimera": {"headers": {"customRequestHeaders": {"Forwarded": "", "X-Chimera-Queue": ""}}}},
            "serversTransports": {"chimera": {"forwardingTimeouts": {"dialTimeout": "5s", "idleConnTimeout": "60s"}}},
        }
    }


def test_the_page_and_several_names() -> None:
    http = traefik_document(Domains(("a.example", "b.example"), ("chat.example",)), URL)["http"]
    assert http["routers"]["chimera-api"]["rule"].startswith("(Host(`a.example`) || Host(`b.example`)) && ")
    assert http["routers"]["chimera-page"]["rule"] == "(Host(`chat.example`))"
    services = {name: service["loadBalancer"]["servers"][0]["url"] for name, service in http["services"].items()}
    assert services == {"chimera-api": URL, "chimera-page": URL}


def test_tls_only_where_it_is_asked_for() -> None:
    def router(**asked: Any) -> Any:
        return traefik_document(Domains(("a.example",)), URL, **asked)["http"]["routers"]["chimera-api"]

    assert "tls" not in router()
    assert "entryPoints" not in router()
    assert router(tls=True)["tls"] == {}
    assert router(resolver="le")["tls"] == {"certResolver": "le"}
    assert router(entry_points=("websecure",))["entryPoints"] == ["websecure"]


def test_without_a_name_there_is_nothing_to_tell() -> None:
    assert traefik_document(Domains(), URL) == {}


@pytest.mark.parametrize("api", [(), ("a.example",)])
@pytest.mark.parametrize("page", [(), ("b.example",)])
def test_whatever_is_named_exists_and_nothing_is_empty(api: tuple[str, ...], page: tuple[str, ...]) -> None:
    document = traefik_document(Domains(api, page), URL, tls=True)
    if not document:
        return
    assert empty(document) == []
    http = document["http"]
    for router in http["routers"].values():
        assert router["service"] in http["services"]
        assert set(router["middlewares"]) <= set(http["middlewares"])
    for service in http["services"].values():
        assert service["loadBalancer"]["serversTransport"] in http["serversTransports"]


def test_traefik_lets_an_idle_connection_go_before_chimera_does() -> None:
    assert KEEP_ALIVE_S > IDLE_S

"""Ollama's paths in the published document."""

import pytest

from gateway.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ConnectFailed,
    Fault,
    FirstByteTimeout,
    NoWorkerWanted,
    PrimaryAway,
    QueueFull,
    ShuttingDown,
    Stalled,
    told,
)
from gateway.ollama import FORWARDED
from gateway.openapi_ollama import OLLAMA_PATHS

FAULTS: list[Fault] = [
    QueueFull(), NoWorkerWanted(), ShuttingDown(), PrimaryAway(), BodyTooLarge(1), BodyTooSlow(), ConnectFailed(),
    FirstByteTimeout(1.0), Stalled(1.0),
]  # fmt: skip


@pytest.mark.parametrize("path", sorted(FORWARDED))
def test_each_fault_is_among_the_answers(path: str) -> None:
    assert set(OLLAMA_PATHS[path]["post"]["responses"]) >= {str(told(fault).status) for fault in FAULTS}


@pytest.mark.parametrize(
    ("path", "error"),
    [("/api/chat", "Error"), ("/v1/chat/completions", "OpenAIError"), ("/v1/messages", "AnthropicError")],
)
def test_an_error_has_the_form_of_its_api(path: str, error: str) -> None:
    schema = OLLAMA_PATHS[path]["post"]["responses"]["503"]["content"]["application/json"]["schema"]
    assert {"$ref": f"#/components/schemas/{error}"} in schema["anyOf"]


def test_who_is_refused_for_now_is_told_when_to_come_back() -> None:
    assert "Retry-After" in OLLAMA_PATHS["/api/chat"]["post"]["responses"]["503"]["headers"]


def test_what_streams_says_how() -> None:
    def kinds(path: str) -> set[str]:
        return set(OLLAMA_PATHS[path]["post"]["responses"]["200"]["content"])

    assert kinds("/api/chat") == {"application/json", "application/x-ndjson"}
    assert kinds("/v1/messages") == {"application/json", "text/event-stream"}
    assert kinds("/api/embed") == {"application/json"}

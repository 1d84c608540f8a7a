"""What a client is told of each fault, in the words of each API."""

import json
from typing import get_args

import pytest

from gateway.errors import (
    BUSY,
    BadPriority,
    BodyTooLarge,
    BodyTooSlow,
    ConnectFailed,
    Dialect,
    Fault,
    FirstByteTimeout,
    GatewayError,
    KeyMissing,
    KeyUnknown,
    LoadFailed,
    ModelLethal,
    ModelsForbidden,
    NoWorkerWanted,
    OverLimit,
    PrimaryAway,
    QueueFull,
    QueueTimeout,
    RunnerDied,
    ShuttingDown,
    Stalled,
    Unsendable,
    WorkerLost,
    WorkerRefused,
    dialect_of,
    error_body,
    error_event,
    error_headers,
    told,
)
from gateway.limits import Over

LOST = "the worker was lost before it answered, and so were the others that were tried"
TABLE: list[tuple[Fault, int, str, int | None]] = [
    (QueueFull(), 503, BUSY, 1),
    (
        QueueTimeout(300.4, ready_workers=0), 503, "no worker was ready within 300 s (QUEUE_TIMEOUT_S)", 5
    ),
    (QueueTimeout(300.4, ready_workers=2), 503, "no slot became free within 300 s (QUEUE_TIMEOUT_S)", 5),
    (NoWorkerWanted(), 503, "the fleet has no workers; spawn one (chimera spawn)", 30),
    (ShuttingDown(), 503, "the server is shutting down", 5),
    (PrimaryAway(), 503, "the primary ollama server is not ready", 2),
    (BodyTooLarge(1000), 413, "the request body is larger than 1000 bytes (MAX_BODY_BYTES)", None),
    (BodyTooSlow(), 408, "the request body comes too slowly, or not at all", None),
    (Unsendable(), 400, "the request has bytes in its path or headers that HTTP/1.1 does not allow there", None),
    (KeyMissing(), 401, "an API key is needed (Authorization: Bearer KEY, or x-api-key: KEY)", None),
    (KeyUnknown(), 401, "this API key is not known here, or was revoked", None),
    (ModelsForbidden(), 403, "this API key may not change the model store", None),
    (BadPriority(), 400, "X-Chimera-Priority must be a whole number, 0 to 9", None),
    (OverLimit(Over("concurrency", 2, 1.0)), 429, "over this API key's limit of requests at the same time (2)", 1),
    (OverLimit(Over("requests", 9, 6.1)), 429, "over this API key's limit of requests a minute (9)", 7),
    (OverLimit(Over("tokens", 99, 0.01)), 429, "over this API key's limit of tokens a minute (99)", 1),
    (ConnectFailed(), 502, LOST, 1),
    (WorkerLost(), 502, LOST, 1),
    (WorkerRefused(), 502, LOST, 1),
    (LoadFailed(), 502, LOST, 1),
    (
        ModelLethal(29.2), 503,
        "workers ended while they loaded this model; it is tried again later (see chimera logs)", 30,
    ),
    (RunnerDied(), 502, LOST, 1),
    (FirstByteTimeout(600), 504, "the worker gave no first byte in time (FIRST_BYTE_TIMEOUT_S)", None),
    (Stalled(120), 504, "the worker fell silent within its answer (STALL_TIMEOUT_S)", None),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "status", "sentence", "retry_after_s"), TABLE)
def test_every_fault_has_its_sentence(fault: Fault, status: int, sentence: str, retry_after_s: int | None) -> None:
    said = told(fault)
    assert (said.status, said.sentence, said.retry_after_s) == (status, sentence, retry_after_s)
    given = dict(error_headers(said)).get(b"retry-after")
    assert given == (None if retry_after_s is None else str(retry_after_s).encode())


def test_only_an_answer_that_asks_for_a_key_says_how_to_send_one() -> None:
    asking = {fault for fault, *_ in TABLE if dict(error_headers(told(fault))).get(b"www-authenticate")}
    assert {type(fault) for fault in asking} == {KeyMissing, KeyUnknown}


def test_the_table_above_leaves_no_fault_out() -> None:
    assert {type(row[0]) for row in TABLE} == set(get_args(Fault))
    others = {kind for kind in GatewayError.__subclasses__() if kind not in get_args(Fault)}
    assert {kind.__name__ for kind in others} == {"ClientGone"}


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/api/chat", Dialect.OLLAMA),
        ("/", Dialect.OLLAMA),
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/models/m", Dialect.OPENAI),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
    ],
)
def test_a_paths_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


@pytest.mark.parametrize(
    ("status", "openai", "code", "anthropic"),
    [
        (400, "invalid_request_error", None, "invalid_request_error"),
        (401, "invalid_request_error", "invalid_api_key", "authentication_error"),
        (403, "invalid_request_error", "insufficient_permissions", "permission_error"),
        (413, "invalid_request_error", None, "request_too_large"),
        (429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
        (503, "api_error", None, "overloaded_error"),
        (502, "api_error", None, "api_error"),
        (504, "api_error", None, "api_error"),
    ],
)
def test_an_error_has_the_form_of_its_api(status: int, openai: str, code: str | None, anthropic: str) -> None:
    assert json.loads(error_body(Dialect.OLLAMA, status, "so")) == {"error": "so"}
    assert json.loads(error_body(Dialect.OPENAI, status, "so")) == {
        "error": {"message": "so", "type": openai, "param": None, "code": code}
    }
    assert json.loads(error_body(Dialect.ANTHROPIC, status, "so")) == {
        "type": "error", "error": {"type": anthropic, "message": "so"},
    }  # fmt: skip


def test_a_sentence_with_quotes_and_line_ends_stays_one_line_of_json() -> None:
    event = error_event(Dialect.OLLAMA, 'so "it"\nis', sse=False, mid_line=False)
    assert event.count(b"\n") == 1
    assert json.loads(event) == {"error": 'so "it"\nis'}


@pytest.mark.parametrize(
    ("dialect", "sse", "mid_line", "before", "after"),
    [
        (Dialect.OLLAMA, False, False, b"{", b"}\n"),
        (Dialect.OLLAMA, False, True, b"\n{", b"}\n"),
        (Dialect.OPENAI, True, False, b"data: {", b"}\n\n"),
        (Dialect.OPENAI, True, True, b"\n\ndata: {", b"}\n\n"),
        (Dialect.ANTHROPIC, True, False, b"event: error\ndata: {", b"}\n\n"),
        (Dialect.ANTHROPIC, True, True, b"\n\nevent: error\ndata: {", b"}\n\n"),
    ],
)
def test_an_error_line_stands_by_itself(
    dialect: Dialect, sse: bool, mid_line: bool, before: bytes, after: bytes
) -> None:
    event = error_event(dialect, "so", sse=sse, mid_line=mid_line)
    assert event.startswith(before)
    assert event.endswith(after)

"""Requests and client libraries get the same from the gateway as from a worker itself, but for times and ids.

One worker with one slot answers both, so that it computes the same twice: with several slots Ollama 0.5.4 splits
what it knows of a prompt between them, and answers differ in themselves.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supervisor.embedded import MODEL
from tests.fakes.chimera import Chimera, chimera, path_without_ollama, wait_for
from tests.fakes.libraries import CANCELLED, SCENARIOS, Scenario
from tests.fakes.talker import FEW, SCHEMA, TALKER, TOOLS, WEATHER, modelfile
from tests.fakes.wire import Recorded, ask

STREAMS = (b"application/x-ndjson", b"text/event-stream")


@dataclass(frozen=True)
class Two:
    """Two ways to one worker: through the gateway, and directly."""

    through: Chimera
    gateway: int
    worker: int

    def same(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, warm: bool = False
    ) -> tuple[Recorded, Recorded]:
        """Ask both, and check that the answers are alike; with `warm`, the worker was asked before both."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if warm:
            ask(self.worker, method, path, data, headers=headers)
        own, ours = (ask(port, method, path, data, headers=headers) for port in (self.worker, self.gateway))
        assert ours.alike == own.alike
        if own.headers.get(b"content-type") in STREAMS:
            assert ours.in_whole_lines
        return own, ours


@pytest.fixture(scope="module")
def two(embedded: object, real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with chimera(
        tmp_path_factory.mktemp("clients"),
        OLLAMA_MODELS=str(real_models), OLLAMA_BIN="", WORKERS="cpu=1", WORKER_SLOTS="1", PATH=path_without_ollama(),
    ) as made:  # fmt: skip
        made.start().ready(1)
        created = made.client.post("/api/create", json={"model": TALKER, "modelfile": modelfile(), "stream": False})
        assert created.json() == {"status": "success"}, created.text
        (row,) = made.instances()
        yield Two(made, made.port, row["port"])
        made.client.request("DELETE", "/api/delete", json={"model": TALKER})


# -- on the wire -------------------------------------------------------------------------------------------------------

ASKS = [{"role": "user", "content": WEATHER}]
GENERATE = {"model": TALKER, "prompt": WEATHER, "options": FEW}
CHAT = {"model": TALKER, "messages": ASKS, "options": FEW}
V1_CHAT = {"model": TALKER, "messages": ASKS, "max_tokens": FEW["num_predict"], "temperature": 0, "seed": 7}
V1_TEXT = {"model": TALKER, "prompt": WEATHER, "max_tokens": FEW["num_predict"], "temperature": 0, "seed": 7}
TURNS = [{"role": "system", "content": "Be brief."}, *ASKS, {"role": "assistant", "content": "Fine."}, *ASKS]
CALLED = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
AFTER_A_CALL = [*ASKS, {"role": "assistant", "content": "", "tool_calls": [CALLED]}, {"role": "tool", "content": "11°"}]
LONGER = {"options": FEW | {"num_predict": 20}}
WHOLE = {"stream": False}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", GENERATE),
        ("/api/generate", GENERATE | WHOLE),
        ("/api/generate", GENERATE | WHOLE | {"raw": True}),
        ("/api/generate", GENERATE | {"system": "Be brief.", "template": "{{ .System }} {{ .Prompt }}"}),
        ("/api/generate", GENERATE | WHOLE | {"context": [2, 4521, 603]}),
        ("/api/chat", CHAT),
        ("/api/chat", CHAT | WHOLE),
        ("/api/chat", CHAT | {"messages": TURNS, "keep_alive": -1}),
        ("/api/chat", CHAT | {"messages": AFTER_A_CALL}),
        ("/api/chat", CHAT | {"format": SCHEMA}),
        ("/api/chat", CHAT | LONGER | {"tools": TOOLS}),
        ("/api/chat", CHAT | WHOLE | LONGER | {"tools": TOOLS}),
        ("/v1/chat/completions", V1_CHAT),
        ("/v1/chat/completions", V1_CHAT | {"stream": True}),
        ("/v1/chat/completions", V1_CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", V1_CHAT | {"response_format": JSON_SCHEMA}),
        ("/v1/chat/completions", V1_CHAT | {"max_tokens": 20, "tools": TOOLS, "stream": True}),
        ("/v1/completions", V1_TEXT),
        ("/v1/completions", V1_TEXT | {"stream": True}),
    ],
)
def test_answers(two: Two, path: str, body: dict[str, Any]) -> None:
    own, ours = two.same("POST", path, body)
    assert own.status == 200, own.body
    assert ours.headers[b"x-chimera-worker"] == b"w1"
    assert (b'"tool_calls":' in own.body) is ("tools" in body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"model": MODEL, "input": "the sky"}),
        ("/api/embed", {"model": MODEL, "input": ["the sky", "the sea"]}),
        ("/api/embeddings", {"model": MODEL, "prompt": "the sky"}),
        ("/v1/embeddings", {"model": MODEL, "input": ["the sky", "the sea"]}),
    ],
)
def test_embeddings(two: Two, path: str, body: dict[str, Any]) -> None:
    """What Ollama still holds of a prompt changes the last digits: like is compared with like."""
    own, _ = two.same("POST", path, body, warm=True)
    assert own.status == 200, own.body


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/", 200),
        ("GET", "/api/version", 200),
        ("HEAD", "/api/version", 200),
        ("GET", "/api/tags", 200),
        ("HEAD", "/api/tags", 200),
        ("GET", "/v1/models", 200),
        ("GET", f"/v1/models/{MODEL}", 200),
        ("GET", "/v1/models/nobody", 404),
        ("HEAD", "/api/ps", 404),
        ("HEAD", "/api/blobs/sha256:" + "0" * 64, 404),
        ("HEAD", "/api/blobs/nonsense", 400),
        # what Ollama does not know
        ("GET", "/api/chat", 404),
        ("PUT", "/api/generate", 404),
        ("DELETE", "/api/tags", 404),
        ("POST", "/api/ps", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/api/generate/", 404),
        ("GET", "/api//tags", 301),
        ("OPTIONS", "/api/chat", 404),
        # from web pages, by their Origin
        ("OPTIONS", "/api/chat http://localhost:3000", 204),
        ("OPTIONS", "/api/chat http://elsewhere.example", 403),
        ("GET", "/api/tags http://localhost:3000", 200),
        ("GET", "/api/tags http://elsewhere.example", 403),
    ],
)
def test_everything_else(two: Two, method: str, path: str, status: int) -> None:
    path, _, origin = path.partition(" ")
    headers = {"Origin": origin, **(PREFLIGHT if method == "OPTIONS" else {})} if origin else {}
    own, _ = two.same(method, path, None, headers)
    assert own.status == status


def test_a_page_from_elsewhere_gets_no_answer(two: Two) -> None:
    for body in (CHAT, {"model": TALKER}):  # an answer, a load
        own, _ = two.same("POST", "/api/chat", body, {"Origin": "http://elsewhere.example"})
        assert (own.status, own.body) == (403, b"")


def test_the_loaded_models_are_the_workers_own_but_for_where_they_are(two: Two) -> None:
    own, ours = ask(two.worker, "GET", "/api/ps"), ask(two.gateway, "GET", "/api/ps")
    assert ours.body.replace(b',"workers":["w1"]', b"") == own.body
    assert json.loads(own.body)["models"]


@pytest.mark.parametrize("body", [{"model": MODEL}, {"name": TALKER}, {"model": MODEL, "verbose": True}])
def test_show(two: Two, body: dict[str, Any]) -> None:
    """Ollama lists parameters in a new order each time: by their lines, the answers are the same."""
    own, ours = (json.loads(ask(port, "POST", "/api/show", json.dumps(body).encode()).body) for port in
                 (two.worker, two.gateway))  # fmt: skip
    for text in ("parameters", "modelfile"):
        assert sorted(ours.pop(text).splitlines()) == sorted(own.pop(text).splitlines())
    own.pop("modified_at"), ours.pop("modified_at")
    assert json.dumps(ours) == json.dumps(own)


POSTED = (
    "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions",
    "/v1/embeddings", "/api/show", "/api/pull", "/api/copy", "/api/create", "/v1/messages",
)  # fmt: skip
NOBODY: dict[str, Any] = {"model": "nobody", "prompt": "x", "input": "x", "messages": ASKS}


@pytest.mark.parametrize("path", POSTED)
def test_what_cannot_be_understood(two: Two, path: str) -> None:
    for body in (
        b'{"model": oops',
        b"",
        b"{}",
        b"[]",
        b'{"model":""}',
        b'{"model":7}',
        b'{"model":"a b!","prompt":"x"}',
    ):
        own, _ = two.same("POST", path, body)
        assert own.status >= 400 or path == "/api/pull", body


@pytest.mark.parametrize("path", [path for path in POSTED if path not in ("/api/pull", "/api/create")])
def test_a_model_that_is_not_there(two: Two, path: str) -> None:
    for body in (NOBODY, {"model": "nobody"}, NOBODY | {"stream": True}):
        own, _ = two.same("POST", path, body)
        assert own.status >= 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": "x"},
        {"messages": [{"role": "martian", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
        {"prompt": "x", "images": ["!!"]},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "raw": True, "template": "y"},
        {"format": "xml"},
        {"format": {"type": "nothing"}},
        {"options": {"num_predict": "many"}},
        {"keep_alive": "soon"},
        {"input": [1, 2]},
        {"model": MODEL, "tools": TOOLS},  # which has no template for them
    ],
    ids=str,
)
def test_what_is_asked_wrongly(two: Two, wrong: dict[str, Any]) -> None:
    body = {"model": TALKER, "options": FEW | {"num_predict": 1}, "max_tokens": 1, "temperature": 0, "seed": 7}
    paths = {"messages": ("/api/chat", "/v1/chat/completions"), "prompt": ("/api/generate",), "input": ("/api/embed",)}
    asked = next((paths[field] for field in paths if field in wrong), ("/api/chat",))
    for path in asked:
        given = body | ({} if path == "/api/embed" else {"messages": ASKS} if "chat" in path else {"prompt": "x"})
        two.same("POST", path, given | wrong)


def test_blobs_models_and_deletions(two: Two) -> None:
    for method, path, body in (
        ("POST", "/api/blobs/nonsense", b"x"),
        ("POST", "/api/blobs/sha256:" + "0" * 64, b"x"),
        ("POST", "/api/copy", {"source": "nobody", "destination": "x"}),
        ("DELETE", "/api/delete", {"model": "nobody"}),
        ("DELETE", "/api/delete", b"{"),
        ("POST", "/api/create", {"model": "made", "modelfile": "FROM 127.0.0.1:1/nobody/none", "stream": False}),
    ):
        own, _ = two.same(method, path, body)
        assert own.status >= 400


# -- the libraries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_library_gets_the_same(two: Two, scenario: Scenario) -> None:
    own, ours = (scenario(f"http://127.0.0.1:{port}") for port in (two.worker, two.gateway))
    assert ours == own


@pytest.mark.parametrize("begin", CANCELLED, ids=lambda begin: begin.__name__)
def test_a_library_that_leaves_mid_stream_gives_its_slot_back(two: Two, begin: Callable[[str], object]) -> None:
    begin(two.through.url)
    wait_for(lambda: two.through.instance("w1")["inflight"] == 0, 10)
    assert two.through.queue()["depth"] == 0
    two.same("POST", "/api/embed", {"model": MODEL, "input": "the sky"})  # the one slot is free

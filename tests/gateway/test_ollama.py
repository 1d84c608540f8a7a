"""What a path and a body ask for."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import ollama
from gateway.affinity import NO_PREFIX
from gateway.load_options import LENIENT_BYTES
from gateway.ollama import (
    FORWARDED,
    Answerer,
    Ask,
    Kind,
    PullAsk,
    answerer,
    changes_models,
    full_name,
    load_failed,
    read_ask,
    read_pull,
    runner_died,
    tokens_of,
)

JSON = "application/json"
HOPELESS = Ask(Kind.HOPELESS, None)


@pytest.mark.parametrize(
    ("method", "path", "changes"),
    [
        ("POST", "/api/pull", True), ("POST", "/api/push", True), ("POST", "/api/create", True),
        ("POST", "/api/copy", True), ("DELETE", "/api/delete", True), ("POST", "/api/blobs/sha256:1", True),
        ("HEAD", "/api/blobs/sha256:1", False), ("POST", "/api/show", False), ("GET", "/api/tags", False),
        ("OPTIONS", "/api/pull", False), ("POST", "/v1/messages/count_tokens", False), ("DELETE", "/v1/models/m", True),
        ("POST", "/api/something/new", True), ("PUT", "/api/chat", True), ("POST", "/api/show/", True),
        *((("POST", path, False)) for path in sorted(FORWARDED)),
    ],
)  # fmt: skip
def test_what_may_change_the_model_store(method: str, path: str, changes: bool) -> None:
    assert changes_models(method, path) is changes


@pytest.mark.parametrize("path", sorted(FORWARDED))
def test_a_forwarded_path_is_answered_by_a_worker_when_posted(path: str) -> None:
    assert answerer("POST", path) is Answerer.WORKER
    assert answerer("GET", path) is Answerer.PRIMARY
    assert answerer("OPTIONS", path) is Answerer.PRIMARY


@pytest.mark.parametrize(
    ("method", "path", "who"),
    [
        ("GET", "/", Answerer.PRIMARY),
        ("HEAD", "/", Answerer.PRIMARY),
        ("POST", "/", Answerer.GATEWAY),
        ("GET", "/api/version", Answerer.PRIMARY),
        ("GET", "/api/tags", Answerer.PRIMARY),
        ("GET", "/v1/models", Answerer.PRIMARY),
        ("GET", "/v1/models/llama3:8b", Answerer.PRIMARY),
        ("POST", "/api/show", Answerer.PRIMARY),
        ("POST", "/api/pull", Answerer.PRIMARY),
        ("DELETE", "/api/delete", Answerer.PRIMARY),
        ("POST", "/api/blobs/sha256:1", Answerer.PRIMARY),
        ("HEAD", "/api/blobs/sha256:1", Answerer.PRIMARY),
        ("POST", "/api/something/new", Answerer.PRIMARY),
        ("POST", "/v1/messages/count_tokens", Answerer.PRIMARY),
        ("POST", "/api/chat/", Answerer.PRIMARY),
        ("GET", "/api/ps", Answerer.FLEET),
        ("HEAD", "/api/ps", Answerer.PRIMARY),
        ("POST", "/api/ps", Answerer.PRIMARY),
        ("GET", "/admin/instances", Answerer.GATEWAY),
        ("GET", "/healthz", Answerer.GATEWAY),
        ("GET", "/apiary", Answerer.GATEWAY),
        ("POST", "//api/chat", Answerer.GATEWAY),
    ],
)
def test_every_other_path_has_its_answerer(method: str, path: str, who: Answerer) -> None:
    assert answerer(method, path) is who


CHAT = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    ("path", "body", "asks"),
    [
        ("/api/generate", b'{"model":"m","prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m"}', Ask(Kind.LOAD, "m")),
        ("/api/generate", b'{"model":"m","prompt":""}', Ask(Kind.LOAD, "m")),
        ("/api/generate", b'{"model":"m","prompt":null,"keep_alive":-1}', Ask(Kind.LOAD, "m")),
        ("/api/generate", b'{"model":"m","keep_alive":0}', Ask(Kind.UNLOAD, "m", unloads=True)),
        ("/api/generate", b'{"model":"m","keep_alive":"0s"}', Ask(Kind.UNLOAD, "m", unloads=True)),
        ("/api/generate", b'{"model":"m","keep_alive":"0"}', Ask(Kind.UNLOAD, "m", unloads=True)),
        ("/api/generate", b'{"model":"m","keep_alive":"10m"}', Ask(Kind.LOAD, "m")),
        ("/api/generate", b'{"model":"m","keep_alive":false}', Ask(Kind.LOAD, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi","keep_alive":0}', Ask(Kind.INFERENCE, "m", unloads=True)),
        ("/api/generate", b'{"model":"m","prompt":"hi","keep_alive":"5m"}', Ask(Kind.INFERENCE, "m")),
        ("/v1/completions", b'{"model":"m","prompt":"hi","keep_alive":0}', Ask(Kind.INFERENCE, "m")),
        (
            "/api/generate", b'{"model":"m","prompt":"hi","options":{"num_predict": 64,"seed":1}}',
            Ask(Kind.INFERENCE, "m", most_tokens=64),
        ),
        ("/api/generate", b'{"model":"m","prompt":"hi","options":{"num_predict":-1}}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi","options":{"num_predict":1e3}}', Ask(Kind.INFERENCE, "m")),
        ("/api/embed", b'{"Model":"m","options":{"num_predict":8}}', Ask(Kind.INFERENCE, "m", most_tokens=8)),
        ("/v1/completions", b'{"model":"m","prompt":"hi","max_tokens":8}', Ask(Kind.INFERENCE, "m", most_tokens=8)),
        ("/v1/responses", b'{"model":"m","input":"hi","max_output_tokens":8}', Ask(Kind.INFERENCE, "m", most_tokens=8)),
        (
            "/v1/chat/completions", b'{"model":"m","max_tokens":99,"max_completion_tokens":8}',
            Ask(Kind.INFERENCE, "m", most_tokens=8),
        ),
        ("/v1/chat/completions", b'{"model":"m","max_tokens":"many"}', Ask(Kind.INFERENCE, "m")),
        ("/api/chat", b'{"model":"m",' + CHAT + b"}", Ask(Kind.INFERENCE, "m")),
        ("/api/chat", b'{"model":"m","messages":[]}', Ask(Kind.LOAD, "m")),
        ("/api/chat", b'{"model":"m","messages":[\n\t ]}', Ask(Kind.LOAD, "m")),
        ("/api/chat", b'{"model":"m","messages":null,"keep_alive":0.0}', Ask(Kind.UNLOAD, "m", unloads=True)),
        ("/v1/chat/completions", b'{"model":"m"}', Ask(Kind.INFERENCE, "m")),
        ("/api/embed", b'{"model":"m","keep_alive":0}', Ask(Kind.INFERENCE, "m", unloads=True)),
        # what only Go's reading shows
        ("/api/chat", b'{"Model":"m","MESSAGES":[{}]}', Ask(Kind.INFERENCE, "m")),
        ("/api/chat", b'{"model":"m","Messages":[{}]}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","Prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","Keep_Alive":0}', Ask(Kind.UNLOAD, "m", unloads=True)),
        ("/api/generate", b'{"model":"","Model":"m","prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","model":null,"prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi","prompt":null}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"x","model":"m","prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi"} trailing', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi"}{"model":"x"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'\xef\xbb\xbf{"model":"m","prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b' \r\n\t{"model":"m","prompt":"hi"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"\xff\xfe"}', Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"Model":"m","prompt":"hi","n":' + b"9" * 5000 + b"}", Ask(Kind.INFERENCE, "m")),
        ("/api/generate", b'{"model":"m","prompt":"hi","n":' + b"9" * 5000 + b"}", Ask(Kind.INFERENCE, "m")),
        # so deep that no model can be found, but a server may well find one
        ("/api/generate", b'{"Model":"m","n":' + b"[" * 5000 + b"]" * 5000 + b"}", Ask(Kind.INFERENCE, None)),
        ("/api/generate", b'{"model":"m","n":' + b"[" * 5000 + b"]" * 5000 + b"}", Ask(Kind.INFERENCE, None)),
    ],
)  # fmt: skip
def test_a_body_is_read_as_ollama_reads_it(path: str, body: bytes, asks: Ask) -> None:
    assert read_ask(path, JSON, body) == asks


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"hello", b"[]", b'"m"', b"null", b"{", b'{"model":', b"{}", b'{"model":null}', b'{"model":""}',
        b'{"model":7}', b'{"model":["m"]}', b'{"prompt":"hi"}', b"{'model':'m'}", b'{"Model":"m","n":NaN}',
        '{"model":"m"}'.encode("utf-16"), b"\x00", b"\xff",
    ],
)  # fmt: skip
def test_a_body_that_no_server_could_use_is_hopeless(body: bytes) -> None:
    assert read_ask("/api/chat", JSON, body) == HOPELESS


LARGE = b'"x":[' + b"0," * LENIENT_BYTES + b"0]"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"m","messages":[{}],' + LARGE + b"}", "m"),
        (b"{" + LARGE + b',"model":"m","messages":[{}]}', "m"),
        (b'{"model":"m",' + LARGE + b"}", "m"),  # a load, or messages under a name that only Go knows
        (b'{"Model":"m","messages":[{}],' + LARGE + b"}", None),
        (b'{"model":["m"],"messages":[{}],' + LARGE + b"}", None),
        (b'{"model":"m","prompt":[' + b"0," * LENIENT_BYTES + b"0]}", None),
        (LARGE, None),
    ],
    ids=range(7),
)
def test_a_large_body_is_never_built(body: bytes, model: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB of it took 38 s, in which nobody else was served, and 7 GB of memory."""
    monkeypatch.delattr(ollama, "_lenient")
    for path in ("/api/chat", "/api/generate"):
        ask = read_ask(path, JSON, body)
        assert (ask.kind, ask.model) == (Kind.INFERENCE, model)


def test_a_form_goes_to_any_worker() -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--x--'
    asked = read_ask("/v1/audio/transcriptions", "multipart/form-data; boundary=x", form)
    assert asked == Ask(Kind.INFERENCE, None)


PATHS = st.sampled_from(sorted(FORWARDED))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(PATHS, st.sampled_from([JSON, "", "text/plain", "multipart/form-data"]), st.binary(max_size=200))
@example("/api/chat", JSON, b'{"model":"\xff"}')
@example("/api/chat", JSON, b'{"model":"\\ud800"}')
def test_no_bytes_make_it_raise(path: str, kind: str, body: bytes) -> None:
    assert isinstance(read_ask(path, kind, body), Ask)


@given(PATHS, st.binary(max_size=20), st.integers(0, 60))
def test_no_damaged_body_makes_it_raise(path: str, damage: bytes, at: int) -> None:
    body = b'{"model":"m","messages":[{"content":"\xc3\xa9"}],"prompt":"p","keep_alive":0}'
    assert isinstance(read_ask(path, JSON, body[:at] + damage + body[at:]), Ask)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.text() | SCALARS,
            "prompt": st.text() | SCALARS,
            "messages": st.none() | st.lists(VALUES, max_size=2),
            "keep_alive": st.none() | st.integers(-2, 2) | st.sampled_from(["0", "0s", "5m", "-1"]),
            "options": VALUES,
            "images": VALUES,
        },
    ),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.data(),
)
def test_it_agrees_with_a_plain_reading_of_the_body(
    fields: dict[str, Any], indent: int | None, ascii_only: bool, data: st.DataObject
) -> None:
    names = list(data.draw(st.permutations(list(fields))))
    text = json.dumps({name: fields[name] for name in names}, indent=indent, ensure_ascii=ascii_only)
    body = text.encode("utf-8", "surrogatepass")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        assert read_ask("/api/chat", JSON, body) == HOPELESS
        return
    zero = fields.get("keep_alive") in ("0", "0s") or fields.get("keep_alive") == 0
    idle = Kind.UNLOAD if zero else Kind.LOAD
    asked = {path: read_ask(path, JSON, body) for path in ("/api/chat", "/api/generate", "/v1/messages")}
    assert {path: (ask.kind, ask.model) for path, ask in asked.items()} == {
        "/api/chat": (Kind.INFERENCE if fields.get("messages") else idle, model),
        "/api/generate": (Kind.INFERENCE if fields.get("prompt") else idle, model),
        "/v1/messages": (Kind.INFERENCE, model),
    }


LONG = "What is the answer to life, the universe and everything? " * 20


def turns(count: int) -> list[dict[str, str]]:
    """A conversation that has come to its n-th question."""
    said = [{"role": "user", "content": f"{LONG} {0}"}]
    for number in range(1, count):
        said += [{"role": "assistant", "content": LONG[::-1]}, {"role": "user", "content": f"{LONG} {number}"}]
    return said


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_each_turn_of_a_conversation_begins_as_the_one_before(path: str) -> None:
    first, second, third = (
        read_ask(path, JSON, json.dumps({"model": "m", "messages": turns(count)}).encode()).prefix
        for count in (1, 2, 3)
    )
    assert (first.continues, second.continues) == (False, True)
    assert len(first.chain) > 3
    assert second.chain[: len(first.chain)] == first.chain
    assert third.chain[: len(second.chain)] == second.chain


def test_ollamas_own_memory_of_a_conversation_is_a_beginning_too() -> None:
    context = list(range(200))
    asks = [
        read_ask("/api/generate", JSON, json.dumps({"model": "m", "prompt": LONG, "context": known}).encode()).prefix
        for known in ([], context, [*context, 7, 8])
    ]
    assert [ask.continues for ask in asks] == [False, True, True]
    assert asks[2].chain[:2] == asks[1].chain[:2]


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/v1/embeddings"])
def test_of_an_embedding_nothing_is_kept(path: str) -> None:
    body = json.dumps({"model": "m", "input": LONG, "prompt": LONG, "messages": turns(3)}).encode()
    assert read_ask(path, JSON, body).prefix == NO_PREFIX


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3", "llama3:latest"),
        ("llama3:8b", "llama3:8b"),
        ("user/llama3", "user/llama3:latest"),
        ("library/llama3", "llama3:latest"),
        ("registry.ollama.ai/library/llama3:8b", "llama3:8b"),
        ("registry.ollama.ai/user/llama3", "user/llama3:latest"),
        ("localhost:5000/library/llama3", "localhost:5000/library/llama3:latest"),
        ("localhost:5000/user/llama3", "localhost:5000/user/llama3:latest"),
        ("localhost:5000/user/llama3:8b", "localhost:5000/user/llama3:8b"),
    ],
)
def test_a_model_without_a_tag_is_the_latest(name: str, full: str) -> None:
    assert full_name(name) == full
    assert full_name(full) == full


@pytest.mark.parametrize(
    ("tail", "counts"),
    [
        (b'{"done":true,"context":[1,2],"prompt_eval_count":132,"eval_count":5,"eval_duration":9}\n', (132, 5)),
        (b'{"done":true,"eval_count":5}\n', (0, 5)),  # the whole prompt was cached
        (b'{"object":"chat.completion","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}', (7, 2)),
        (b'data: {"usage": {"input_tokens": 3, "output_tokens": 4}}\n\n', (3, 4)),
        (b'{"embeddings":[[0.1]],"prompt_eval_count":6}', (6, 0)),
        (b'{"error":"no"}', (0, 0)),
        (b"", (0, 0)),
        (b'"eval_count":' + b"9" * 30, (0, 999_999_999)),
    ],
)
def test_an_answers_end_says_how_many_tokens_there_were(tail: bytes, counts: tuple[int, int]) -> None:
    assert tokens_of(tail) == counts


@pytest.mark.parametrize(
    ("said", "died"),
    [
        ("an error was encountered while running the model: unexpected EOF", True),
        ("llama runner process has terminated: signal: killed", True),
        ("llama runner process no longer running: -1", True),
        ("unexpected EOF", True),
        ('do load request: Post "http://127.0.0.1:40343/load": EOF', True),
        ('Post "http://127.0.0.1:40343/completion": read tcp 127.0.0.1:1: read: connection reset by peer', True),
        ('Post "http://127.0.0.1:40343/completion": dial tcp 127.0.0.1:40343: connect: connection refused', True),
        ('Post "https://ollama.com/api/chat": EOF', False),
        ("unable to load model: /models/blobs/sha256-1", False),
        ("llama runner process has terminated: error loading model: unknown model architecture: 'x'", False),
        ("model requires more system memory (10 GiB) than is available (2 GiB)", False),
        ("EOF", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_an_error_says_of_its_runner(said: str, died: bool) -> None:
    assert runner_died(json.dumps({"error": said}).encode()) is died


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        ('{"model":"m"}', (PullAsk("m:latest", insecure=False), True)),
        ('{"name":"m:1b"}', (PullAsk("m:1b", insecure=False), True)),
        ('{"model":"m","name":"","stream":false}', (PullAsk("m:latest", insecure=False), False)),
        ('{"model":"m","insecure":true,"stream":true}', (PullAsk("m:latest", insecure=True), True)),
        ('{"model":"m","username":"u"}', None),
        ('{"Model":"m"}', None),
        ('{"model":null}', None),
        ('{"model":"m","stream":null}', None),
        ("[]", None),
        ("m", None),
        ("", None),
        ("\udcff", None),
        ("[" * 100_000, None),
    ],
)
def test_what_a_pull_asks_for_and_which_are_out_of_the_ordinary(body: str, asks: object) -> None:
    assert read_pull(body.encode("utf-8", "surrogateescape")) == asks


@pytest.mark.parametrize(
    ("path", "body", "load_options"),
    [
        ("/api/chat", {"messages": [{}], "options": {"num_ctx": 8192, "seed": 1}}, "num_ctx=8192"),
        ("/api/generate", {"prompt": "x", "options": {"seed": 1}}, ""),
        ("/api/generate", {"prompt": "x", "options": None}, ""),
        ("/api/generate", {"Prompt": "x", "Options": {"num_gpu": 1}}, "num_gpu=1"),
        ("/v1/chat/completions", {"messages": [{}], "options": {"num_ctx": 8192}}, ""),
    ],
)
def test_options_that_would_load_the_model_anew_are_found(path: str, body: dict[str, Any], load_options: str) -> None:
    ask = read_ask(path, "application/json", json.dumps({"model": "m", **body}).encode())
    assert ask.load_options == load_options


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        (b'{"error":"unable to load model: /x"}', True),
        (b'{"error":"model failed to load, this may be due to resource limitations"}', True),
        (b'{"error":"timed out waiting for llama runner to start - progress 0.00"}', True),
        (b'{"error":"an error was encountered while running the model: EOF"}', False),
        (b'{"error":"model "x" not found, try pulling it first"}', False),
    ],
)
def test_a_failed_load_is_known_by_ollamas_words(said: bytes, failed: bool) -> None:
    assert load_failed(said) is failed

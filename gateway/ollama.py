"""Ollama's API as data: which path who answers, and what a body asks for. Pure."""

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from gateway.affinity import NO_PREFIX, Prefix, prefix_of
from gateway.load_options import LENIENT_BYTES, as_go_decodes, load_options_of


class Answerer(Enum):
    """Who answers a request."""

    WORKER = "worker"  # a lease on one of the fleet, through the queue
    PRIMARY = "primary"  # the owner of the model store, at once
    FLEET = "fleet"  # an answer made of all workers'
    GATEWAY = "gateway"  # Chimera itself: admin, health, metrics


FORWARDED = frozenset(
    {
        "/api/generate", "/api/chat", "/api/embed", "/api/embeddings",
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
        "/v1/audio/transcriptions",
    }
)  # fmt: skip


def answerer(method: str, path: str) -> Answerer:
    """Return who answers. Anything under /api or /v1 that is not known goes to the primary, unchanged.

    A forwarded path asked with another method than POST goes there too: Ollama knows best how to refuse it.
    """
    if path in FORWARDED and method == "POST":
        return Answerer.WORKER
    if path == "/api/ps" and method == "GET":  # Ollama knows no HEAD of it
        return Answerer.FLEET
    if path.startswith(("/api/", "/v1/")) or (path == "/" and method in ("GET", "HEAD")):
        return Answerer.PRIMARY
    return Answerer.GATEWAY


def changes_models(method: str, path: str) -> bool:
    """Say whether a request may change the model store: pull, push, create, copy, delete, uploads of blobs.

    Told by what is known to change nothing. What a newer Ollama may bring under /api counts as a change.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    return method != "POST" or not (path in FORWARDED or path == "/api/show" or path.startswith("/v1/"))


class Kind(Enum):
    """What a request on a forwarded path is."""

    INFERENCE = "inference"
    LOAD = "load"  # no prompt: Ollama loads the model
    UNLOAD = "unload"  # no prompt and keep_alive 0
    HOPELESS = "hopeless"  # no server could make sense of it: the primary words the refusal, no slot is spent


class Ask(msgspec.Struct, frozen=True):
    """What a request body asks for; `model` None when it does not say in a way that we can read.

    `load_options` are those that its model would be loaded with, in one form (gateway.load_options). `unloads`: its
    keep_alive is 0, so that Ollama unloads the model when the answer has ended. `most_tokens`: how long the answer may
    become at most, None when it does not say.
    """

    kind: Kind
    model: str | None
    prefix: Prefix = NO_PREFIX
    load_options: str = ""
    unloads: bool = False
    most_tokens: int | None = None


_NOTHING = msgspec.Raw(b"")
# Below nought is as long as the model likes. What no more than looks like it, in a string, only misleads a dispatcher.
_NUM_PREDICT = re.compile(rb'"num_predict"\s*:\s*(\d{1,9})\b(?![.eE])')


class _Body(msgspec.Struct):
    """The fields that matter here; whatever else there is, images of megabytes too, is passed over unbuilt."""

    model: str | None = None
    prompt: str | None = None
    messages: msgspec.Raw = _NOTHING
    keep_alive: str | float | bool | None = None
    system: msgspec.Raw = _NOTHING
    context: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    options: msgspec.Raw = _NOTHING
    max_tokens: msgspec.Raw = _NOTHING
    max_completion_tokens: msgspec.Raw = _NOTHING
    max_output_tokens: msgspec.Raw = _NOTHING


_decoder = msgspec.json.Decoder(_Body)


def read_ask(path: str, content_type: str, body: bytes) -> Ask:
    """Return what a body asks for. Never raises: what cannot be read is forwarded or refused by Ollama."""
    if content_type.startswith("multipart/"):  # audio: the model is a form field; any worker will do
        return Ask(Kind.INFERENCE, None)
    try:
        fields = _quick(body)
        large = len(body) > LENIENT_BYTES  # if only Go can read it, any worker answers it all the same
        if not large and (fields is None or not fields.model or _kind(path, fields) is not Kind.INFERENCE):
            # Go matches names of any case: `Model` is a model too, and what looks like a load may have a `Prompt`
            fields = _lenient(body)
    except RecursionError:
        return Ask(Kind.INFERENCE, None)
    if fields is None or not isinstance(fields.model, str) or not fields.model:
        return Ask(Kind.INFERENCE if large else Kind.HOPELESS, None)
    kind = Kind.INFERENCE if large else _kind(path, fields)
    prefix = _prefix(path, fields) if kind is Kind.INFERENCE else NO_PREFIX
    if not path.startswith("/api/"):
        most = fields.max_completion_tokens or fields.max_tokens or fields.max_output_tokens
        return Ask(kind, fields.model, prefix, most_tokens=_whole_number(bytes(most)))
    options = bytes(fields.options)
    said = _NUM_PREDICT.search(options)
    return Ask(
        kind, fields.model, prefix, load_options_of(options), unloads=_is_zero(fields.keep_alive),
        most_tokens=int(said[1]) if said else None,
    )  # fmt: skip


def _whole_number(said: bytes) -> int | None:
    return int(said) if said.isdigit() and len(said) < 10 else None


def _prefix(path: str, fields: _Body) -> Prefix:
    """Return how the prompt of a request begins, as its JSON has it: a client writes what was said before the same way.

    Embeddings have none: nothing is kept of them.
    """
    model, system = full_name(str(fields.model)), bytes(fields.system)
    if path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        messages = bytes(fields.messages)
        return prefix_of(model, (system, messages), continues=b'"assistant"' in messages)
    if path in ("/api/generate", "/v1/completions"):
        context = bytes(fields.context)  # Ollama's own memory of a conversation, as tokens
        prompt = fields.prompt if isinstance(fields.prompt, str) else ""
        return prefix_of(model, (system, context, prompt.encode("utf-8", "replace")), continues=len(context) > 2)
    if path == "/v1/responses":
        return prefix_of(model, (bytes(fields.input),), continues=b'"assistant"' in bytes(fields.input))
    return NO_PREFIX


def _quick(body: bytes) -> _Body | None:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class _Pairs(list[tuple[str, Any]]):
    """An object as it is written: names in their order, one perhaps twice."""


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)  # Python refuses very long ones


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_go = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_number, parse_constant=_no_number)


def _lenient(body: bytes) -> _Body | None:
    """Read a body as Go would: the first JSON value counts, names match in any case, bad UTF-8 is replaced."""
    try:
        known, _ = _go.raw_decode(as_go_decodes(body))
    except ValueError:
        return None
    if not isinstance(known, _Pairs):
        return None
    # null leaves a field as it was, the last value counts
    fields = {name.casefold(): value for name, value in known if value is not None}
    messages = fields.get("messages")
    raw = msgspec.Raw(b"" if not messages else b"[0]")  # only whether there are any matters
    options = fields.get("options")  # a map in Go: its names are what they are
    written = json.dumps(dict(options)).encode() if isinstance(options, _Pairs) else b""
    return _Body(fields.get("model"), fields.get("prompt"), raw, fields.get("keep_alive"), options=msgspec.Raw(written))


def _kind(path: str, fields: _Body) -> Kind:
    if path == "/api/generate":
        empty = not fields.prompt
    elif path == "/api/chat":
        empty = _is_empty(bytes(fields.messages))
    else:
        return Kind.INFERENCE
    if not empty:
        return Kind.INFERENCE
    return Kind.UNLOAD if _is_zero(fields.keep_alive) else Kind.LOAD


def _is_empty(messages: bytes) -> bool:
    """Say whether JSON is nothing, null or an empty list, without a look at what a full list holds."""
    whole = messages.strip()
    return whole in (b"", b"null") or (whole[:1] == b"[" and whole[1:].lstrip()[:1] == b"]")


def _is_zero(keep_alive: object) -> bool:
    """Say whether a keep_alive is nought: a number, or a duration such as "0", "0s", "0m"."""
    if keep_alive is None or isinstance(keep_alive, bool):
        return False
    if isinstance(keep_alive, int | float):
        return keep_alive == 0
    return isinstance(keep_alive, str) and keep_alive.strip().rstrip("hmsuµn") in ("0", "0.0")


_PULL_FIELDS = {"model", "name", "insecure", "stream"}


@dataclass(frozen=True, slots=True)
class PullAsk:
    """What makes two pulls the same one."""

    model: str
    insecure: bool


def read_pull(body: bytes) -> tuple[PullAsk, bool] | None:
    """Return what a pull's body asks for and whether it wants the lines, or None where it is out of the ordinary.

    A pull with anything else in it, such as a username, is not shared: the primary gets it as it came.
    """
    try:
        fields: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(fields, dict) or not fields.keys() <= _PULL_FIELDS:
        return None
    model = fields.get("model") or fields.get("name")
    insecure, stream = fields.get("insecure", False), fields.get("stream", True)
    if not isinstance(model, str) or not isinstance(insecure, bool) or not isinstance(stream, bool):
        return None
    return PullAsk(full_name(model), insecure), stream


# At the end of an answer, where Ollama and the OpenAI form say how many tokens there were.
_PROMPT_TOKENS = re.compile(rb'"(?:prompt_eval_count|prompt_tokens|input_tokens)": ?(\d{1,9})')
_ANSWER_TOKENS = re.compile(rb'"(?:eval_count|completion_tokens|output_tokens)": ?(\d{1,9})')
TAIL_BYTES = 1024


def tokens_of(tail: bytes) -> tuple[int, int]:
    """Return how many tokens an answer says it took and gave; nought where it does not say.

    `tail` is the end of its body, at least TAIL_BYTES of it: counts are searched, once an answer, and nothing is
    parsed.
    """
    end = tail[-TAIL_BYTES:]
    # the last counts: asked for usage, Ollama's OpenAI form has noughts in every event before
    prompt, answer = _PROMPT_TOKENS.findall(end), _ANSWER_TOKENS.findall(end)
    return int(prompt[-1]) if prompt else 0, int(answer[-1]) if answer else 0


# How much of an error answer is looked at.
ERROR_BYTES = 8 * 1024
# How an error begins where a stream was asked for: as Go writes its JSON, as NDJSON or as an event.
ERROR_STARTS = (b'{"error"', b'data: {"error"', b"event: error", b'{"type":"error"')
# Ollama's sentences (llm/server.go) for a runner that ended under a request: the scheduler starts another one.
_RUNNER_DIED = re.compile(
    rb"an error was encountered while running the model"
    rb"|llama runner process (?:has terminated|no longer running)"
    rb"|unexpected EOF|connection reset by peer|connect: connection refused"
    # the runner's own port: `do load request: Post "http://127.0.0.1:40343/load": EOF`, its quotes escaped in JSON
    rb'|Post \\?"http://127\.0\.0\.1:\d{1,5}/[^"\s]*": EOF'
)
# What a runner says of a file that it cannot use: every other one would end in the same way.
_MODELS_FAULT = re.compile(rb"(?:unable to load|error loading) model|unknown model architecture")


def runner_died(said: bytes) -> bool:
    """Say whether an error tells of a runner that died, so that the request is worth another try.

    `said` is the beginning of an error answer, at most ERROR_BYTES of it. A model that cannot be loaded is not one.
    """
    return _RUNNER_DIED.search(said) is not None and _MODELS_FAULT.search(said) is None


# Ollama's sentences (server/sched.go, llm/server.go) for a model that it could not load.
_LOAD_FAILED = re.compile(
    rb"(?:unable to load|error loading|failed to load) model|model failed to load|unknown model architecture"
    rb"|timed out waiting for llama runner to start|model requires more system memory"
)


def load_failed(said: bytes) -> bool:
    """Say whether an error tells of a model that could not be loaded: another worker may have more room for it.

    `said` is the beginning of an error answer, at most ERROR_BYTES of it.
    """
    return _LOAD_FAILED.search(said) is not None


def full_name(model: str) -> str:
    """Return a model's name as Ollama lists it: `llama3` is `llama3:latest`, the default registry goes unnamed."""
    model = model.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"

"""Ollama's, OpenAI's and Anthropic's paths in the OpenAPI document. Pure data.

Only what Chimera itself reads of a body is described, and of an answer only what all of them have: the rest is
Ollama's to say, and it may say more with each of its versions.
"""

from typing import Any, Final

from gateway.errors import Dialect, dialect_of
from gateway.openapi_schemas import COUNT, NUMBER, STRING, TRUTH, about, listed, or_null, ref, shape

Json = dict[str, Any]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
ANY: Final = "*/*"

_ERROR_OF = {Dialect.OLLAMA: "Error", Dialect.OPENAI: "OpenAIError", Dialect.ANTHROPIC: "AnthropicError"}

_MODEL = about("its name; without a tag `:latest` is meant", STRING)
_STREAM = about("whether the answer comes in parts", TRUTH)
_KEEP_ALIVE = about("how long the model stays loaded: seconds, or such as `5m`; 0 unloads it", {
    "type": ["number", "string", "null"]})  # fmt: skip
_OPTIONS = about("LOAD_OPTIONS says what becomes of those that would load the model anew, such as num_ctx", {
    "type": ["object", "null"]})  # fmt: skip
_MESSAGES = listed({"type": "object", "properties": {"role": STRING, "content": {}}})
_TEXTS = {"anyOf": [STRING, listed(STRING)]}

# What Chimera or Ollama may refuse with, and what each means.
_SAID: Final[dict[int, str]] = {
    400: "Ollama cannot make sense of it, or the gateway cannot: its framing, a header of its own",
    401: "API keys are required, and this is none that counts",
    403: "this key may not change the model store",
    404: "no such model",
    405: "the path has no such method",
    408: "the body comes too slowly, or not at all",
    409: "not while it is as it is",
    413: "the body is larger than MAX_BODY_BYTES",
    429: "more than this key may ask for",
    500: "Ollama failed: its own answer, which says so in X-Chimera-Worker",
    502: "the worker was lost, and so were others that were tried",
    501: "a transfer encoding that the gateway does not know",
    503: "the queue is full, no worker is there in time, or Chimera is going down; Retry-After says when to try again",
    504: "the worker fell silent",
}
_TRY_LATER: Final[Json] = {"Retry-After": {"description": "seconds", "schema": COUNT}}


def _refusals(path: str) -> Json:
    """Return the answers that are no success, in the form of the path's dialect. Ollama's own may have any form."""
    schema = {"anyOf": [ref(_ERROR_OF[dialect_of(path)]), {}]}
    return {
        str(code): {"description": said, "content": {JSON: {"schema": schema}, ANY: {}}}
        | ({"headers": _TRY_LATER} if code == 503 else {})
        for code, said in _SAID.items()
    }


def _body(schema: Json, *, kind: str = JSON, required: bool = True) -> Json:
    return {"required": required, "content": {kind: {"schema": schema}}}


def asked(
    path: str, name: str, summary: str, *, tag: str, kinds: dict[str, Json], body: Json | None = None,
    status: int = 200,
) -> Json:  # fmt: skip
    """Return an operation that Ollama answers; `kinds`: what it answers with, by content type (none: no body)."""
    good: Json = {"description": "Ollama's answer"}
    if kinds:
        good["content"] = {kind: {"schema": schema} for kind, schema in kinds.items()}
    made: Json = {
        "operationId": name, "summary": summary, "tags": [tag], "security": [],
        "responses": {str(status): good, **_refusals(path)},
    }  # fmt: skip
    if body is not None:
        made["requestBody"] = body
    return made


def _inference(
    path: str, name: str, summary: str, fields: Json, required: tuple[str, ...], *, streams: str | None
) -> Json:
    """Return the operation of a path that workers answer; `streams`: the content type of an answer in parts."""
    schema = {"type": "object", "properties": fields, "required": list(required)}
    kinds: dict[str, Json] = {JSON: {"type": "object"}}
    if streams is not None:
        kinds[streams] = {}
    return {"post": asked(path, name, summary, tag="inference", kinds=kinds, body=_body(schema))}


def _of_store(
    path: str, name: str, summary: str, fields: Json, required: tuple[str, ...], *, lines: bool = False
) -> Json:
    schema = {"type": "object", "properties": fields, "required": list(required)}
    kinds: dict[str, Json] = {JSON: {"type": "object"}}
    if lines:
        kinds[NDJSON] = {}
    return asked(path, name, summary, tag="models", kinds=kinds, body=_body(schema))


_OLLAMA: Json = {"model": _MODEL, "stream": _STREAM, "keep_alive": _KEEP_ALIVE, "options": _OPTIONS}
_OPENAI: Json = {"model": _MODEL, "stream": _STREAM}
_AUDIO = shape("", model=_MODEL, file={"type": "string", "contentMediaType": "application/octet-stream"})
_LOADED = shape(
    "`workers` says where it is loaded", name=STRING, size=NUMBER, size_vram=NUMBER, expires_at=STRING,
    workers=listed(STRING), optional=("size", "size_vram", "expires_at"),
)  # fmt: skip

_WORKERS_PATHS: Json = {
    "/api/generate": _inference(
        "/api/generate", "generate", "An answer to a prompt; without one the model is loaded, or unloaded",
        _OLLAMA | {"prompt": STRING, "system": STRING, "context": listed({"type": "integer"})}, ("model",),
        streams=NDJSON,
    ),
    "/api/chat": _inference(
        "/api/chat", "chat", "The next message; without any the model is loaded, or unloaded",
        _OLLAMA | {"messages": _MESSAGES}, ("model",), streams=NDJSON,
    ),
    "/api/embed": _inference(
        "/api/embed", "embed", "Embeddings of texts", _OLLAMA | {"input": _TEXTS}, ("model", "input"), streams=None
    ),
    "/api/embeddings": _inference(
        "/api/embeddings", "embeddings", "The embedding of one text", _OLLAMA | {"prompt": STRING}, ("model",),
        streams=None,
    ),
    "/v1/chat/completions": _inference(
        "/v1/chat/completions", "openaiChat", "OpenAI's chat completions", _OPENAI | {"messages": _MESSAGES},
        ("model", "messages"), streams=SSE,
    ),
    "/v1/completions": _inference(
        "/v1/completions", "openaiCompletion", "OpenAI's completions", _OPENAI | {"prompt": STRING},
        ("model", "prompt"), streams=SSE,
    ),
    "/v1/embeddings": _inference(
        "/v1/embeddings", "openaiEmbeddings", "OpenAI's embeddings", {"model": _MODEL, "input": _TEXTS},
        ("model", "input"), streams=None,
    ),
    "/v1/responses": _inference(
        "/v1/responses", "openaiResponses", "OpenAI's responses",
        _OPENAI | {"input": {"anyOf": [STRING, listed({"type": "object"})]}}, ("model", "input"), streams=SSE,
    ),
    "/v1/messages": _inference(
        "/v1/messages", "anthropicMessages", "Anthropic's messages",
        _OPENAI | {"messages": _MESSAGES, "system": {"anyOf": [STRING, listed({"type": "object"})]},
                   "max_tokens": COUNT},
        ("model", "messages"), streams=SSE,
    ),
    "/v1/audio/transcriptions": {
        "post": asked(
            "/v1/audio/transcriptions", "openaiTranscription", "OpenAI's transcription of speech", tag="inference",
            kinds={JSON: {}, SSE: {}, "text/plain": {}}, body=_body(_AUDIO, kind="multipart/form-data"),
        )
    },
}  # fmt: skip

_FLEET_PATHS: Json = {
    "/api/ps": {
        "get": asked(
            "/api/ps", "ps", "The models that are loaded, on all workers together", tag="fleet",
            kinds={JSON: shape("", models=listed(_LOADED))},
        )
    },
}  # fmt: skip

_NAMED: Json = {"model": _MODEL, "name": about("older clients' word for `model`", STRING), "stream": _STREAM}
_DIGEST: Json = {
    "name": "digest", "in": "path", "required": True, "description": "sha256:…", "schema": STRING,
}  # fmt: skip
_BLOB: Final = "/api/blobs/{digest}"
_V1_MODEL: Json = {"name": "model", "in": "path", "required": True, "description": "its name", "schema": STRING}

_PRIMARY_PATHS: Json = {
    "/": {
        "get": asked("/", "hello", "`Ollama is running`", tag="models", kinds={"text/plain": STRING}),
    },
    "/api/version": {
        "get": asked("/api/version", "version", "Ollama's version", tag="models",
                     kinds={JSON: shape("", version=STRING)}),
    },
    "/api/tags": {
        "get": asked("/api/tags", "tags", "The models of the store", tag="models",
                     kinds={JSON: shape("", models=or_null(listed({"type": "object"})))}),
    },
    "/api/show": {"post": _of_store("/api/show", "show", "What a model is", _NAMED, ("model",))},
    "/api/pull": {
        "post": _of_store("/api/pull", "pull", "Fetch a model; many who want the same share one fetch",
                          _NAMED | {"insecure": TRUTH}, ("model",), lines=True),
    },
    "/api/push": {"post": _of_store("/api/push", "push", "Upload a model", _NAMED, ("model",), lines=True)},
    "/api/create": {
        "post": _of_store("/api/create", "create", "Make a model of another", _NAMED, ("model",), lines=True),
    },
    "/api/copy": {
        "post": _of_store("/api/copy", "copy", "Give a model another name", {"source": STRING, "destination": STRING},
                          ("source", "destination")),
    },
    "/api/delete": {
        "delete": asked("/api/delete", "delete", "Remove a model", tag="models", kinds={ANY: {}},
                        body=_body({"type": "object", "properties": {"model": _MODEL, "name": STRING}})),
    },
    _BLOB: {
        "parameters": [_DIGEST],
        "head": asked(_BLOB, "hasBlob", "Whether the store has a blob", tag="models", kinds={}),
        "post": asked(_BLOB, "putBlob", "Put a blob into the store; a body of any size is passed on as it comes",
                      tag="models", kinds={ANY: {}}, status=201,
                      body=_body({}, kind="application/octet-stream")),
    },
    "/v1/models": {
        "get": asked("/v1/models", "openaiModels", "OpenAI's list of models", tag="models",
                     kinds={JSON: shape("", data=or_null(listed({"type": "object"})))}),
    },
    "/v1/models/{model}": {
        "parameters": [_V1_MODEL],
        "get": asked("/v1/models/{model}", "openaiModel", "One model in OpenAI's form", tag="models",
                     kinds={JSON: {"type": "object"}}),
    },
}  # fmt: skip

OLLAMA_PATHS: Final[Json] = {**_WORKERS_PATHS, **_FLEET_PATHS, **_PRIMARY_PATHS}

"""Chimera's own paths in the OpenAPI document: admin, health, metrics. Pure data.

A new route of the application needs its row here: `admin(...)` for what ADMIN_TOKEN guards. The table reads as the
routes of gateway/admin.py do, in their order.
"""

from typing import Any, Final

from gateway.openapi_schemas import COUNT, NUMBER, STRING, TRUTH, about, listed, ref, shape

Json = dict[str, Any]

NDJSON: Final = "application/x-ndjson"
JSON: Final = "application/json"
TEXT: Final = "text/plain"

_REFUSALS: Final = {
    400: "not understood; the sentence says what",
    401: "no ADMIN_TOKEN, or a wrong one",
    403: "not from this machine, or a web page's request, while no ADMIN_TOKEN is set",
    404: "there is no such thing; the sentence says which",
    405: "the path has no such method",
    409: "no room, or not while it is as it is",
    503: "the database does not answer; nothing was changed",
    413: "the body is larger than 1 MiB",
}


def answers(about_it: str, schema: Json, *, status: int = 200, kind: str = JSON, refused: tuple[int, ...] = ()) -> Json:
    """Return an operation's answers: the good one, and refusals in the form of `Error`."""
    good = {"description": about_it, "content": {kind: {"schema": schema}}}
    return {str(status): good, **_refused(*refused)}


def _refused(*codes: int) -> Json:
    content = {JSON: {"schema": ref("Error")}}
    return {str(code): {"description": _REFUSALS[code], "content": content} for code in codes}


def admin(name: str, about_it: str, replies: Json, *, body: str | None = None, query: tuple[Json, ...] = ()) -> Json:
    """Return an operation of the admin API. `body`: the schema of its JSON body, which may be left out."""
    made: Json = {
        "operationId": name, "summary": about_it, "tags": ["admin"], "security": [{"admin": []}],
        "responses": {**replies, **_refused(401, 403)},
    }  # fmt: skip
    if query:
        made["parameters"] = list(query)
    if body is not None:
        made["requestBody"] = {"required": False, "content": {JSON: {"schema": ref(body)}}}
    return made


def query(name: str, about_it: str, schema: Json) -> Json:
    """Return a parameter in the query, which may be left out."""
    return {"name": name, "in": "query", "required": False, "description": about_it, "schema": schema}


def in_path(name: str, about_it: str, schema: Json = STRING) -> Json:
    """Return a parameter in the path."""
    return {"name": name, "in": "path", "required": True, "description": about_it, "schema": schema}


_WORKER = in_path("worker_id", "a worker's id; where nothing is changed `primary` too")
_GPU = in_path("gpu", "a GPU's index or UUID")
_KEY = in_path("key_id", "an API key's id")
_VERB = in_path("verb", "what it is to do", {"type": "string", "enum": ["drain", "cordon", "uncordon", "restart"]})
_FOLLOW = query("follow", "1: go on with what comes, until the client leaves", STRING)
_LINES = query("n", "how many of the last lines", {"type": "integer", "minimum": 0, "maximum": 100_000, "default": 200})
_TEXT: Json = {"type": "string"}

_SPAWNED = shape("the new workers", instances=listed(ref("Instance")))
_PRUNED = shape("the ids of those that go", pruned=listed(STRING))
_FLEET = shape("", instances=listed(ref("Instance")), queue=ref("Queue"), primary=ref("Primary"))
_ONE = {"anyOf": [ref("Instance"), ref("Primary")]}
_GPUS = shape(
    "", gpus=listed(ref("Gpu")), driver_version={"type": ["string", "null"]},
    fault=about("why there are none", {"type": ["string", "null"]}),
    unplaced=about("what of WORKERS has no place here", listed(STRING)),
)  # fmt: skip
_ONE_GPU = answers("the GPU", ref("Gpu"), status=202, refused=(404,))
_KEYS = shape("`required`: whether API_KEYS_REQUIRED", keys=listed(ref("Key")), required=TRUTH)
_QUEUE = shape("", queue=ref("Queue"), tickets=listed(ref("Ticket")))


def health(name: str, about_it: str, replies: Json) -> Json:
    """Return an operation that anybody may ask for."""
    return {"operationId": name, "summary": about_it, "tags": ["health"], "security": [], "responses": replies}


OWN_PATHS: Final[Json] = {
    "/admin/instances": {
        "get": admin("listInstances", "The fleet, its queue, the primary", answers("the fleet", _FLEET)),
    },
    "/admin/queue": {
        "get": admin("showQueue", "The queue, ticket by ticket", answers("the queue", _QUEUE)),
    },
    "/admin/instances/spawn": {
        "post": admin(
            "spawn", "Add workers; the fields may stand in the query instead",
            answers("the new workers", _SPAWNED, status=202, refused=(400, 404, 409, 413)), body="Spawn",
            query=(query("wait", "1: answer when they are ready or have failed", STRING),),
        ),
    },
    "/admin/instances/prune": {
        "post": admin(
            "prune", "Remove workers; the fields may stand in the query instead",
            answers("which", _PRUNED, status=202, refused=(400, 404, 409, 413)), body="Prune",
            query=(query("wait", "1: answer when they are gone", STRING),),
        ),
    },
    "/admin/instances/{worker_id}": {
        "parameters": [_WORKER],
        "get": admin("showInstance", "One worker", answers("the worker", _ONE, refused=(404,))),
        "delete": admin(
            "removeInstance", "Remove one worker",
            answers("which", _PRUNED, status=202, refused=(400, 404, 413)),
            query=(query("force", "1: do not let running answers end first", STRING),),
        ),
    },
    "/admin/instances/{worker_id}/{verb}": {
        "parameters": [_WORKER, _VERB],
        "post": admin(
            "order", "Drain, cordon, uncordon or restart a worker",
            answers("the worker", _ONE, status=202, refused=(400, 404, 405, 409)),
        ),
    },
    "/admin/instances/{worker_id}/logs": {
        "parameters": [_WORKER],
        "get": admin(
            "readLog", "A worker's log", answers("its lines", _TEXT, kind=TEXT, refused=(400, 404)),
            query=(_LINES, _FOLLOW),
        ),
    },
    "/admin/keys": {
        "get": admin("listKeys", "The API keys", answers("the keys", _KEYS)),
        "post": admin(
            "createKey", "Make an API key; it is shown this once", answers("the key", ref("NewKey"), status=201,
                                                                           refused=(400, 413, 503)), body="KeyFields",
        ),
    },
    "/admin/keys/{key_id}": {
        "parameters": [_KEY],
        "get": admin("showKey", "One API key", answers("the key", ref("Key"), refused=(404,))),
        "patch": admin(
            "changeKey", "Change an API key; what is not named stays",
            answers("the key", ref("Key"), refused=(400, 404, 413, 503)), body="KeyFields",
        ),
        "delete": admin("revokeKey", "Let an API key count no more", answers("which", shape("", revoked=STRING),
                                                                             refused=(404, 503))),
    },
    "/admin/gpus": {
        "get": admin("listGpus", "The GPUs", answers("the GPUs", _GPUS)),
    },
    "/admin/gpus/{gpu}/quarantine": {
        "parameters": [_GPU],
        "post": admin("quarantine", "Take a GPU out of use", _ONE_GPU),
    },
    "/admin/gpus/{gpu}/release": {
        "parameters": [_GPU],
        "post": admin("release", "Let a GPU be used again", _ONE_GPU),
    },
    "/admin/events": {
        "get": admin(
            "listEvents", "What happened, a line of JSON each", answers("the events", _TEXT, kind=NDJSON),
            query=(_FOLLOW,),
        ),
    },
    "/admin/traefik": {
        "get": admin(
            "traefik", "What Traefik's HTTP provider asks for: the names that lead here, and how",
            answers("Traefik's dynamic configuration", shape("", http={"type": "object"}), refused=(400, 404)),
            query=(
                query("entrypoints", "names of Traefik's entry points, separated by commas; none: all", STRING),
                query("resolver", "Traefik's name of what gets the certificates", STRING),
                query("tls", "1: the entry points speak TLS", STRING),
            ),
        ),
    },
    "/healthz": {
        "get": health("healthz", "The process is there", answers("it is", shape("", status={"const": "ok"}))),
    },
    "/readyz": {
        "get": health(
            "readyz", "At least one worker may be given requests",
            answers("so it is", shape("", ready_workers=COUNT))
            | answers("none may", shape("", ready_workers=NUMBER), status=503),
        ),
    },
    "/metrics": {
        "get": health("metrics", "Metrics for Prometheus", answers("the metrics", _TEXT, kind=TEXT)),
    },
    "/openapi.json": {
        "get": health("openapi", "This document", answers("this document", {"type": "object"})),
    },
}  # fmt: skip

"""The shapes of the OpenAPI document: what bodies of requests and of answers are made of. Pure data.

Answers are described by what they always have; more may be added to them at any time, so nothing is forbidden there.
"""

from typing import Any, Final

Json = dict[str, Any]


def ref(name: str) -> Json:
    """Return a reference to one of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def shape(about: str, /, *, optional: tuple[str, ...] = (), **fields: Any) -> Json:
    """Return an object with these fields, all of them always there but the `optional` ones."""
    required = [name for name in fields if name not in optional]
    made = {"type": "object", "description": about, "properties": fields}
    return made | ({"required": required} if required else {})


def listed(items: Json) -> Json:
    """Return a list of such items."""
    return {"type": "array", "items": items}


def or_null(kind: Json) -> Json:
    """Return the same, or null."""
    return {"anyOf": [kind, {"type": "null"}]}


def about(text: str, kind: Json) -> Json:
    """Return the same with a description."""
    return {**kind, "description": text}


STRING: Final[Json] = {"type": "string"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
NUMBER: Final[Json] = {"type": "number"}
TRUTH: Final[Json] = {"type": "boolean"}
MOMENT: Final[Json] = {"type": "string", "format": "date-time"}
GPU: Final[Json] = about(
    "a GPU's index or UUID, or `cpu`; null: where there is most room", {"type": ["integer", "string", "null"]}
)

STATES: Final = [
    "STARTING", "WARMING", "IDLE", "BUSY", "CORDONED", "DRAINING", "STOPPING", "BACKOFF", "QUARANTINED",
]  # fmt: skip

_TROUBLE = shape(
    "what is wrong: what, since when, what was tried, what happens next",
    what=STRING, since=MOMENT, tried=STRING, next=STRING,
)  # fmt: skip
_EXIT = shape(
    "how its last process ended",
    reason=STRING, code=or_null({"type": "integer"}), signal=or_null(STRING), at=MOMENT,
)  # fmt: skip
_WORKER: Json = {
    "id": STRING,
    "state": STRING,
    "placement": about("where it computes: a GPU's UUID, or `cpu`", STRING),
    "gpu": or_null(shape("", index=or_null(COUNT), uuid=STRING, name=or_null(STRING))),
    "port": or_null(COUNT),
    "pid": or_null(COUNT),
    "url": or_null(STRING),
    "slots": about("requests it answers at once", COUNT),
    "inflight": about("requests it answers now", COUNT),
    "models": about("the models that are loaded there", listed(STRING)),
    "restarts": COUNT,
    "started_at": or_null(MOMENT),
    "uptime_s": or_null(NUMBER),
    "last_exit": or_null(_EXIT),
    "problem": or_null(STRING),
    "trouble": or_null(ref("Trouble")),
    "degraded": TRUTH,
    "rss_bytes": COUNT,
    "cpu_percent": NUMBER,
    "gpu_memory_bytes": or_null(COUNT),
}

_LIMIT: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": 2_000_000_000}
_KEY: Json = {
    "name": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": "^[A-Za-z0-9_-]+( [A-Za-z0-9_-]+)*$"},
    "concurrency": about("how many of its requests may be here at once; null: no limit", _LIMIT),
    "requests_per_minute": about("null: no limit", _LIMIT),
    "tokens_per_minute": about("null: no limit", _LIMIT),
    "priority": about("the highest that it may ask for", {"type": "integer", "minimum": 0, "maximum": 9}),
    "models": about("whether it may change the model store", TRUTH),
}
_KNOWN_KEY: Json = {
    **_KEY, "name": STRING, "id": STRING, "prefix": STRING, "created_at": MOMENT, "last_used_at": or_null(MOMENT),
}  # fmt: skip

SCHEMAS: Final[Json] = {
    "Error": shape("an error in Ollama's form", error=STRING),
    "OpenAIError": shape(
        "an error in OpenAI's form", error=shape("", message=STRING, type=or_null(STRING))
    ),
    "AnthropicError": shape(
        "an error in Anthropic's form", type={"const": "error"}, error=shape("", type=STRING, message=STRING)
    ),
    "Trouble": _TROUBLE,
    "Instance": shape("one worker", **_WORKER | {"state": {"type": "string", "enum": STATES}}),
    "Primary": shape("the owner of the model store", **_WORKER, store=or_null(STRING)),
    "Queue": shape(
        "the queue: waiting requests and their bodies, what there is room for, how long the oldest has waited",
        depth=COUNT, size=COUNT, oldest_s=NUMBER, bytes=COUNT, size_bytes=COUNT,
    ),
    "Ticket": shape(
        "a request that waits",
        position=COUNT, estimated_wait_s=or_null(NUMBER), waited_s=NUMBER, request=STRING, caller=STRING,
        model=or_null(STRING), priority={"type": "integer"}, body_bytes=COUNT, attempts=COUNT,
    ),
    "Gpu": shape(
        "one GPU, or one MIG device of it; null where the driver does not tell",
        index=COUNT, uuid=STRING, name=STRING, mig_of=or_null(STRING),
        memory_used_bytes=COUNT, memory_total_bytes=COUNT, utilisation_percent=or_null(NUMBER),
        temperature_c=or_null(NUMBER), power_w=or_null(NUMBER),
        processes=listed(shape("", pid=COUNT, memory_bytes=or_null(COUNT))), workers=listed(STRING),
        verdict=STRING, trouble=or_null(ref("Trouble")), fault=or_null(STRING), xids=listed(ref("Xid")),
    ),
    "Xid": shape(
        "an error that the driver reported", code=COUNT, meaning=STRING, action=STRING, count=COUNT, at=MOMENT
    ),
    "Spawn": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "gpu": GPU,
            "count": {"type": "integer", "minimum": 1, "maximum": 256, "default": 1},
            "slots": about("null: WORKER_SLOTS", {"type": ["integer", "null"], "minimum": 1, "maximum": 1024}),
            "wait": about("answer when the workers are ready or have failed", TRUTH | {"default": False}),
        },
    },
    "Key": shape("an API key, without itself", **_KNOWN_KEY),
    "NewKey": shape("an API key, with itself", **_KNOWN_KEY, key=STRING),
    "KeyFields": {"type": "object", "additionalProperties": False, "properties": _KEY},
    "Prune": {
        "type": "object",
        "description": "which workers: those that every given condition names, all of them where none is given",
        "additionalProperties": False,
        "properties": {
            "ids": or_null(listed(STRING)),
            "gpu": GPU,
            "idle": about("only those that answer nothing just now", TRUTH | {"default": False}),
            "force": about("do not let running answers end first", TRUTH | {"default": False}),
            "wait": about("answer when they are gone", TRUTH | {"default": False}),
        },
    },
}  # fmt: skip

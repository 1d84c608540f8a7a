"""Requests as a worker of known speed reads them, and what it says of itself. Pure; standard library only."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from scripts.bench.answers import DATE, Json

VERSION = "0.5.4"
MODEL_BYTES = 253_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has come in whole."""

    method: str
    path: str
    body: bytes


def take_request(came: bytearray) -> Request | None:
    """Take the next request out of what has come, None: it is not whole yet. Raises ValueError for what is none."""
    stop = came.find(b"\r\n\r\n")
    if stop < 0:
        return None
    first, *lines = bytes(came[:stop]).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    start = stop + 4
    if headers.get("transfer-encoding", "").lower() == "chunked":
        found = _dechunked(came, start)
        if found is None:
            return None
        body, end = found
    else:
        end = start + int(headers.get("content-length", 0))
        if len(came) < end:
            return None
        body = bytes(came[start:end])
    del came[:end]
    return Request(method, target.partition("?")[0], body)


def _dechunked(came: bytearray, at: int) -> tuple[bytes, int] | None:
    """Return a chunked body without trailers and where it ends, None: it is not whole yet."""
    parts: list[bytes] = []
    while (stop := came.find(b"\r\n", at)) >= 0:
        size = int(bytes(came[at:stop]).partition(b";")[0], 16)
        end = stop + 2 + size + 2
        if len(came) < end:
            return None
        parts.append(bytes(came[stop + 2 : stop + 2 + size]))
        at = end
        if size == 0:
            return b"".join(parts), at
    return None


def page(path: str, models: Iterable[str], loaded: Collection[str], own: Json) -> tuple[int, Json | bytes]:
    """Return status and body of what is no inference; `own` is what is told that no Ollama tells."""
    details: Json = {"format": "gguf", "family": "bench", "families": ["bench"], "parameter_size": "1M"}
    match path:
        case "/":
            return 200, b"Ollama is running"
        case "/api/version":
            return 200, {"version": VERSION}
        case "/api/tags":
            rows = [{"name": name, "model": name, "modified_at": DATE, "size": MODEL_BYTES, "digest": "0" * 64,
                     "details": details} for name in models]  # fmt: skip
            return 200, {"models": rows}
        case "/api/ps":
            rows = [{"name": name, "model": name, "size": MODEL_BYTES, "size_vram": 0, "digest": "0" * 64,
                     "details": details, "expires_at": "2099-01-01T00:00:00Z"}
                    for name in loaded]  # fmt: skip
            return 200, {"models": rows}
        case "/api/show":
            return 200, {"details": details, "model_info": {}, "capabilities": ["completion"]}
        case "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
        case "/bench":
            return 200, own
    return 404, {"error": f"no {path} here"}

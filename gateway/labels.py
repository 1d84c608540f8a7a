"""Labels of metrics that stay few, whatever clients send. Pure.

A metric keeps a counter for each value that a label ever had, so a value of a client's own choosing would be a way to
fill the memory: each label here is one of a set that the operator made.
"""

from collections.abc import Callable, Collection

from gateway.ollama import FORWARDED, Answerer, full_name

MOST_MODELS = 50
OTHER = "other"


def route_label(who: Answerer, path: str) -> str:
    """Return a route's label: a path that is forwarded, else the word for who answers."""
    return path if path in FORWARDED else who.value


def status_label(status: int) -> str:
    """Return a status's label: a worker may answer any number."""
    return str(status) if 100 <= status <= 599 else "0"


DOOR_REASONS = {
    400: "malformed", 408: "too_slow", 414: "target_too_long", 431: "headers_too_large", 501: "unknown_coding",
    503: "no_place", 505: "unknown_version",
}  # fmt: skip


def door_reason(status: int) -> str:
    """Return why a request was refused at the door, one of few words."""
    return DOOR_REASONS.get(status, OTHER)


_ROUTES = FORWARDED | {
    "/", "/api/version", "/api/tags", "/api/ps", "/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy",
    "/api/delete", "/v1/models",
}  # fmt: skip
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"})


def known_route(path: str) -> str | None:
    """Return a path's route, one of few, or None: a part that names a blob or a model is a placeholder."""
    if path in _ROUTES:
        return path
    if path.startswith("/api/blobs/"):
        return "/api/blobs/{digest}"
    return "/v1/models/{model}" if path.startswith("/v1/models/") else None


def known_method(method: str) -> str:
    """Return a method, `_OTHER` where it is none of HTTP's own (OpenTelemetry's word for it)."""
    return method if method in _METHODS else "_OTHER"


class ModelLabels:
    """The names of models that become labels: at most `most`, each one that `known` once said was there.

    `known` returns the names as Ollama lists them, not as clients write them; it is asked for a new name only.
    """

    def __init__(self, known: Callable[[], Collection[str]] = tuple, most: int = MOST_MODELS) -> None:
        self._known = known
        self._most = most
        self._taken: set[str] = set()

    def of(self, model: str) -> str:
        """Return a model's label, OTHER where it is not known here or there are too many."""
        if model in self._taken:
            return model
        name = full_name(model)
        if name in self._taken:
            return name
        if len(self._taken) < self._most and len(name) <= 256 and name in self._known():
            self._taken.add(name)
            return name
        return OTHER

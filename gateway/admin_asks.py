"""What the admin API is asked, in JSON or in the query, as values; what is not understood is named. Pure."""

import json
from typing import Any, TypeVar

import msgspec

# How much is repeated of what was not understood: a field's name may be as long as its request.
SAID_CHARACTERS = 300


class NotUnderstood(Exception):
    """The operator's request has not the form that it must have; the text says where."""


class SpawnAsk(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /admin/instances/spawn takes."""

    gpu: int | str | None = None
    count: int = 1
    slots: int | None = None
    wait: bool = False


class PruneAsk(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /admin/instances/prune takes."""

    ids: list[str] | None = None
    gpu: int | str | None = None
    idle: bool = False
    force: bool = False
    wait: bool = False


class TraefikAsk(msgspec.Struct, forbid_unknown_fields=True):
    """What GET /admin/traefik takes. `entrypoints`: names of Traefik's, separated by commas."""

    entrypoints: str = ""
    resolver: str | None = None
    tls: bool = False


Asked = TypeVar("Asked", bound=msgspec.Struct)


def understood(kind: type[Asked], query: dict[str, str], body: bytes | str) -> Asked:
    """Return what was asked, in JSON or in the query. Raises NotUnderstood that names the field."""
    fields: dict[str, Any] = dict(query)
    if body.strip():
        try:
            value = json.loads(body)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # \ud800 alone: nothing that could be written or kept
            raise NotUnderstood("the body has half a character (a lone surrogate)") from error
        except (ValueError, RecursionError) as error:
            raise NotUnderstood(f"the body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise NotUnderstood("the body must be a JSON object")
        fields |= value
    if isinstance(fields.get("ids"), str):
        fields["ids"] = [part for part in fields["ids"].split(",") if part]
    try:
        return msgspec.convert(fields, type=kind, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(kind.__struct_fields__)
        raise NotUnderstood(f"not understood: {str(error)[:SAID_CHARACTERS]}; fields: {names}") from error


def truth(text: str | None) -> bool:
    """Read a switch of a query; one without a value is on."""
    return text is not None and text.lower() in ("1", "true", "yes", "on", "")


def line_count(text: str) -> int:
    """Read how many lines of a log are asked for. Raises NotUnderstood."""
    if not text.isdecimal() or len(text) > 6 or int(text) > 100_000:
        raise NotUnderstood(f"n is {text[:20]!r}; it must be a number of lines, at most 100000")
    return int(text)

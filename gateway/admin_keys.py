"""The admin API's calls for API keys, below /admin/keys. gateway.admin checks who asks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from quart import Blueprint, Response, request

from gateway.admin import answered
from gateway.admin_asks import NotUnderstood, understood
from gateway.database import DatabaseFault
from gateway.keyring import Keyring, UnknownKey
from gateway.keys import MOST_PRIORITY
from gateway.limits import Limits

# The largest limit: what a database's integer takes, and nobody needs more.
MOST = 2_000_000_000
NAME_CHARACTERS = 100

_LIMITS = Limits.__slots__


class KeyAsk(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /admin/keys and PATCH /admin/keys/{id} take; a limit of null is none."""

    name: Any = msgspec.UNSET
    concurrency: Any = msgspec.UNSET
    requests_per_minute: Any = msgspec.UNSET
    tokens_per_minute: Any = msgspec.UNSET
    priority: Any = msgspec.UNSET
    models: Any = msgspec.UNSET


def read_fields(ask: KeyAsk, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields that were given, as they are kept. Raises NotUnderstood that names every fault there is."""
    fields: dict[str, Any] = {}
    faults = [f"{name} is missing" for name in needed if getattr(ask, name) is msgspec.UNSET]
    for name, read in _READERS.items():
        given = getattr(ask, name)
        if given is msgspec.UNSET:
            continue
        try:
            fields[name] = read(given)
        except ValueError as error:
            faults.append(f"{name} {error}")
    if faults:
        raise NotUnderstood("not understood: " + "; ".join(faults))
    return fields


def _name(given: object) -> str:
    text = given.strip() if isinstance(given, str) else ""
    if not text or len(text) > NAME_CHARACTERS or not text.isprintable():
        raise ValueError(f"must be a line of 1 to {NAME_CHARACTERS} characters")
    return text


def _whole(given: object) -> int | None:
    """Return a whole number, from JSON or from a query; None when it is none."""
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) < 20:
        return int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _limit(given: object) -> int | None:
    if given is None or given in ("none", "null"):
        return None
    number = _whole(given)
    if number is None or not 1 <= number <= MOST:
        raise ValueError(f"must be a whole number, 1 to {MOST}, or null for no limit")
    return number


def _priority(given: object) -> int:
    number = _whole(given)
    if number is None or not 0 <= number <= MOST_PRIORITY:
        raise ValueError(f"must be a whole number, 0 to {MOST_PRIORITY}")
    return number


def _truth(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if given in ("1", "true", "0", "false"):
        return given in ("1", "true")
    raise ValueError("must be true or false")


_READERS: Mapping[str, Callable[[object], Any]] = {
    "name": _name, **dict.fromkeys(_LIMITS, _limit), "priority": _priority, "models": _truth,
}  # fmt: skip


def make_key_pages(keyring: Keyring) -> Blueprint:
    """Return the blueprint, to be registered on that of /admin."""
    pages = Blueprint("keys", __name__, url_prefix="/keys")

    async def asked(*needed: str) -> tuple[dict[str, Any], dict[str, int | None]]:
        """Return what was asked for: the limits apart."""
        ask = understood(KeyAsk, request.args.to_dict(), await request.get_data(as_text=False))
        fields = read_fields(ask, needed)
        limits = {name: fields.pop(name) for name in _LIMITS if name in fields}
        return fields, limits

    @pages.errorhandler(UnknownKey)
    async def unknown(error: UnknownKey) -> Response:
        return answered({"error": str(error)}, 404)

    @pages.errorhandler(DatabaseFault)
    async def away(error: DatabaseFault) -> Response:
        return answered({"error": f"nothing was changed: {error}"}, 503)

    @pages.get("")
    async def keys() -> Response:
        return answered({"keys": keyring.rows(), "required": keyring.required})

    @pages.post("")
    async def create() -> Response:
        fields, limits = await asked("name")
        secret, row = await keyring.create(
            fields["name"], Limits(**limits), priority=fields.get("priority", 0), models=fields.get("models", False)
        )
        answer = answered({"key": secret, **row}, 201)
        answer.headers["Cache-Control"] = "no-store"  # it is shown this once
        return answer

    @pages.get("/<key_id>")
    async def key(key_id: str) -> Response:
        return answered(keyring.row(key_id))

    @pages.patch("/<key_id>")
    async def change(key_id: str) -> Response:
        fields, limits = await asked()
        return answered(await keyring.change(key_id, limits=limits, **fields))

    @pages.delete("/<key_id>")
    async def revoke(key_id: str) -> Response:
        await keyring.revoke(key_id)
        return answered({"revoked": key_id})

    return pages

"""Host names in settings: TRAEFIK_API_DOMAIN and TRAEFIK_FRONTEND_DOMAIN. Pure."""

import re
from collections.abc import Sequence

# RFC 1123, 2.1. As many bytes as fit on the wire (RFC 1035, 2.3.4).
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME_BYTES = 253


def domains(value: object) -> object:
    """Read a comma list of host names, in lower case, each once. Raises ValueError that names all that are none."""
    if not isinstance(value, str):
        return value
    names = [name.strip().lower().removesuffix(".") for name in value.split(",") if name.strip()]
    faults = [f"{name!r} {fault}" for name in dict.fromkeys(names) if (fault := _fault(name))]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(dict.fromkeys(names))


def _fault(name: str) -> str | None:
    labels = name.split(".")
    if labels[-1].isdigit():
        return "is an address; at its address the gateway always answers as the API"
    if len(name) <= _NAME_BYTES and all(_LABEL.fullmatch(label) for label in labels):
        return None
    hint = ": write it without https://, port and path" if "/" in name or ":" in name else ""
    hint = hint if name.isascii() else ": write it in ASCII (xn--…)"
    return f"is not a host name such as api.example.org{hint}"


def in_both(api: Sequence[str], page: Sequence[str]) -> list[str]:
    """Return a fault for each name that is to lead to the API and to the page."""
    both = [name for name in page if name in api]
    return [
        f"TRAEFIK_FRONTEND_DOMAIN: {name} is in TRAEFIK_API_DOMAIN too; each needs names of its own" for name in both
    ]

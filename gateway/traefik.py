"""What Traefik is told by GET /admin/traefik (its HTTP provider): which names lead to Chimera, and how. Pure.

The form is that of Traefik's dynamic configuration (its file provider's, versions 2.4 and 3). No section may be empty:
Traefik then refuses the whole document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Domains:
    """The names that lead to Chimera: to the API (TRAEFIK_API_DOMAIN), and to the page (TRAEFIK_FRONTEND_DOMAIN)."""

    api: tuple[str, ...] = ()
    page: tuple[str, ...] = ()


NO_DOMAINS = Domains()
# Below gateway.stream's KEEP_ALIVE_S: who closes first must be Traefik, or a request may meet a connection that ends.
IDLE_S = 60
# Of the process, not of the workers (/readyz): what is refused while none is ready is refused with a reason.
HEALTH_PATH = "/healthz"
# What is not for those who come by the names.
INSIDE = ("/admin", "/metrics")

_NAME = "chimera"


def traefik_document(
    domains: Domains, url: str, *, entry_points: Sequence[str] = (), resolver: str | None = None, tls: bool = False,
) -> Json:  # fmt: skip
    """Return the dynamic configuration: a router and a service for the API, and for the page, where it has names.

    `url` is where Traefik reaches both: the gateway tells them apart by name. `entry_points`: Traefik's names of those
    that they are reached by, none: by all. `tls`: those speak TLS, `resolver` (Traefik's name of it) gets their
    certificates. Empty when there is no name at all.
    """
    more: Json = {"entryPoints": list(entry_points)} if entry_points else {}
    if tls or resolver:
        more["tls"] = {"certResolver": resolver} if resolver else {}
    routers: Json = {}
    services: Json = {}
    closed = "".join(f" && !PathPrefix(`{path}`)" for path in INSIDE)
    for name, names, rest in ((f"{_NAME}-api", domains.api, closed), (f"{_NAME}-page", domains.page, "")):
        if names:
            rule = " || ".join(f"Host(`{domain}`)" for domain in names)
            routers[name] = {"rule": f"({rule}){rest}", "service": name, "middlewares": [_NAME], **more}
            services[name] = {"loadBalancer": _balancer(url)}
    if not routers:
        return {}
    return {
        "http": {
            "routers": routers,
            "services": services,
            # An empty value takes a header away. Forwarded is passed on as the client wrote it, and Go's client fails
            # a request that is answered with more than five informational answers.
            "middlewares": {_NAME: {"headers": {"customRequestHeaders": {"Forwarded": "", "X-Chimera-Queue": ""}}}},
            "serversTransports": {
                _NAME: {"forwardingTimeouts": {"dialTimeout": "5s", "idleConnTimeout": f"{IDLE_S}s"}}
            },
        }
    }


def _balancer(url: str) -> Json:
    return {
        "servers": [{"url": url}],
        "passHostHeader": True,
        "serversTransport": _NAME,
        "responseForwarding": {"flushInterval": "-1ms"},  # negative: each part at once
        "healthCheck": {"path": HEALTH_PATH, "interval": "10s", "timeout": "5s"},
    }

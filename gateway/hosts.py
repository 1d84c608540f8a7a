"""Which site a request is for, by the name in its Host (HTTP/2: `:authority`), on the one port. Pure.

Only the page's own names lead to the page. Every other Host is the API's, as it is where no name is set: clients on
this machine say `127.0.0.1:8000`, others an address, a name in their own hosts file, or nothing (HTTP/1.0). That a web
page could reach the API under a name of its own (DNS rebinding) is no matter of routing: without ADMIN_TOKEN the admin
API refuses foreign names (`auth`), and with TLS such a name has no certificate.
"""

from collections.abc import Iterable
from enum import Enum


class Site(Enum):
    """What answers."""

    API = "the API, and all of Chimera's own paths"
    PAGE = "the web page"


def site_of(host: bytes | None, page_names: frozenset[bytes]) -> Site:
    """Return the site that a Host asks for; its port, its case and a dot at its end do not matter (RFC 9110, 4.2.3)."""
    if not host or not page_names:
        return Site.API
    name = host.partition(b":")[0].removesuffix(b".").lower()  # of an address in brackets only a part: no name has one
    return Site.PAGE if name in page_names else Site.API


def names_of(domains: Iterable[str]) -> frozenset[bytes]:
    """Return host names as `site_of` looks for them."""
    return frozenset(domain.encode() for domain in domains)

"""Who may administer. Pure but for the constant-time comparison of the token."""

import hmac
import ipaddress
import socket

from gateway.errors import Told
from gateway.forwarded import Origin, is_loopback
from gateway.headers import Headers, value_of


def is_local_name(host: bytes | None) -> bool:
    """Say whether a Host header names this machine by a name that no web page can have made up (DNS rebinding)."""
    if host is None:
        return True  # HTTP/1.0; browsers always send one
    try:
        ipaddress.ip_address(_name(host))
        return True
    except ValueError:
        return _is_own(_name(host))


def is_local_origin(origin: bytes) -> bool:
    """Say whether an Origin header is of a page of this machine. A foreign site may have an address for a name."""
    name = _name(origin.partition(b"://")[2].partition(b"/")[0])
    return is_loopback(name) or _is_own(name)


def _name(host: bytes) -> str:
    """Return the host of `host:port`, without an address's brackets."""
    text = host.decode("latin1")
    name = text if text.endswith("]") else text.rsplit(":", 1)[0]
    return name.strip("[]").rstrip(".").lower()


def _is_own(name: str) -> bool:
    own = ("localhost", socket.gethostname().lower())
    return name != "" and (name in own or name.endswith(".localhost"))


def refusal(headers: Headers, origin: Origin, token: str | None) -> Told | None:
    """Return why a request may not administer, or None when it may.

    With a token set, the token decides (Authorization: Bearer). Without one only this machine itself may: it comes
    from there (gateway.forwarded), and is not a web page's doing (a foreign Host, a cross-site request). A proxy on
    this machine has a loopback address whoever stands behind it: what it brings is this machine's own only if it is
    trusted and says so.
    """
    if token is not None:
        given = value_of(headers, b"authorization") or b""
        scheme, _, secret = given.partition(b" ")
        # an empty token is nobody's
        if token and scheme.lower() == b"bearer" and hmac.compare_digest(secret.strip(), token.encode()):
            return None
        return Told(401, "the admin API needs Authorization: Bearer ADMIN_TOKEN")
    if not origin.own:
        through = " (it came through a proxy; see TRUSTED_PROXIES)" if is_loopback(origin.address) else ""
        return Told(403, f"the admin API answers this machine only, until ADMIN_TOKEN is set{through}")
    page = value_of(headers, b"origin")
    if page is not None and not is_local_origin(page):
        return Told(403, "the admin API does not answer web pages of other sites")
    if value_of(headers, b"sec-fetch-site") in (b"cross-site", b"same-site"):
        return Told(403, "the admin API does not answer web pages of other sites")
    if not is_local_name(value_of(headers, b"host")):
        return Told(403, "the admin API needs a local Host (such as 127.0.0.1), until ADMIN_TOKEN is set")
    return None

"""Where a request comes from: the peer of its connection, or whom a trusted proxy speaks for. Pure.

Anybody may send Forwarded (RFC 7239) and X-Forwarded-For; they count only in the mouth of a proxy that the operator
trusts (TRUSTED_PROXIES). Each proxy adds at the end whom it was asked by, and cannot know whether what stood there
before is true (RFC 7239, 8.1). So they are read from the end, past those that are trusted too, and the first that is
not is the client (as with nginx's real_ip_recursive). What is malformed, `unknown` or hidden (RFC 7239, 6) ends the
reading: the client is then the last proxy that is known. Several lines of a header are one list (RFC 9110, 5.3).

Most proxies write one of the two headers and pass the other on as the client wrote it, and nobody can see which. Where
both are there, they count only if they name the same client; else the request is the proxy's own, as if it said nobody.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gateway.headers import Headers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# How many proxies one behind the other are looked through.
MOST_PROXIES = 32

_X_FORWARDED_FOR = b"x-forwarded-for"
_FORWARDED = b"forwarded"
# Sent by proxies, and by nobody else on purpose (RFC 9110, 7.6.3, and habit).
_PROXIES_SEND = frozenset(
    {
        _FORWARDED, _X_FORWARDED_FOR, b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-forwarded-server", b"x-real-ip", b"via",
    }
)  # fmt: skip

# RFC 7239, 4. Nothing is tried twice (the possessive +): a header of 60,000 blanks must not cost their square.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_PAIR = re.compile(rf"[ \t]*+(?:({_WORD})=(?:({_WORD})|({_QUOTED})))?[ \t]*+([;,]|\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# RFC 7239, 6: an address and perhaps a port, which may be hidden. IPv6 is in brackets in both headers where a port
# follows; X-Forwarded-For has it bare too.
_NODE = re.compile(
    r"(?:\[([0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,44})\]|([0-9.]{7,15}))(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]+))?"
)
_BARE = re.compile(r"[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: the client's address.

    `own`: from this machine itself, for all that can be known: the peer, the client and every proxy between them are
    on loopback. Another machine's proxy that names a loopback address means its own.
    """

    address: str
    own: bool


def is_loopback(address: str | None) -> bool:
    """Say whether a peer's address is this machine's own."""
    found = None if address is None else _address(address)
    return found is not None and found.is_loopback


@lru_cache(maxsize=1024)  # the same few proxies, and their clients, in each of many requests
def _address(text: str) -> Address | None:
    """Return the address that a text is, without its zone; an IPv4 address that is written as IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def node_address(text: str) -> Address | None:
    """Return the address of a node as proxies write it, with or without a port; None: it is none, or hidden."""
    node = _NODE.fullmatch(text)
    if node is not None:
        return _address(node[1] or node[2])
    return _address(text) if _BARE.fullmatch(text) else None


def x_forwarded_for(text: str) -> list[str | None]:
    """Return the last MOST_PROXIES nodes of an X-Forwarded-For, and before them what is left of it."""
    return [part.strip(" \t") for part in text.rsplit(",", MOST_PROXIES)]


def forwarded(text: str) -> list[str | None]:
    """Return the node in `for` of each element of a Forwarded; None: there is none, or more than one.

    The whole is one None if it is not of the form that RFC 7239, 4, has: where its elements end cannot be known then.
    """
    nodes: list[str | None] = []
    given: list[str] = []
    empty = True
    at, end = 0, ","
    while end:
        pair = _PAIR.match(text, at)
        if pair is None:
            return [None]
        name, token, quoted, end = pair.groups()
        if name is not None:
            empty = False
            if name.lower() == "for":
                given.append(token if quoted is None else _ESCAPED.sub(r"\1", quoted[1:-1]))
        if end != ";" and not empty:
            nodes.append(given[0] if len(given) == 1 else None)
            given, empty = [], True
        at = pair.end()
    return nodes


def _sent(headers: Headers) -> set[bytes]:
    """Return which of the headers that only proxies send are there."""
    return {name for name, _ in headers} & _PROXIES_SEND


class TrustedProxies:
    """The proxies whose word counts (TRUSTED_PROXIES). They may change while connections are open."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """`networks` are addresses and networks. Raises ValueError."""
        self.networks: tuple[Network, ...] = ()
        self.settle(networks)

    def settle(self, networks: Iterable[str]) -> None:
        """Let others count, from the next request on. Raises ValueError."""
        self.networks = tuple(ipaddress.ip_network(network) for network in networks)

    def trusts(self, peer: str) -> bool:
        """Say whether a peer is one of them."""
        address = _address(peer)
        return address is not None and self._has(address)

    def _has(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def origin(self, peer: str, headers: Headers) -> Origin:
        """Return where a request of a peer comes from."""
        if self.trusts(peer):
            return self.origin_behind(peer, headers)
        return Origin(peer, own=is_loopback(peer) and not _sent(headers))

    def origin_behind(self, peer: str, headers: Headers) -> Origin:
        """Return where a request comes from of a peer that is trusted."""
        sent = _sent(headers)
        if not sent:
            return Origin(peer, own=is_loopback(peer))
        said = [
            self._behind(peer, parse(b",".join(value for key, value in headers if key == name).decode("latin1")))
            for name, parse in ((_X_FORWARDED_FOR, x_forwarded_for), (_FORWARDED, forwarded))
            if name in sent
        ]
        return said[0] if said and said.count(said[0]) == len(said) else Origin(peer, own=False)

    def _behind(self, peer: str, nodes: Sequence[str | None]) -> Origin:
        """Return the client that a trusted peer names."""
        known, own = peer, is_loopback(peer)
        for node in reversed(nodes[-MOST_PROXIES:]):
            address = None if node is None else node_address(node)
            if address is None:
                return Origin(known, own=False)
            known, own = str(address), own and address.is_loopback
            if not self._has(address):
                return Origin(known, own)
        return Origin(known, own and 0 < len(nodes) <= MOST_PROXIES)


class Caller:
    """Whom the requests of one connection come from. Whether its peer is trusted is found out once, and again when
    the trusted proxies have changed.
    """

    __slots__ = ("_networks", "_peer", "_proxies", "_trusted")

    def __init__(self, peer: str, proxies: TrustedProxies) -> None:
        self._peer = peer
        self._proxies = proxies
        self._networks: tuple[Network, ...] = ()
        self._trusted = False

    def of(self, headers: Headers) -> str:
        """Return the client's address for one request."""
        if self._networks is not self._proxies.networks:
            self._networks = self._proxies.networks
            self._trusted = self._proxies.trusts(self._peer)
        return self._proxies.origin_behind(self._peer, headers).address if self._trusted else self._peer

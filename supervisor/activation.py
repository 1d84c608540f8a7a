"""Socket activation (sd_listen_fds(3)): listening sockets that the service manager holds and hands to us.

They stay open while Chimera restarts: who connects meanwhile waits in the backlog instead of being refused.
"""

import os
import socket
from collections.abc import Iterable, Mapping

from supervisor.errors import BadConfiguration

FIRST_DESCRIPTOR = 3
FIX = "run `sudo chimera units --write`, which makes chimera.socket fit the settings"


def handed_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were handed to this very process; none where there is no service manager.

    Children do not inherit them. Call it once: each call makes new socket objects of the same descriptors.
    """
    count, pid = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID", "")
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    sockets: list[socket.socket] = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        sockets.append(socket.socket(fileno=descriptor))
    return sockets


def addresses_of(host: str, port: int) -> list[tuple[str, int]]:
    """Return every address that GATEWAY_HOST and GATEWAY_PORT mean, in the resolver's order. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((str(address[0]), int(address[1])) for *_, address in found))


def check_handed(sockets: Iterable[socket.socket], host: str, port: int) -> None:
    """Raise BadConfiguration unless the handed sockets listen where the settings say, and nowhere else.

    To listen where the settings say and leave the handed ones alone would not do: who connects to those would wait
    for ever.
    """
    there = [sock.getsockname()[:2] for sock in sockets if sock.family in (socket.AF_INET, socket.AF_INET6)]
    try:
        wanted = addresses_of(host, port)
    except OSError as error:
        raise BadConfiguration([f"GATEWAY_HOST: {host!r} is no address here: {error.strerror}"]) from error
    if there and set(there) <= set(wanted):
        return
    shown = ", ".join(f"{address}:{number}" for address, number in there) or "no address"
    raise BadConfiguration([f"GATEWAY_PORT: it is {host}:{port}, but chimera.socket listens on {shown}; {FIX}"])

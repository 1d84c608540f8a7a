"""Who has which port: those that workers are given, those that are free, and who listens on one."""

import socket
from collections.abc import Iterable
from typing import Any

import psutil
import trio

from supervisor.errors import StartFailed


class PortBook:
    """Which ports workers have. A worker keeps its port over restarts unless somebody else has taken it."""

    def __init__(self, base: int, count: int) -> None:
        self._ports = range(base, base + count)
        self._taken: set[int] = set()

    def take(self, preferred: int | None) -> int:
        """Return a free port, `preferred` if it is still free. Raises StartFailed when there is none."""
        candidates: list[int] = [*([preferred] if preferred else []), *self._ports]
        for port in candidates:
            if port not in self._taken and port_is_free(port):
                self._taken.add(port)
                return port
        raise StartFailed(f"every port from {self._ports[0]} to {self._ports[-1]} is taken (WORKER_PORT_BASE)")

    def give_back(self, port: int) -> None:
        """Let others have the port."""
        self._taken.discard(port)


async def owns_port(pid: int, port: int) -> bool:
    """Say whether this very process listens on `port`.

    A good answer on a port is no proof that the child gave it: another Ollama may hold the port while the
    child, refused, is about to exit.
    """

    return await trio.to_thread.run_sync(listens, pid, port)


def listens(pid: int, port: int) -> bool:
    """Say whether a process listens on `port`. Blocks some milliseconds."""
    try:
        return port in _listening(psutil.Process(pid).net_connections("tcp"))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether a server could listen there now. SO_REUSEADDR as Go sets it: TIME_WAIT does not count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True


def port_holder(port: int) -> str:
    """Return who listens on a port, for people: `process 123 (ollama)`, or `another process`."""
    try:
        pid = _listening(psutil.net_connections("tcp")).get(port)
        return f"process {pid} ({psutil.Process(pid).name()})" if pid else "another process"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return "another process"


def _listening(connections: Iterable[Any]) -> dict[int, int | None]:
    """Return the ports listened on, with the process where it is known."""
    return {c.laddr.port: getattr(c, "pid", None) for c in connections if c.status == psutil.CONN_LISTEN}

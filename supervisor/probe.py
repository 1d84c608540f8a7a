"""What a worker says when asked: HTTP on loopback, and who owns its port."""

import socket
from collections.abc import Iterable
from typing import Any

import httpx
import psutil
import trio

from supervisor.errors import StartFailed

PROBE_TIMEOUT_S = 5.0


class Prober:
    """Asks workers by port. One for the whole supervisor; close it with `aclose`."""

    def __init__(self) -> None:
        # trust_env off: a proxy from the environment must never stand between Chimera and its own workers
        self._client = httpx.AsyncClient(
            trust_env=False, timeout=PROBE_TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def version(self, port: int) -> str | None:
        """Return the version of the Ollama on `port`, or None when it gives no good answer in time."""
        try:
            return str((await self._json(port, "/api/version"))["version"])
        except (KeyError, TypeError):
            return None

    async def models(self, port: int) -> frozenset[str] | None:
        """Return the names of the models loaded on `port`, or None when it gives no good answer in time."""
        return await self._names(port, "/api/ps")

    async def stored(self, port: int) -> frozenset[str] | None:
        """Return the names of the models in the store, or None when the primary gives no good answer in time."""
        return await self._names(port, "/api/tags")

    async def _names(self, port: int, path: str) -> frozenset[str] | None:
        try:
            return frozenset(str(model["name"]) for model in (await self._json(port, path))["models"] or [])
        except (KeyError, TypeError):
            return None

    async def _json(self, port: int, path: str) -> Any:
        """Return what was answered, None when that was nothing good in time."""
        with trio.move_on_after(PROBE_TIMEOUT_S):  # httpx's own timeout begins anew with every byte
            try:
                answer = await self._client.get(f"http://127.0.0.1:{port}{path}")
                return answer.json() if answer.status_code == 200 else None
            except (httpx.HTTPError, ValueError):  # ValueError: neither JSON nor text
                return None
        return None

    async def load(self, port: int, model: str, timeout_s: float) -> None:
        """Load a model; returns when it is loaded.

        Raises StartFailed with Ollama's own reason. A model that only embeds refuses /api/generate with 400: it
        is loaded by an embedding of nothing.
        """
        reason = ""
        for path, body in (("/api/generate", {"model": model}), ("/api/embed", {"model": model, "input": ""})):
            try:
                answer = await self._client.post(f"http://127.0.0.1:{port}{path}", json=body, timeout=timeout_s)
            except httpx.TimeoutException as error:
                raise StartFailed(f"{model} was not loaded within {timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise StartFailed(
                    f"it went away while loading {model}: {str(error) or type(error).__name__}"
                ) from error
            if answer.status_code == 200:
                return
            reason = reason or answer.text.strip()[:300]
            if answer.status_code != 400:
                break
        raise StartFailed(f"{model} cannot be loaded: {reason}")


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

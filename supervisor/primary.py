"""The primary: the one worker that owns the model store. It never infers, and its port is a setting."""

from dataclasses import replace

import trio

from supervisor.command import PRIMARY
from supervisor.errors import StartFailed
from supervisor.house import House, WorkerSpec
from supervisor.placement import CPU
from supervisor.ports import PortBook, port_holder
from supervisor.worker import Worker


def make_primary(house: House) -> Worker:
    """Return the primary. Its house is a copy: a reload gives it the new settings too."""
    ports = OnePort(house.settings.ollama_port)
    return Worker(WorkerSpec(PRIMARY, CPU, 1), replace(house, leases=NoLeases(), ports=ports, store=None))


class NoLeases:
    """The primary's side of `Leases`: it never infers, so nobody ever waits for it."""

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        """Nobody to tell."""

    def worker_lost(self, worker_id: str) -> None:
        """Nobody to tell."""

    def cordon(self, worker_id: str) -> None:
        """Nobody to tell."""

    def uncordon(self, worker_id: str) -> None:
        """Nobody to tell."""

    def avoid(self, worker_id: str, *, avoided: bool) -> None:
        """Nobody to tell."""

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """Nobody to tell."""

    def inflight(self, worker_id: str) -> int:
        """None, ever."""
        return 0

    def progress_at(self, worker_id: str) -> float | None:
        """Never."""
        return None

    def idle_since(self, worker_id: str) -> float | None:
        """Not a worker in service."""
        return None

    async def wait_drained(self, worker_id: str) -> None:
        """It is."""
        await trio.lowlevel.checkpoint()


class OnePort(PortBook):
    """The primary's port: the one of OLLAMA_PORT or none, since users' own tools may know it."""

    def __init__(self, port: int) -> None:
        super().__init__(port, 1)

    def take(self, preferred: int | None) -> int:
        """Return the port. Raises StartFailed that says who holds it."""
        try:
            return super().take(preferred)
        except StartFailed:
            port = self._ports[0]
            raise StartFailed(f"port {port} (OLLAMA_PORT) is held by {port_holder(port)}") from None

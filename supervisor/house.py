"""What every worker of one supervisor shares, and the small words between a worker and the rest of the house."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from supervisor.cgroup import Cgroups
from supervisor.config import Settings
from supervisor.events import EventLog
from supervisor.gpu import GpuReading
from supervisor.placement import Placement
from supervisor.ports import PortBook
from supervisor.probe import Prober
from supervisor.restart import RestartBudget
from supervisor.store import ModelStore
from supervisor.usage import Usage


class Leases(Protocol):
    """What the supervisor tells and asks the dispatcher. Plain calls: "lost" and "no lease goes there" are one step."""

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        """Leases may go to the worker from now on (once uncordoned, if `cordoned`).

        It is a new process, whatever was known of an older one; nobody avoids it yet.
        """

    def worker_lost(self, worker_id: str) -> None:
        """No lease goes to the worker any more, and those it has are void."""

    def cordon(self, worker_id: str) -> None:
        """No new lease goes to the worker; those it has go on."""

    def uncordon(self, worker_id: str) -> None:
        """Leases may go to the worker again."""

    def avoid(self, worker_id: str, *, avoided: bool) -> None:
        """While avoided, the worker gets a lease only when no other worker could ever take it."""

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        """These models are loaded there now."""

    def inflight(self, worker_id: str) -> int:
        """How many leases the worker has."""
        ...

    def progress_at(self, worker_id: str) -> float | None:
        """When the last byte of an answer came from this life of the worker (trio's clock), None if never."""
        ...

    def idle_since(self, worker_id: str) -> float | None:
        """Since when the worker has no lease (trio's clock); None while it has one, or is not in service."""
        ...

    async def wait_drained(self, worker_id: str) -> None:
        """Return when the worker has no lease."""


class Gpus(Protocol):
    """What a worker asks about GPUs. Plain calls: the newest reading, never a call into the driver."""

    def problem(self, placement: Placement) -> str | None:
        """Return why a worker cannot be placed there now, or None."""
        ...

    @property
    def reading(self) -> GpuReading:
        """All GPUs as they were last read."""
        ...

    @property
    def quarantined(self) -> frozenset[str]:
        """The GPUs that take no worker, by UUID."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What makes one worker different from another.

    `pinned`: the operator named its place. A worker that is not may be moved to another GPU when its own is
    quarantined.
    """

    id: str
    placement: Placement
    slots: int
    pinned: bool = True


@dataclass(slots=True)
class House:
    """What every worker of one supervisor shares. Only a reload changes it, and of it only the settings."""

    settings: Settings
    ollama: Path
    environ: Mapping[str, str]
    prober: Prober
    leases: Leases
    events: EventLog
    ports: PortBook
    store: ModelStore | None
    gpus: Gpus
    usage: Callable[[str], Usage | None]
    fleet_size: Callable[[], int]
    random_unit: Callable[[], float]
    budget: RestartBudget = field(default_factory=RestartBudget)
    cgroups: Cgroups | None = None
    pdeathsig: bool = True

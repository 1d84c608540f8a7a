"""One process of one worker as those see it who look after it: what they may ask of it, and where they tell."""

from collections.abc import Callable
from dataclasses import dataclass

from supervisor.house import House, WorkerSpec
from supervisor.oom import OomMark
from supervisor.process import WorkerProcess
from supervisor.store import full_name
from supervisor.usage import Usage


@dataclass(frozen=True, slots=True)
class Watched:
    """A process, the worker that it is of, and the house; `oom_mark` was taken before it was started.

    `serving` says whether leases may be under way. `recycle` has the worker restart when its leases have ended, which
    is no failure. `holds` is told which models it has loaded.
    """

    spec: WorkerSpec
    house: House
    process: WorkerProcess
    port: int
    oom_mark: OomMark
    serving: Callable[[], bool]
    recycle: Callable[[str], None]
    holds: Callable[[frozenset[str]], None]

    def usage(self) -> Usage | None:
        """Return what is measured of this very process, None while there is nothing yet."""
        usage = self.house.usage(self.spec.id)
        return usage if usage is not None and usage.leader == self.process.pid else None

    def progress_at(self) -> float | None:
        """Return when the last byte of an answer came from it."""
        return self.house.leases.progress_at(self.spec.id)

    def idle_since(self) -> float | None:
        """Return since when it has no lease, None while it has one or is not in service."""
        return self.house.leases.idle_since(self.spec.id)

    def required(self) -> str | None:
        """Return the model that is to be loaded, by the name that Ollama lists, None where none is asked for."""
        first = self.house.settings.required_models[:1]
        return full_name(first[0]) if first else None

    def record(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Tell what happened to the worker."""
        self.house.events.record(event, level=level, worker=self.spec.id, **fields)

"""The supervisor's parts, wired to each other and started in their order. It knows nothing of the gateway.

Up: GPUs and their events, what was quarantined, the meter, the primary, the model store, the fleet, and those who
keep order: logs, strays. They end in reverse order when the stack that they are started on unwinds.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol

import structlog

from supervisor.alongside import alongside
from supervisor.cgroup import Cgroups
from supervisor.change import Plan, Reach
from supervisor.config import WORKER_PORTS, Settings
from supervisor.config_text import workers_text
from supervisor.errors import SupervisorError
from supervisor.events import EventLog
from supervisor.fleet import Fleet, FleetSize
from supervisor.gpu import GpuReader, watch_gpus
from supervisor.gpu_events import watch_events
from supervisor.house import House, Leases
from supervisor.locate import Ollama
from supervisor.log_keeper import LogKeeper
from supervisor.news import News
from supervisor.operator import Operator
from supervisor.placement import Placement, wanted_fleet
from supervisor.ports import PortBook
from supervisor.primary import make_primary
from supervisor.probe import Prober
from supervisor.store import ModelStore, full_name
from supervisor.strays import end_strays
from supervisor.usage import UsageMeter
from supervisor.wanted import QuarantineFile, WantedFile
from supervisor.ward import Ward

log = structlog.get_logger("chimera")

# Two small models answer two people at once; one worker would show nothing of what a fleet is for.
EMBEDDED_CPU_WORKERS = 2


class Dispatcher(Leases, FleetSize, Protocol):
    """Who gives the workers' leases away: told of workers, and of how many are wanted."""


class Supervision:
    """All parts; each is to be read freely. Nothing runs before `begin`."""

    def __init__(
        self, settings: Settings, ollama: Ollama, environ: Mapping[str, str], dispatcher: Dispatcher, events: EventLog,
        random_unit: Callable[[], float], cgroups: Cgroups | None,
    ) -> None:  # fmt: skip
        self._ollama = ollama
        self._events = events
        self._prober = Prober()
        self._meter = UsageMeter()
        self._models_changed = News()
        recipes = {ollama.embedded.model: ollama.embedded.modelfile} if ollama.embedded else {}
        self.store = ModelStore(self._prober, settings.ollama_port, ollama.path, recipes, events)
        self._ward = Ward(events, QuarantineFile(settings.state_dir, events))
        self.house = House(
            settings, ollama.path, environ, self._prober, dispatcher, events,
            PortBook(settings.worker_port_base, WORKER_PORTS), self.store, self._ward, self._meter.latest_of,
            lambda: len(self.fleet.workers), random_unit, cgroups=cgroups,
        )  # fmt: skip
        self.primary = make_primary(self.house)
        wanted = WantedFile(settings.state_dir, workers_text(settings.workers), events)
        self.fleet = Fleet(self.house, dispatcher, wanted)
        self._ward.admit(self.fleet)
        self.operator = Operator(self.fleet, self.primary, self.store, self._meter, events, self._ward)

    async def begin(self, stack: AsyncExitStack) -> None:
        """Start every task; returns when the GPUs have been read and the fleet's tasks are there."""
        settings, ward = self.house.settings, self._ward
        stack.push_async_callback(self._prober.aclose)
        reader = GpuReader()
        stack.push_async_callback(reader.close)
        await stack.enter_async_context(alongside(partial(watch_gpus, reader, ward.publish), started=True))
        hearing = partial(watch_events, ward.happened, letting_go=reader.letting_go)
        await stack.enter_async_context(alongside(hearing, started=True))
        ward.restore()
        await stack.enter_async_context(alongside(self._meter.watch, self._leaders))
        await stack.enter_async_context(alongside(self.primary.run))
        await stack.enter_async_context(alongside(self._keep_models))
        await stack.enter_async_context(alongside(self.fleet.run, self._placements(settings), started=True))
        keeper = LogKeeper(
            settings.log_dir, lambda: frozenset(self.fleet.workers), lambda: self.house.settings.log_max_bytes
        )
        await stack.enter_async_context(alongside(keeper.run))
        ending = partial(end_strays, lambda: ward.reading, self._known_pids, settings.state_dir, self._events)
        await stack.enter_async_context(alongside(ending))

    def take(self, change: Plan) -> None:
        """Let new settings count. A plain call. Raises a SupervisorError, and then nothing has changed."""
        before, now = self.house.settings, change.settings
        self._settle(now)
        if change.names(Reach.FLEET):
            try:
                self.fleet.refit(self._placements(now), workers_text(now.workers))
            except SupervisorError:
                self._settle(before)
                raise
        if now.worker_slots != before.worker_slots:
            self.fleet.resize(before.worker_slots, now.worker_slots)
        if now.required_models != before.required_models:
            self.store.require_anew()
            self._models_changed.tell()

    def models_here(self) -> set[str]:
        """Return the models that there are for sure, as Ollama lists them: the required ones, what workers hold."""
        held = (worker.models for worker in self.fleet.workers.values())
        return {full_name(model) for model in self.house.settings.required_models}.union(*held)

    def _settle(self, settings: Settings) -> None:
        self.house.settings = self.primary.house.settings = settings

    def _placements(self, settings: Settings) -> list[Placement]:
        """Return where WORKERS wants a worker each; what of it cannot be had is logged, and kept for the operator."""
        cpu_workers = EMBEDDED_CPU_WORKERS if self._ollama.embedded else 1
        placements, faults = wanted_fleet(settings.workers, self._ward.reading.gpus, cpu_workers)
        for fault in faults:
            log.error(fault)
        self.fleet.unplaced = tuple(faults)
        return placements

    async def _keep_models(self) -> None:
        """Have the store bring in the required models, anew whenever other ones are required."""
        await self.primary.wait_ready()
        while True:
            async with alongside(self.store.keep, self.house.settings.required_models, self.house.random_unit):
                await self._models_changed.wait()

    def _known_pids(self) -> frozenset[int]:
        return frozenset().union(*(usage.pids for usage in self._meter.latest.values()))

    def _leaders(self) -> dict[str, int]:
        workers = [self.primary, *self.fleet.workers.values()]
        return {worker.spec.id: worker.process.pid for worker in workers if worker.process}

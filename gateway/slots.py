"""Tickets, leases and the slots of one worker's life: what the dispatcher decides about. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from gateway.affinity import NO_PREFIX, Kept, Life, Prefix
from gateway.breaker import Breaker


class Ticket(msgspec.Struct, eq=False):
    """A request waiting for a slot. `excluded` are the lives of workers that it has tried.

    `caller` is whom it is to be fair to, `prefix` how its prompt begins, `load_options` what it wants its model loaded
    with, `priority` what lets it pass others, `body_bytes` what is held for it while it waits, `most_tokens` how long
    its answer may become (None: as long as the model likes). It stands by `turn`,
    then by `number`; `passed` counts those that were served before it though they stood behind it. `displaced`: it
    had to leave the full queue for a caller that had less in it.
    """

    model: str | None
    caller: str = ""
    prefix: Prefix = NO_PREFIX
    load_options: str = ""
    priority: int = 0
    body_bytes: int = 0
    most_tokens: int | None = None
    number: int = 0
    turn: float = 0.0
    passed: int = 0
    excluded: frozenset[Life] = frozenset()
    lease: "Lease | None" = None
    waiting: bool = False
    displaced: bool = False

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands among those that wait."""
        return (self.turn, self.number)


class Lease(msgspec.Struct, frozen=True, eq=False):
    """A granted slot. `worker` is the life that it belongs to, also when a newer one has the same id by now."""

    worker: "WorkerSlots"
    model: str | None
    kept: Kept

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self.worker.id

    @property
    def port(self) -> int:
        """Where the worker listens."""
        return self.worker.port

    @property
    def life(self) -> Life:
        """The life of the worker that the slot belongs to."""
        return self.worker.life


@dataclass(slots=True, eq=False)
class WorkerSlots:
    """One life of a ready worker as the dispatcher sees it.

    `loaded` is what it has loaded as far as is known, `polled` what it said itself when it was last asked, `room` how
    many models it seems to hold at once (None: not known). `cooled` are models that it could not load, each until
    when it is passed over for them. The times are trio's clock, written by who has one: `ready_at` names the life to
    the supervisor, `progress_at` is when the last byte of an answer came, `idle_since` when its last lease ended (or
    it became ready).
    """

    id: str
    generation: int
    port: int
    slots: int
    loaded: frozenset[str]
    cordoned: bool = False
    avoided: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    cooled: dict[str | None, float] = field(default_factory=dict)
    leases: set[Lease] = field(default_factory=set)
    polled: frozenset[str] = frozenset()
    room: int | None = None
    load_options: dict[str, str] = field(default_factory=dict)
    ready_at: float = 0.0
    progress_at: float | None = None
    idle_since: float = 0.0
    life: Life = field(init=False)  # which life of the worker this is

    def __post_init__(self) -> None:
        self.life = (self.id, self.generation)

    @property
    def free(self) -> bool:
        """Whether it has a slot to give. While it is on trial, one request at a time may try it."""
        return not self.cordoned and len(self.leases) < (1 if self.breaker.trial else self.slots)

    @property
    def shunned(self) -> bool:
        """Whether it is passed over while anybody else could do: by the supervisor's word, or for what it failed."""
        return self.avoided or self.breaker.open_until is not None

    def shuns(self, model: str | None) -> bool:
        """Say whether it is passed over for requests for a model."""
        return self.shunned or model in self.cooled

    # -- models ------------------------------------------------------------------------------------------------------

    def held(self) -> set[str | None]:
        """Return the models that are loaded, or being loaded for a lease that it has."""
        return {*self.loaded, *(lease.model for lease in self.leases)} - {None}

    def holds(self, model: str | None) -> bool:
        """Say whether a model is loaded, or being loaded for a lease that it has."""
        return model is None or model in self.loaded or any(lease.model == model for lease in self.leases)

    def suits(self, ticket: Ticket) -> bool:
        """Say whether it can answer without loading anything: the model is there, with the options asked for.

        Ollama loads a model anew when its load options change (ollama#8903).
        """
        model = ticket.model
        there = model in self.loaded or self.holds(model)
        return there and (model is None or self.load_options.get(model, "") == ticket.load_options)

    def rank(self, ticket: Ticket) -> int:
        """Return what a ticket would cost there: 0 nothing, 1 a load, 2 a load that may push out another model."""
        if self.suits(ticket):
            return 0
        held = len(self.held())
        return 1 if held == 0 or (self.room is not None and held < self.room) else 2

    def take(self, lease: Lease, load_options: str) -> None:
        """Give a slot away. A model that is loaded for it may push out others, by what is known of the room there."""
        if lease.model is not None and not self.holds(lease.model) and self.room is not None:
            busy = {other.model for other in self.leases}
            if len(self.held()) >= self.room:
                self.loaded = frozenset(model for model in self.loaded if model in busy)
        if lease.model is not None:
            self.load_options[lease.model] = load_options
        self.leases.add(lease)

    def learn(self, model: str | None, *, loaded: bool) -> None:
        """Take from an answer whether a model is loaded now."""
        if model is not None and (model in self.loaded) is not loaded:
            self.loaded = self.loaded ^ {model}

    def told(self, models: frozenset[str]) -> None:
        """Take the worker's own word for what is loaded. One that came while another went shows how many fit."""
        if models - self.polled and self.polled - models:
            self.room = max(1, len(models))
        elif self.room is not None:
            self.room = max(self.room, len(models))
        for model in self.loaded - models:
            self.load_options.pop(model, None)
        self.loaded = self.polled = models


def any_well(workers: Collection[WorkerSlots], ticket: Ticket) -> bool:
    """Say whether a ticket has a worker to wait for that is not passed over."""
    return any(
        not worker.cordoned and not worker.shuns(ticket.model) and worker.life not in ticket.excluded
        for worker in workers
    )

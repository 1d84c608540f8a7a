"""A `Leases` (and `FleetSize`) that writes down what the supervisor tells it."""

from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True)
class Told:
    """One call: what was said of which worker, and when (trio's clock)."""

    what: str
    worker_id: str
    at: float


@dataclass(slots=True)
class RecordingLeases:
    """The dispatcher's side, with leases that a test takes and gives back by `hold` and `free`."""

    told: list[Told] = field(default_factory=list)
    serving: dict[str, frozenset[str]] = field(default_factory=dict)  # worker -> its models
    ports: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    cordoned: set[str] = field(default_factory=set)
    avoided: set[str] = field(default_factory=set)
    progress: dict[str, float] = field(default_factory=dict)  # worker -> when its last byte came
    idle: dict[str, float] = field(default_factory=dict)  # worker -> since when it has no lease
    held: dict[str, int] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    def worker_ready(self, worker_id: str, *, port: int, slots: int, models: frozenset[str], cordoned: bool) -> None:
        assert worker_id not in self.serving, "a worker became ready twice without being lost"
        self.serving[worker_id], self.ports[worker_id], self.slots[worker_id] = models, port, slots
        self.cordoned.discard(worker_id)
        self.avoided.discard(worker_id)
        self.progress.pop(worker_id, None)
        self.idle[worker_id] = trio.current_time()
        if cordoned:
            self.cordoned.add(worker_id)
        self._note("ready", worker_id)

    def worker_lost(self, worker_id: str) -> None:
        self.serving.pop(worker_id, None)
        self.cordoned.discard(worker_id)
        self.avoided.discard(worker_id)
        self.held.pop(worker_id, None)
        self._note("lost", worker_id)

    def cordon(self, worker_id: str) -> None:
        assert worker_id in self.serving, "an unknown worker was cordoned"
        self.cordoned.add(worker_id)
        self._note("cordon", worker_id)

    def uncordon(self, worker_id: str) -> None:
        assert worker_id in self.serving, "an unknown worker was uncordoned"
        self.cordoned.discard(worker_id)
        self._note("uncordon", worker_id)

    def avoid(self, worker_id: str, *, avoided: bool) -> None:
        assert worker_id in self.serving, "an unknown worker was avoided"
        (self.avoided.add if avoided else self.avoided.discard)(worker_id)
        self._note("avoid" if avoided else "trust", worker_id)

    def progress_at(self, worker_id: str) -> float | None:
        return self.progress.get(worker_id)

    def idle_since(self, worker_id: str) -> float | None:
        return None if self.inflight(worker_id) or worker_id not in self.serving else self.idle[worker_id]

    def worker_models(self, worker_id: str, models: frozenset[str]) -> None:
        assert worker_id in self.serving, "models of an unknown worker"
        self.serving[worker_id] = models
        self._note("models", worker_id)

    def inflight(self, worker_id: str) -> int:
        return self.held.get(worker_id, 0)

    async def wait_drained(self, worker_id: str) -> None:
        await trio.lowlevel.checkpoint()
        while self.inflight(worker_id):
            await self._news.wait()

    def fleet_wanted(self, count: int) -> None:
        self.wanted.append(count)

    # -- for tests -----------------------------------------------------------------------------------------------

    def takes_leases(self, worker_id: str) -> bool:
        """Whether a request could be given to the worker now."""
        return worker_id in self.serving and worker_id not in self.cordoned

    def hold(self, worker_id: str, count: int = 1) -> None:
        """Let so many requests be under way."""
        assert self.takes_leases(worker_id)
        self.held[worker_id] = self.inflight(worker_id) + count
        self._note("hold", worker_id)

    def free(self, worker_id: str) -> None:
        """Let all requests of the worker end."""
        self.held.pop(worker_id, None)
        self.idle[worker_id] = trio.current_time()
        self._note("free", worker_id)

    def byte(self, worker_id: str) -> None:
        """Let a byte of an answer come from the worker now."""
        self.progress[worker_id] = trio.current_time()

    def heard(self, worker_id: str) -> list[str]:
        """What was told of a worker, without what is said each two seconds."""
        return [told.what for told in self.told if told.worker_id == worker_id and told.what != "models"]

    async def wait_told(self, what: str, worker_id: str, times: int = 1) -> Told:
        """Return the n-th time that this was said, when it has been said."""
        while True:
            said = [told for told in self.told if (told.what, told.worker_id) == (what, worker_id)]
            if len(said) >= times:
                return said[times - 1]
            await self._news.wait()

    def _note(self, what: str, worker_id: str) -> None:
        self.told.append(Told(what, worker_id, trio.current_time()))
        self._news.set()
        self._news = trio.Event()

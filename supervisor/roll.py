"""Restarts workers whose settings count no more, one after the other, drained. `roll` is the task.

It looks at what is, again and again, instead of following a list: a reload that comes meanwhile, a worker that fails
or is pruned, need no word of their own.
"""

from supervisor.beat import beat
from supervisor.change import Turn, next_to_restart
from supervisor.events import EventLog
from supervisor.fleet import Fleet
from supervisor.lifecycle import State
from supervisor.service import Service
from supervisor.standing import Goal, Wish
from supervisor.store import ModelStore

LOOK_S = 0.5
CAUSE = "its settings have changed"


class Roll:
    """The restarts that a change of settings takes."""

    def __init__(self, fleet: Fleet, store: ModelStore, service: Service, events: EventLog) -> None:
        self._fleet = fleet
        self._store = store
        self._service = service
        self._events = events
        self._served: set[str] = set()
        self._rolling = False

    async def run(self) -> None:
        """Look for workers to restart, for as long as Chimera runs. Never returns."""
        while True:
            await beat(LOOK_S)
            self.step()

    def step(self) -> None:
        """Do what there is to do now, which is one restart at most."""
        turns = self._turns()
        stale = [turn.id for turn in turns if turn.stale]
        if not stale:
            if self._rolling and not self._returning(turns):
                self._rolling = False
                self._service.note("")
                self._events.record("workers_renewed")
            return
        if not self._rolling:
            self._rolling = True
            self._served = {turn.id for turn in turns if turn.ready}
            self._events.record("workers_to_be_renewed", workers=stale, cause=CAUSE)
        self._service.note(f"{len(stale)} workers restart one after the other, for new settings")
        chosen = next_to_restart(turns) if self._store.present else None
        if chosen is not None:
            self._fleet.workers[chosen].end(Goal.RESTART, cause=CAUSE)

    def _turns(self) -> list[Turn]:
        turns = []
        for worker in self._fleet.workers.values():
            ready = worker.state is State.READY
            if ready:
                self._served.add(worker.spec.id)
            held = worker.wish is not Wish.SERVE or worker.goal in (Goal.REMOVE, Goal.QUARANTINE)
            turns.append(Turn(worker.spec.id, worker.stale, ready, worker.spec.id in self._served, held))
        return turns

    @staticmethod
    def _returning(turns: list[Turn]) -> bool:
        return any(turn.served and not turn.ready and not turn.held for turn in turns)

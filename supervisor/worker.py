"""One worker from its first start to its last stop. `Worker.run` is the sole writer of the worker's state.

Others say what they want (`cordon`, `drain`, `restart`, `remove`, …) by plain calls that only note the wish and
wake the task (`standing`). What is done about it while there is a process is decided in `life`; what comes after it,
here.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import trio

from supervisor.life import Life
from supervisor.lifecycle import Event, State
from supervisor.restart import BackOff
from supervisor.standing import Goal


@dataclass(slots=True)
class Worker(Life):
    """One worker's task. Its facts, and what others may want of it, are in `Standing`; only `run` writes the facts."""

    async def run(self) -> None:
        """Keep the worker running until it is removed. Cancellation ends its process group first (shielded).

        Raises nothing that a failing worker could cause: it backs off and tries again for as long as it is wanted.
        """
        try:
            while True:
                if self._moving_to is not None:
                    self.spec, self._moving_to = replace(self.spec, placement=self._moving_to), None
                if self._resized_to is not None:
                    self.spec, self._resized_to = replace(self.spec, slots=self._resized_to), None
                reason = await self._live_once()
                if self.goal is Goal.REMOVE:
                    self._move(Event.REMOVE, cause=reason)
                    return
                self.force = False
                if self.goal is Goal.RESTART:
                    self.goal, self.cause = Goal.RUN, None
                    self._move(Event.RESTART, cause=reason)
                elif self.goal is Goal.QUARANTINE:
                    self._move(Event.QUARANTINE, cause=reason)
                else:
                    await self._back_off(reason)
                if self.state is State.QUARANTINED and not await self._sit_out_quarantine():
                    return
                if self.state is State.GONE:
                    return
                self.restarts += 1
        finally:
            self.house.leases.worker_lost(self.spec.id)
            self.house.budget.give_back(self.spec.id)

    async def _back_off(self, reason: str) -> None:
        """Wait before the next start. An operator's order, or word that the cause is gone, ends the wait."""
        ready_for_s = trio.current_time() - self.ready_since if self.ready_since is not None else 0.0
        self.back_off = self.back_off.failed(ready_for_s=ready_for_s)
        delay_s = self.back_off.delay_s(self.house.random_unit())
        self.failure, self.failing_since = reason, self.failing_since or datetime.now(UTC)
        self.next_start_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        self._healed = False
        self._move(Event.BACK_OFF, cause=reason, retry_in_s=round(delay_s, 2), failures=self.back_off.failures)
        with trio.move_on_after(delay_s):
            while self.goal is Goal.RUN and not self._healed:
                await self._news.wait()
        self.next_start_at = None
        if self.goal is Goal.REMOVE:
            self._move(Event.REMOVE, cause=self.cause or "asked for")
        elif self.goal is Goal.QUARANTINE:
            self._move(Event.QUARANTINE, cause=self.cause or "asked for")
        else:
            self.goal, self.cause = Goal.RUN, None
            if self._healed:
                self.back_off = BackOff()
            self._move(Event.RETRY, cause="what it failed of may be gone" if self._healed else "its wait is over")

    async def _sit_out_quarantine(self) -> bool:
        """Wait for the release; return False when the worker is removed instead."""
        while self.goal is Goal.QUARANTINE:
            await self._news.wait()
        if self.goal is Goal.REMOVE:
            self._move(Event.REMOVE, cause=self.cause or "asked for")
            return False
        cause, self.goal, self.cause = self.cause or "asked for", Goal.RUN, None
        self._move(Event.RELEASE, cause=cause)
        return True

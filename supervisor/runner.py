"""The runner that computes a worker's model: its loss is noticed, told once, and the required model loaded again.

Ollama itself finds out at the next request only, which would have to wait for the load.
"""

from collections.abc import Callable

import trio

from supervisor.errors import StartFailed
from supervisor.oom import killed
from supervisor.watched import Watched

# Ollama starts another runner at the next request; meanwhile the model counts as not loaded.
RELOAD_TIMEOUT_S = 600.0


class Runner:
    """The runners of one process, as its usage shows them."""

    def __init__(self, it: Watched) -> None:
        self._it = it
        self._pids: frozenset[int] = frozenset()  # those that were seen last
        self._there = False
        self._told: frozenset[int] | None = None  # those whose loss has been told

    def died(self) -> None:
        """Take the gateway's word that a runner ended under a request. Ollama starts another; said once a runner."""
        if self._pids != self._told:
            self._told = self._pids
            self._it.record("runner_lost", level="warning", cause="its runner ended under a request")

    def has_gone(self) -> bool:
        """Look for it; say whether it has gone since the last look. Whether it died or was unloaded, /api/ps knows."""
        usage = self._it.usage()
        if usage is None:
            return False
        if usage.runner_pids:
            self._there, self._pids = True, frozenset(usage.runner_pids)
        elif self._there and self._it.serving():
            self._there = False
            return True
        return False

    def holds_what_is_listed(self) -> bool:
        """Say whether a model that /api/ps lists is there: without a runner it is not."""
        usage = self._it.usage()
        return usage is None or bool(usage.runner_pids) or not self._pids

    async def make_up_for_loss(self, none_loaded: Callable[[], None]) -> None:
        """Having gone, it may have died: tell so and load the required model again. `none_loaded` is told at once.

        A model that /api/ps still lists without a runner has lost it. Cancellation leaves the load to Ollama.
        """
        it = self._it
        listed = await it.house.prober.ps(it.port)
        await trio.lowlevel.checkpoint_if_cancelled()
        usage = it.usage()
        if listed is None or usage is None or usage.runner_pids or not it.serving():
            return
        none_loaded()
        if listed:
            await self._load_again(frozenset(model.name for model in listed))

    async def _load_again(self, names: frozenset[str]) -> None:
        it = self._it
        oom = await trio.to_thread.run_sync(killed, self._pids, it.oom_mark)
        cause = oom or "its runner is gone, though /api/ps lists its model"
        it.record("runner_lost", level="warning", models=sorted(names), cause=cause)
        model = it.required()
        if model is None or model not in names or it.house.leases.inflight(it.spec.id) > 0:
            return
        try:
            await it.house.prober.load(it.port, model, RELOAD_TIMEOUT_S)
        except StartFailed as error:
            it.record("model_not_reloaded", level="warning", model=model, cause=str(error))
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        if it.serving():
            it.holds(frozenset({model}))
            it.record("model_reloaded", model=model)

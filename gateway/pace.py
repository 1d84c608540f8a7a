"""Which workers are much slower than the others. Pure.

Every answer says how long its worker took for a token. A worker that takes several times as long as the fastest, for
the same model, counts as fuller than it is: an old card beside new ones, one that is hot and throttled, one that a
neighbour uses too. Answers differ, so only a clear difference counts, and it is forgotten little by little with every
answer of the others, so that the slow one is tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.affinity import Life

# What one answer changes of what is known of its worker.
SHARE_OF_NEWEST = 0.2
# What every answer of a faster worker takes off a slower one's pace: after some 150 a tenfold one is tried again.
FORGOTTEN = 0.02
# Less than this is no difference: a worker with full slots is slower than an idle one, a long prompt than a short one.
CLEARLY = 3.0
_NONE: Final[Mapping[Life, float]] = {}


@dataclass(slots=True)
class Paces:
    """Seconds per token, by model and life of a worker, and what follows: who is `slow`."""

    _paces: dict[str | None, dict[Life, float]] = field(default_factory=dict)
    _slow: dict[str | None, dict[Life, float]] = field(default_factory=dict)

    def took(self, life: Life, model: str | None, seconds_per_token: float) -> None:
        """Learn from an answer."""
        paces = self._paces.setdefault(model, {})
        mine = paces.get(life, seconds_per_token)
        mine += (seconds_per_token - mine) * SHARE_OF_NEWEST
        paces[life] = mine
        for other, pace in paces.items():
            if pace > mine:
                paces[other] = pace + (mine - pace) * FORGOTTEN
        least = min(paces.values()) * CLEARLY
        slow = {one: pace * CLEARLY / least for one, pace in paces.items() if pace > least > 0}
        if slow:
            self._slow[model] = slow
        else:
            self._slow.pop(model, None)

    def slow(self, model: str | None) -> Mapping[Life, float]:
        """Return the workers that are clearly slower for a model than the fastest, and how many times: mostly none."""
        return self._slow.get(model, _NONE)

    def forget(self, life: Life) -> None:
        """A worker is gone."""
        for by_model in (self._paces, self._slow):
            for model in [model for model, lives in by_model.items() if life in lives]:
                del by_model[model][life]
                if not by_model[model]:
                    del by_model[model]

"""Which workers are much slower than the others. Pure.

Every answer says how long its worker took for a token. A worker that takes longer than the fastest for the same model
(an old card beside new ones, one that is hot and throttled, one that a neighbour uses too) gets the shorter of the
requests that wait, and one that takes several times as long counts as fuller than it is. Answers differ, so small
differences count for nothing, and what is known is forgotten little by little with every answer of the others, so that
the slow one is tried again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.affinity import Life

# What one answer changes of what is known of its worker.
SHARE_OF_NEWEST = 0.2
# What every answer of a faster worker takes off a slower one's pace: after some 150 a tenfold one is tried again.
FORGOTTEN = 0.02
# Less than this decides nothing: a worker with full slots is slower than an idle one, a long prompt than a short one.
SLOWER = 1.5
# From here on a worker counts as fuller than it is.
CLEARLY = 3.0
_NONE: Final[Mapping[Life, float]] = {}


@dataclass(slots=True)
class Paces:
    """Seconds per token, by model and life of a worker, and what follows: who is `slower`."""

    _paces: dict[str | None, dict[Life, float]] = field(default_factory=dict)
    _slower: dict[str | None, dict[Life, float]] = field(default_factory=dict)

    def took(self, life: Life, model: str | None, seconds_per_token: float) -> None:
        """Learn from an answer."""
        paces = self._paces.setdefault(model, {})
        mine = paces.get(life, seconds_per_token)
        mine += (seconds_per_token - mine) * SHARE_OF_NEWEST
        paces[life] = mine
        for other, pace in paces.items():
            if pace > mine:
                paces[other] = pace + (mine - pace) * FORGOTTEN
        least = min(paces.values())
        slower = {one: pace / least for one, pace in paces.items() if pace > least * SLOWER > 0}
        if slower:
            self._slower[model] = slower
        else:
            self._slower.pop(model, None)

    def slower(self, model: str | None) -> Mapping[Life, float]:
        """Return the workers that are SLOWER for a model than the fastest, and how many times: mostly none."""
        return self._slower.get(model, _NONE)

    def forget(self, life: Life) -> None:
        """A worker is gone."""
        for by_model in (self._paces, self._slower):
            for model in [model for model, lives in by_model.items() if life in lives]:
                del by_model[model][life]
                if not by_model[model]:
                    del by_model[model]

"""Which worker still holds the beginning of a conversation in its cache. Pure.

Ollama keeps what it has computed of the last prompts: one per slot of a loaded model. A prompt that begins as one of
them is answered after computing only the rest (facts: 0.6 s to the first token instead of 9). So this is no sticky
session but a model of those caches: which prompts each worker has had last, and which of them a new one continues.

A prompt is known by a chain of numbers, one per block of its text, each standing for everything up to its block's end:
two prompts share as much as their chains do, and no text is kept.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from zlib import crc32

import msgspec

# Finer blocks find more of a short conversation, coarser ones cost less; 256 bytes are about 60 tokens.
BLOCK_BYTES = 256
# What lies behind a quarter of a megabyte (images, mostly) decides nothing any more.
MOST_BLOCKS = 1024
# A beginning that is not known to be a conversation's counts from here on: less is soon computed anew, and all requests
# with the same short instructions would go to one worker.
LONG_BLOCKS = 8

Life = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Prefix:
    """How a prompt begins; `continues` says that it holds earlier answers: it is a conversation's next turn."""

    chain: tuple[int, ...] = ()
    continues: bool = False


NO_PREFIX = Prefix()


def prefix_of(model: str, parts: Iterable[bytes], *, continues: bool) -> Prefix:
    """Return the prefix of a prompt for a model; `parts` are its text in the order in which a model reads it."""
    text = b"\0".join(parts)[: BLOCK_BYTES * MOST_BLOCKS]
    if len(text) < BLOCK_BYTES:
        return NO_PREFIX
    number = crc32(model.encode("utf-8", "replace"))
    chain: list[int] = []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        number = crc32(text[end - BLOCK_BYTES : end], number)
        chain.append(number)
    return Prefix(tuple(chain), continues)


class Kept(msgspec.Struct, eq=False):
    """One prompt in the cache of one slot. `busy` while its lease runs: such a slot takes no other prompt."""

    life: Life
    model: str | None
    chain: tuple[int, ...]
    busy: bool = True


@dataclass(slots=True)
class Affinity:
    """The caches of all workers, as far as they can be known from what was sent there."""

    # By the model that they are of; the one used longest ago first.
    _by_life: dict[Life, dict[str | None, dict[Kept, None]]] = field(default_factory=dict)
    _where: dict[int, set[Kept]] = field(default_factory=dict)  # a chain's number -> the caches that begin so

    def holders(self, prefix: Prefix, lives: Collection[Life]) -> frozenset[Life]:
        """Return which of `lives` hold the longest beginning of a prompt; none when that is not worth a way."""
        least = 1 if prefix.continues else LONG_BLOCKS
        for length in range(len(prefix.chain), least - 1, -1):
            kept = self._where.get(prefix.chain[length - 1])
            if kept:
                found = frozenset(one.life for one in kept if one.life in lives)
                if found:
                    return found
        return frozenset()

    def given(self, life: Life, model: str | None, slots: int, prefix: Prefix) -> Kept:
        """A prompt goes to a worker. It takes the slot whose cache it continues, else the one used longest ago."""
        by_model = self._by_life.get(life)
        if by_model is None:
            by_model = self._by_life[life] = {}
        mine = by_model.get(model)
        if mine is None:
            mine = by_model[model] = {}
        replaced = self._continued(prefix.chain, mine) if prefix.chain else None
        if replaced is None and len(mine) >= slots:
            replaced = next((one for one in mine if not one.busy), None)
        if replaced is not None:
            del mine[replaced]
            self._forget_where(replaced)
        new = Kept(life, model, prefix.chain)
        mine[new] = None
        for number in new.chain:
            self._where.setdefault(number, set()).add(new)
        return new

    def ended(self, kept: Kept) -> None:
        """The lease of a prompt has ended; its cache stays."""
        kept.busy = False

    def holds_only(self, life: Life, models: Collection[str]) -> None:
        """Only these models are loaded there now: the caches of all others are gone."""
        for model, caches in list(self._by_life.get(life, {}).items()):
            if model is not None and model not in models:
                for one in [one for one in caches if not one.busy]:
                    self._drop(one)

    def forget(self, life: Life) -> None:
        """A worker is gone, and its caches with it."""
        for caches in self._by_life.pop(life, {}).values():
            for one in caches:
                self._forget_where(one)

    def _continued(self, chain: tuple[int, ...], mine: dict[Kept, None]) -> Kept | None:
        """Return the longest of the caches that a prompt continues from end to end."""
        for length in range(len(chain), 0, -1):
            for one in self._where.get(chain[length - 1], ()):
                if len(one.chain) == length and not one.busy and one in mine:
                    return one
        return None

    def _drop(self, kept: Kept) -> None:
        caches = self._by_life[kept.life][kept.model]
        del caches[kept]
        if not caches:  # any word of a client's may be a model
            del self._by_life[kept.life][kept.model]
        self._forget_where(kept)

    def _forget_where(self, kept: Kept) -> None:
        for number in kept.chain:
            holders = self._where[number]
            holders.discard(kept)
            if not holders:
                del self._where[number]

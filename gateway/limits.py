"""What a key may take: requests at the same time, requests a minute, tokens a minute. Pure.

The two rates are token buckets (RFC 2697 has the form): each is as large as a minute's allowance and fills evenly, so
that a key may send a minute's worth at once, and over any longer while its rate. Tokens are known only at an answer's
end: they are taken then, and a bucket that is overdrawn refuses requests until it is filled above nought again.

`now` is monotonic, in seconds. Nothing here outlives a restart: every key then begins with full buckets.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

_MINUTE_S = 60.0
# Who waited as long as was said finds what was promised, whatever a float made of it.
_ROUNDING = 1e-6

Quantity = Literal["concurrency", "requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may take; None: as much as there is."""

    concurrency: int | None = None  # requests that wait or are being answered
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Over:
    """A request is refused for what its key may not have more of; in `wait_s` seconds it may."""

    quantity: Quantity
    limit: int
    wait_s: float


class Bucket:
    """What has been taken of a minute's allowance and is not filled up again. `per_minute` None: nothing is counted."""

    def __init__(self, per_minute: int | None = None) -> None:
        self.per_minute = per_minute
        self._taken = 0.0
        self._at = 0.0

    def left(self, now: float) -> float | None:
        """Return what may still be taken; less than nought when it is overdrawn, None when there is no limit."""
        if self.per_minute is None:
            return None
        self._fill(now)
        return self.per_minute - self._taken

    def wait_s(self, now: float) -> float:
        """Return in how many seconds there is one to be taken; 0 when there is one now."""
        left = self.left(now)
        if left is None or self.per_minute is None or left > 1 - _ROUNDING:
            return 0.0
        return (1 - left) * _MINUTE_S / self.per_minute

    def take(self, amount: int, now: float) -> None:
        """Take an amount, whether there is so much or not."""
        if self.per_minute is not None:
            self._fill(now)
            self._taken += amount

    def change(self, per_minute: int | None, now: float) -> None:
        """Set another allowance. More can be used at once; with less, what was overdrawn fills up as soon as before."""
        self._fill(now)
        if per_minute is None or self.per_minute is None:
            self._taken = 0.0
        elif per_minute < self.per_minute:
            self._taken *= per_minute / self.per_minute
        self.per_minute = per_minute

    def _fill(self, now: float) -> None:
        if self.per_minute is not None:
            filled = max(0.0, now - self._at) * self.per_minute / _MINUTE_S
            self._taken = max(0.0, self._taken - filled)
        self._at = max(self._at, now)


class Use:
    """What one key uses now. It stays while its limits change, and while the requests of a revoked key end."""

    def __init__(self, limits: Limits, last_used_at: datetime | None = None) -> None:
        self.inflight = 0
        self.last_used_at = last_used_at
        self._set(limits)
        self._requests = Bucket(limits.requests_per_minute)
        self._tokens = Bucket(limits.tokens_per_minute)

    def _set(self, limits: Limits) -> None:
        self._limits = limits
        self._bounded = limits != Limits()

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters what is `spent`."""
        return self._limits.tokens_per_minute is not None

    def enter(self, now: float) -> Over | None:
        """Begin a request, which `leave` ends; or return why it may not begin: then nothing is taken."""
        if not self._bounded:
            self.inflight += 1
            return None
        concurrency = self._limits.concurrency
        if concurrency is not None and self.inflight >= concurrency:
            return Over("concurrency", concurrency, 1.0)  # nobody knows when one of them ends
        named: tuple[tuple[Quantity, Bucket], ...] = (("requests", self._requests), ("tokens", self._tokens))
        over = [(bucket.wait_s(now), quantity, bucket.per_minute or 0) for quantity, bucket in named]
        wait_s, quantity, limit = max(over)
        if wait_s > 0:
            return Over(quantity, limit, wait_s)
        self._requests.take(1, now)
        self.inflight += 1
        return None

    def leave(self) -> None:
        """End a request."""
        self.inflight -= 1

    def spent(self, tokens: int, now: float) -> None:
        """Take the tokens of an answer."""
        self._tokens.take(tokens, now)

    def change(self, limits: Limits, now: float) -> None:
        """Set other limits, for the next request on; those that have begun go on."""
        self._set(limits)
        self._requests.change(limits.requests_per_minute, now)
        self._tokens.change(limits.tokens_per_minute, now)

    def left(self, now: float) -> dict[str, int | None]:
        """Return what is in use and what may still be taken, for people: whole numbers, rounded down."""
        requests, tokens = self._requests.left(now), self._tokens.left(now)
        return {
            "inflight": self.inflight,
            "requests_left": None if requests is None else int(requests // 1),
            "tokens_left": None if tokens is None else int(tokens // 1),
        }

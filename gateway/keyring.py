"""Who is asking, and may it: the keys in memory, what each uses now, and the changes that an operator makes.

A request is decided about without waiting, from memory alone: one SHA-256, no database (gpustack#1842, #1332). A
change is written to the database first, in a worker thread, and counts from the moment that it is there; nothing is
restarted and no request is cut (llama-swap#1009). While the database is away the keys go on as they are, and a change
is refused.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog
import trio

from gateway.database import DatabaseFault
from gateway.errors import BadPriority, KeyMissing, KeyUnknown, ModelsForbidden, OverLimit
from gateway.keys import SECRET_BYTES, Key, KeyBook, digest_of, make_secret, presented, priority_of, shown
from gateway.limits import Limits, Use
from gateway.ollama import Answerer, changes_models
from gateway.request import Request

log = structlog.get_logger("gateway")

# How often it is written when keys were last used.
USED_EVERY_S = 60.0
# At the end it is written once more, if the database takes it in this time.
LAST_WRITE_S = 3.0

Result = TypeVar("Result")


class UnknownKey(Exception):
    """The operator named a key that there is not; the text lists those that there are."""


class Store(Protocol):
    """Where keys outlive a restart. Its calls block, and raise DatabaseFault."""

    def add(self, key: Key) -> Key:
        """Keep a new key, and give it its id."""
        ...

    def change(self, key: Key) -> None:
        """Keep a key as it is now."""

    def revoke(self, key_id: str, at: datetime) -> None:
        """Keep that a key counts no more."""

    def used(self, moments: Mapping[str, datetime]) -> None:
        """Keep when keys were last used."""


class NoStore:
    """Nothing outlives anything: a gateway without a database."""

    def add(self, key: Key) -> Key:
        """Refuse."""
        raise DatabaseFault("there is no database for keys")

    def change(self, key: Key) -> None:
        """Refuse."""
        raise DatabaseFault("there is no database for keys")

    def revoke(self, key_id: str, at: datetime) -> None:
        """Refuse."""
        raise DatabaseFault("there is no database for keys")

    def used(self, moments: Mapping[str, datetime]) -> None:
        """Nobody wants to know."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Keyring:
    """The keys. `required`: inference needs one (API_KEYS_REQUIRED)."""

    def __init__(
        self, store: Store | None = None, *, required: bool = False, keys: list[Key] | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes, today: Callable[[], datetime] = _utc_now,
    ) -> None:  # fmt: skip
        """`keys` are those that the store has now; `today` is the time that people read."""
        self.required = required
        self._store: Store = store or NoStore()
        self._book = KeyBook(keys or [])
        self._uses = {key.id: Use(key.limits, key.last_used_at) for key in keys or []}
        self._random = random
        self._today = today
        self._used: dict[str, float] = {}  # when last (trio's clock), of those used since that was written
        self._changing = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # a database that hangs takes one thread, not those of others

    # -- a request ---------------------------------------------------------------------------------------------------

    def admitted(self, request: Request, who: Answerer) -> "_Admitted":
        """Hold the place of a request's key for the block, and say in the request whose it is.

        Limits are for inference: whoever lists models takes nothing of them (llama-swap#860). Where no key is needed,
        an unknown one is passed over: clients send "unused" and the like. Raises KeyMissing, KeyUnknown,
        ModelsForbidden, BadPriority and OverLimit, before the request has cost anything.
        """
        return _Admitted(self, request, who)

    def enter(self, request: Request, who: Answerer) -> Use | None:
        """Return what a request has taken a place of, which it is to `leave`; else as `admitted`."""
        key = self._key_of(request)
        if key is None:
            return None
        priority = priority_of(request.named, key.priority)
        if priority is None:
            raise BadPriority
        request.caller, request.priority = f"key:{key.id}", priority
        self._used[key.id] = request.arrived
        if who is not Answerer.WORKER:
            return None
        use = self._uses[key.id]
        over = use.enter(request.arrived)
        if over is not None:
            raise OverLimit(over)
        request.spent = partial(_spent, use)
        return use

    def _key_of(self, request: Request) -> Key | None:
        """Return the key of a request. Raises KeyMissing, KeyUnknown and ModelsForbidden where one is required."""
        given = presented(request.named)
        key = self._book.find(given) if given else None
        if not self.required or request.method == "OPTIONS":  # a preflight never has a key (Fetch standard, CORS)
            return key
        if key is None:
            raise KeyMissing if given is None else KeyUnknown
        if not key.models and changes_models(request.method, request.path):
            raise ModelsForbidden
        return key

    # -- the operator ------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return what may be told of every key, for people and programs."""
        return [self._row(key) for key in self._book.all()]

    def row(self, key_id: str) -> dict[str, Any]:
        """Return what may be told of a key. Raises UnknownKey."""
        return self._row(self._known(key_id))

    async def create(self, name: str, limits: Limits, *, priority: int, models: bool) -> tuple[str, dict[str, Any]]:
        """Make a key; return it, for the only time, and its row. Raises DatabaseFault, and then there is none.

        Cancellation is heeded when the database has answered: what it has is what counts.
        """
        secret = make_secret(self._random(SECRET_BYTES))
        new = Key("", name, shown(secret), limits, priority, models, self._today(), digest_of(secret.encode()))
        async with self._changing:
            key = await self._in_thread(self._store.add, new)
            self._uses[key.id] = Use(key.limits)
            self._book.put(key)
        log.info("key created", key=key.id, name=name)
        return secret, self._row(key)

    async def change(self, key_id: str, *, limits: Mapping[str, int | None], **fields: Any) -> dict[str, Any]:
        """Change what is named of a key, for the next request on; return its row. Raises UnknownKey, DatabaseFault."""
        async with self._changing:
            key = self._known(key_id)
            key = replace(key, limits=replace(key.limits, **limits), **fields)
            await self._in_thread(self._store.change, key)
            self._uses[key_id].change(key.limits, trio.current_time())
            self._book.put(key)
        log.info("key changed", key=key_id, name=key.name)
        return self._row(key)

    async def revoke(self, key_id: str) -> None:
        """Let a key count no more; its running requests end in peace. Raises UnknownKey, DatabaseFault."""
        async with self._changing:
            key = self._known(key_id)
            await self._in_thread(self._store.revoke, key_id, self._today())
            self._book.drop(key_id)
            del self._uses[key_id]
            self._used.pop(key_id, None)
        log.info("key revoked", key=key_id, name=key.name)

    def _known(self, key_id: str) -> Key:
        key = self._book.get(key_id)
        if key is None:
            known = ", ".join(key.id for key in self._book.all()) or "none"
            raise UnknownKey(f"there is no key {key_id!r}; keys here: {known}")
        return key

    def _row(self, key: Key) -> dict[str, Any]:
        use, last_used_at = self._uses[key.id], self._last_used_at(key.id)
        return {
            "id": key.id,
            "name": key.name,
            "prefix": key.prefix,
            "concurrency": key.limits.concurrency,
            "requests_per_minute": key.limits.requests_per_minute,
            "tokens_per_minute": key.limits.tokens_per_minute,
            "priority": key.priority,
            "models": key.models,
            "created_at": key.created_at.isoformat(timespec="seconds"),
            "last_used_at": last_used_at.isoformat(timespec="seconds") if last_used_at else None,
            **use.left(trio.current_time()),
        }

    def _last_used_at(self, key_id: str) -> datetime | None:
        """Return when a key was last used. A request notes trio's clock only: the date takes four times as long."""
        used = self._used.get(key_id)
        if used is None:
            return self._uses[key_id].last_used_at
        return self._today() - timedelta(seconds=trio.current_time() - used)

    # -- the database ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write now and then when keys were last used. Cancellation: once more, for LAST_WRITE_S at most."""
        task_status.started()
        try:
            while True:
                await trio.sleep(USED_EVERY_S)
                await self._write_used()
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                await self._write_used()

    async def _write_used(self) -> None:
        moments = {key_id: at for key_id in self._used if (at := self._last_used_at(key_id)) is not None}
        if not moments:
            return
        used, self._used = self._used, {}
        for key_id, at in moments.items():
            self._uses[key_id].last_used_at = at
        try:
            await trio.to_thread.run_sync(
                self._store.used, moments, limiter=self._limiter, abandon_on_cancel=True
            )  # fmt: skip
        except DatabaseFault as fault:
            self._used = {key_id: at for key_id, at in (used | self._used).items() if key_id in self._uses}
            log.warning("it cannot be written when keys were last used; they go on working", cause=str(fault))

    async def _in_thread(self, doing: Callable[..., Result], *args: object) -> Result:
        return await trio.to_thread.run_sync(doing, *args, limiter=self._limiter)


class _Admitted:
    """A key's place for one request, as a block. Without contextlib: see gateway.book."""

    __slots__ = ("_keyring", "_request", "_use", "_who")

    def __init__(self, keyring: Keyring, request: Request, who: Answerer) -> None:
        self._keyring, self._request, self._who = keyring, request, who
        self._use: Use | None = None

    def __enter__(self) -> None:
        self._use = self._keyring.enter(self._request, self._who)

    def __exit__(self, *_: object) -> None:
        if self._use is not None:
            self._use.leave()


def _spent(use: Use, tokens: int) -> None:
    if use.counts_tokens:
        use.spent(tokens, trio.current_time())

"""Who is asking, and may it: decisions about requests, and an operator's changes while requests run."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import keyring as module
from gateway.database import DatabaseFault
from gateway.errors import BadPriority, GatewayError, KeyMissing, KeyUnknown, ModelsForbidden, OverLimit, dialect_of
from gateway.headers import Headers
from gateway.keyring import Keyring, UnknownKey
from gateway.keys import SECRET_BYTES, Key, make_secret
from gateway.limits import Limits
from gateway.ollama import answerer
from gateway.request import Request

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STRANGER = make_secret(b"\xff" * SECRET_BYTES)


class FakeStore:
    """A database in memory that can be away, and that writes down from which threads it was called."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.moments: list[dict[str, datetime]] = []
        self.writes = 0
        self.away = False
        self.hangs: threading.Event | None = None
        self.threads: set[threading.Thread] = set()

    def _called(self) -> None:
        self.threads.add(threading.current_thread())
        if self.hangs is not None:
            self.hangs.wait(10)
        if self.away:
            raise DatabaseFault("the database is away")

    def load(self) -> list[Key]:
        self._called()
        return list(self.keys.values())

    def add(self, key: Key) -> Key:
        self._called()
        new = replace(key, id=f"k{len(self.keys) + 1}")
        self.keys[new.id] = new
        return new

    def change(self, key: Key) -> None:
        self._called()
        self.keys[key.id] = key

    def revoke(self, key_id: str, at: datetime) -> None:
        self._called()
        del self.keys[key_id]

    def used(self, moments: Mapping[str, datetime]) -> None:
        try:
            self._called()
            self.moments.append(dict(moments))
        finally:
            self.writes += 1


class Counter:
    """Random bytes that are not: each draw another."""

    def __init__(self) -> None:
        self.draws = 0

    def __call__(self, count: int) -> bytes:
        self.draws += 1
        return bytes([self.draws]) * count


class Ring:
    """A keyring, its store, and a client."""

    def __init__(self, *, required: bool = True) -> None:
        self.store = FakeStore()
        self.keyring = Keyring(self.store, required=required, random=Counter(), today=self._today)
        self._began = trio.current_time()

    def _today(self) -> datetime:
        return AT + timedelta(seconds=round(trio.current_time() - self._began))

    async def make(self, limits: Limits = Limits(), *, priority: int = 0, models: bool = False) -> str:  # noqa: B008
        secret, _ = await self.keyring.create("somebody", limits, priority=priority, models=models)
        return secret

    @contextmanager
    def asking(
        self, secret: str | None = None, path: str = "/api/chat", method: str = "POST", **headers: str
    ) -> Iterator[Request]:
        named: Headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if secret is not None:
            named.append((b"authorization", f"Bearer {secret}".encode()))
        request = Request(method, path, path.encode(), named, dialect_of(path), "id-1", caller="192.0.2.1")
        with self.keyring.admitted(request, answerer(method, path)):
            yield request

    def refusal(
        self, secret: str | None = None, path: str = "/api/chat", method: str = "POST", **headers: str
    ) -> type[GatewayError] | None:
        try:
            with self.asking(secret, path, method, **headers):
                return None
        except GatewayError as fault:
            return type(fault)


# -- with and without a key ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/chat"), ("GET", "/api/tags"), ("GET", "/"), ("GET", "/v1/models"), ("GET", "/api/ps"),
        ("POST", "/api/pull"), ("GET", "/api/new"),
    ],
)  # fmt: skip
async def test_where_a_key_is_required_nothing_goes_without(method: str, path: str) -> None:
    ring = Ring()
    await ring.make()
    assert ring.refusal(None, path, method) is KeyMissing
    assert ring.refusal("", path, method) is KeyMissing
    assert ring.refusal("unused", path, method) is KeyUnknown
    assert ring.refusal(STRANGER, path, method) is KeyUnknown


async def test_where_none_is_required_any_word_for_a_key_will_do() -> None:
    ring = Ring(required=False)
    for secret in (None, "", "unused", STRANGER):
        with ring.asking(secret, "/api/pull", X_Chimera_Priority="high") as request:
            assert (request.caller, request.priority) == ("192.0.2.1", 0)


@pytest.mark.parametrize("required", [True, False])
async def test_a_known_key_is_whom_the_queue_is_fair_to(required: bool) -> None:
    ring = Ring(required=required)
    secret = await ring.make()
    with ring.asking(secret) as request:
        assert request.caller == "key:k1"
    with ring.asking(x_api_key=secret) as request:
        assert request.caller == "key:k1"


async def test_a_preflight_has_no_key_and_needs_none() -> None:
    ring = Ring()
    for path in ("/api/chat", "/api/pull", "/v1/models"):
        assert ring.refusal(None, path, "OPTIONS") is None


async def test_a_key_asks_for_a_priority_and_gets_at_most_its_own() -> None:
    ring = Ring()
    secret = await ring.make(priority=5)
    for asked, priority in (("0", 0), ("3", 3), ("9", 5)):
        with ring.asking(secret, x_chimera_priority=asked) as request:
            assert request.priority == priority
    with ring.asking(secret) as request:
        assert request.priority == 0
    assert ring.refusal(secret, x_chimera_priority="high") is BadPriority


@pytest.mark.parametrize(
    ("method", "path", "changes"),
    [
        ("POST", "/api/pull", True), ("POST", "/api/push", True), ("POST", "/api/create", True),
        ("POST", "/api/copy", True), ("DELETE", "/api/delete", True), ("POST", "/api/blobs/sha256:1", True),
        ("HEAD", "/api/blobs/sha256:1", False), ("POST", "/api/show", False), ("POST", "/api/chat", False),
        ("GET", "/api/tags", False),
    ],
)  # fmt: skip
async def test_only_a_key_with_the_right_changes_the_model_store(method: str, path: str, changes: bool) -> None:
    ring = Ring()
    plain, trusted = await ring.make(), await ring.make(models=True)
    assert (ring.refusal(plain, path, method) is ModelsForbidden) == changes
    assert ring.refusal(trusted, path, method) is None
    ring.keyring.required = False
    assert ring.refusal(plain, path, method) is None, "where anybody may, a key does not take it away"


# -- limits --------------------------------------------------------------------------------------------------------


async def test_each_key_has_its_own_limits() -> None:
    ring = Ring()
    one, other = await ring.make(Limits(concurrency=1)), await ring.make(Limits(concurrency=1))
    with ring.asking(one), ring.asking(other):
        assert ring.refusal(one) is OverLimit
        assert ring.refusal(one, "/api/tags", "GET") is None, "limits are for inference (llama-swap#860)"
        assert [row["inflight"] for row in ring.keyring.rows()] == [1, 1]
    assert [row["inflight"] for row in ring.keyring.rows()] == [0, 0]


async def test_a_request_that_fails_or_is_cancelled_gives_its_place_back() -> None:
    ring = Ring()
    secret = await ring.make(Limits(concurrency=1))
    with pytest.raises(RuntimeError), ring.asking(secret):
        raise RuntimeError
    with trio.CancelScope() as scope, ring.asking(secret):
        scope.cancel()
        await trio.lowlevel.checkpoint()
    assert ring.keyring.row("k1")["inflight"] == 0


async def test_rates_are_refilled_by_the_running_clock(mock_clock: MockClock) -> None:
    ring = Ring()
    secret = await ring.make(Limits(requests_per_minute=2, tokens_per_minute=60))
    assert [ring.refusal(secret) for _ in range(3)] == [None, None, OverLimit]
    mock_clock.jump(30)
    with ring.asking(secret) as request:
        request.spent(90)
    assert ring.keyring.row("k1")["tokens_left"] == -30
    mock_clock.jump(30)
    assert ring.refusal(secret) is OverLimit
    mock_clock.jump(1)
    assert ring.refusal(secret) is None


# -- an operator's changes -----------------------------------------------------------------------------------------


async def test_a_secret_is_told_once_and_kept_by_nobody() -> None:
    ring = Ring()
    secret, row = await ring.keyring.create("laptop", Limits(1, 2, 3), priority=4, models=True)
    assert row == {
        "id": "k1", "name": "laptop", "prefix": secret[:12], "concurrency": 1, "requests_per_minute": 2,
        "tokens_per_minute": 3, "priority": 4, "models": True, "created_at": "2026-01-02T03:04:05+00:00",
        "last_used_at": None, "inflight": 0, "requests_left": 2, "tokens_left": 3,
    }  # fmt: skip
    assert ring.keyring.rows() == [row]
    assert secret not in repr(ring.store.keys)


async def test_a_changed_limit_counts_for_the_next_request_and_cuts_none(mock_clock: MockClock) -> None:
    ring = Ring()
    secret = await ring.make()
    with ring.asking(secret), ring.asking(secret):
        await ring.keyring.change("k1", limits={"concurrency": 2, "requests_per_minute": 5})
        assert ring.refusal(secret) is OverLimit
        row = await ring.keyring.change("k1", limits={"concurrency": None}, name="desk", priority=9, models=True)
        assert (row["concurrency"], row["requests_per_minute"], row["name"]) == (None, 5, "desk")
        assert (row["inflight"], row["requests_left"]) == (2, 5)
        assert ring.refusal(secret, "/api/pull") is None
    assert ring.keyring.row("k1")["inflight"] == 0


async def test_a_revoked_key_opens_nothing_and_its_running_request_ends_in_peace() -> None:
    ring = Ring()
    secret = await ring.make(Limits(concurrency=1, tokens_per_minute=10))
    with ring.asking(secret) as request:
        await ring.keyring.revoke("k1")
        assert ring.refusal(secret) is KeyUnknown
        request.spent(5)
    assert ring.keyring.rows() == []
    for change in (ring.keyring.revoke("k1"), ring.keyring.change("k1", limits={})):
        with pytest.raises(UnknownKey, match="there is no key 'k1'; keys here: none"):
            await change


async def test_two_changes_at_once_both_count() -> None:
    ring = Ring()
    await ring.make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ring.keyring.change("k1", limits={"concurrency": 1}))
        nursery.start_soon(lambda: ring.keyring.change("k1", limits={"tokens_per_minute": 2}))
    assert ring.store.keys["k1"].limits == Limits(concurrency=1, tokens_per_minute=2)
    assert ring.keyring.row("k1")["concurrency"] == 1


async def test_keys_come_back_after_a_restart() -> None:
    ring = Ring()
    secret = await ring.make(Limits(concurrency=3))
    again = Ring()
    again.keyring = Keyring(ring.store, required=True, keys=ring.store.load())
    with again.asking(secret) as request:
        assert request.caller == "key:k1"
    assert again.keyring.row("k1")["concurrency"] == 3


# -- the database --------------------------------------------------------------------------------------------------


async def test_while_the_database_is_away_keys_go_on_and_changes_are_refused() -> None:
    ring = Ring()
    secret = await ring.make(Limits(concurrency=1))
    ring.store.away = True
    changes: list[Callable[[], object]] = [
        lambda: ring.keyring.create("new", Limits(), priority=0, models=False),
        lambda: ring.keyring.change("k1", limits={"concurrency": 9}),
        lambda: ring.keyring.revoke("k1"),
    ]
    for change in changes:
        with pytest.raises(DatabaseFault):
            await change()  # type: ignore[misc]  # each is a coroutine
    assert [(row["id"], row["concurrency"]) for row in ring.keyring.rows()] == [("k1", 1)]
    assert ring.refusal(secret) is None


async def test_a_database_that_hangs_holds_up_no_request_and_is_asked_in_no_thread_of_ours() -> None:
    ring = Ring()
    secret = await ring.make()
    ring.store.hangs = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.keyring.revoke, "k1")
        await wait_all_tasks_blocked()
        assert ring.refusal(secret) is None, "it counts until the database has it"
        ring.store.hangs.set()
    assert ring.refusal(secret) is KeyUnknown
    assert threading.current_thread() not in ring.store.threads


async def written(ring: Ring, mock_clock: MockClock, calls: int) -> None:
    """Let so much time go by that it is written, and wait for the thread. No autojump: it does not wait for threads."""
    await wait_all_tasks_blocked()
    mock_clock.jump(module.USED_EVERY_S)
    while ring.store.writes < calls:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()


async def test_when_a_key_was_last_used_is_written_now_and_then_and_at_the_end(mock_clock: MockClock) -> None:
    ring = Ring()
    one, other = await ring.make(), await ring.make()
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.keyring.run)
        await written(ring, mock_clock, 0)
        assert ring.store.writes == 0, "nobody was there"
        for _ in range(50):
            assert ring.refusal(one) is None
        used_at = AT + timedelta(seconds=module.USED_EVERY_S)
        assert ring.keyring.row("k1")["last_used_at"] == "2026-01-02T03:05:05+00:00"
        assert ring.store.moments == []
        await written(ring, mock_clock, 1)
        assert ring.store.moments == [{"k1": used_at}], "when it was used, not when it was written"
        assert ring.keyring.row("k1")["last_used_at"] == "2026-01-02T03:05:05+00:00"
        assert ring.refusal(other) is None
        nursery.cancel_scope.cancel()
    assert ring.store.moments == [{"k1": used_at}, {"k2": used_at + timedelta(seconds=module.USED_EVERY_S)}]


async def test_what_could_not_be_written_is_written_later(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring()
    one, other = await ring.make(), await ring.make()
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.keyring.run)
        assert [ring.refusal(one), ring.refusal(other)] == [None, None]
        ring.store.away = True
        await written(ring, mock_clock, 1)
        ring.store.away = False
        await ring.keyring.revoke("k2")
        await written(ring, mock_clock, 2)
        nursery.cancel_scope.cancel()
    assert ring.store.moments == [{"k1": AT}]


async def test_what_the_database_has_counts_also_when_nobody_waits_for_it_any_more() -> None:
    ring = Ring()
    await ring.make()
    ring.store.hangs = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ring.keyring.change("k1", limits={"concurrency": 7}))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        ring.store.hangs.set()
    assert ring.store.keys["k1"].limits.concurrency == ring.keyring.row("k1")["concurrency"] == 7


async def test_a_gateway_without_a_database_has_no_keys() -> None:
    keyring = Keyring()
    with pytest.raises(DatabaseFault, match="there is no database"):
        await keyring.create("somebody", Limits(), priority=0, models=False)


# -- what peers' users met -----------------------------------------------------------------------------------------


async def test_a_request_costs_one_sha256_and_no_slow_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpustack#1842: a slow hash for each request took two thirds of a gateway's throughput."""
    ring = Ring()
    secret = await ring.make()
    hashed: list[bytes] = []
    sha256 = hashlib.sha256

    def counting(data: bytes) -> object:
        hashed.append(data)
        return sha256(data)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a slow hash on a request's way")

    monkeypatch.setattr(hashlib, "sha256", counting)
    for slow in ("pbkdf2_hmac", "scrypt"):
        monkeypatch.setattr(hashlib, slow, never)
    for _ in range(100):
        assert ring.refusal(secret, x_api_key=secret) is None
    assert hashed == [secret.encode()] * 100
    assert ring.refusal("unused") is KeyUnknown
    assert len(hashed) == 100, "what has not the form of a key is not even hashed"


async def test_no_request_ever_asks_the_database() -> None:
    """gpustack#1332: sessions on the requests' way ran out above fifteen at once, and came out as 401s."""
    ring = Ring()
    secret = await ring.make(Limits(concurrency=1000), models=True)
    ring.store.threads.clear()
    ring.store.away = True
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def ask(path: str) -> None:
                with ring.asking(secret, path):
                    await trio.lowlevel.checkpoint()

            for _ in range(250):
                for path in ("/api/chat", "/v1/messages", "/api/pull"):
                    nursery.start_soon(ask, path)
    assert ring.store.threads == set()
    assert ring.keyring.row("k1")["inflight"] == 0

"""What went wrong in other systems of this kind, as tests here: those that need no running Chimera.

Each docstring begins with the issue's link. The others are in tests/system/test_peers_issues.py, the table of all
fifteen in docs/peers.md.
"""

import ast
import hashlib
import heapq
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import trio

from gateway.asgi import AsgiLane
from gateway.database import open_database
from gateway.dispatch import Dispatcher
from gateway.front import Front
from gateway.key_store import KeyStore
from gateway.keyring import Keyring
from gateway.limits import Limits
from gateway.pulls import Pulls
from gateway.slots import Ticket
from supervisor import process as process_module
from supervisor import restart
from supervisor.lifecycle import State
from supervisor.procs import Proc, stat_of
from supervisor.standing import Goal
from tests.fakes.asgi import AsgiClient, Message
from tests.fakes.hall import Hall
from tests.fakes.house import fake_house, until
from tests.fakes.worker_server import says

ROOT = Path(__file__).parents[1]
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


# -- ties and counters -----------------------------------------------------------------------------------------------


def _dispatcher(*workers: str, slots: int = 4) -> Dispatcher:
    desk = Dispatcher(1000, random.Random(1).random)
    for port, worker_id in enumerate(workers, 11500):
        desk.worker_ready(worker_id, port, slots, frozenset({"m"}))
    return desk


def _given(desk: Dispatcher) -> Ticket:
    ticket = Ticket("m")
    desk.arrive(ticket)
    assert ticket.lease is not None
    return ticket


def test_equal_workers_share_and_no_counter_is_ever_wrong() -> None:
    """https://github.com/BerriAI/litellm/pull/40401

    Ties went to the first of the list, and in-flight counters expired or went below nought: 93.7 % went to one.
    """
    desk = _dispatcher("a", "b", "c")
    shares: Counter[str] = Counter()
    for _ in range(300):  # one after the other: all three are idle each time
        ticket = _given(desk)
        assert ticket.lease is not None
        shares[ticket.lease.worker_id] += 1
        desk.cancel(ticket)
    assert min(shares[worker] for worker in "abc") > 60

    held = [_given(desk) for _ in range(12)]
    desk.forgive(now=10.0**9)  # nothing is forgotten, however long it lasts
    assert [desk.inflight(worker) for worker in "abc"] == [4, 4, 4]
    for ticket in held:
        desk.cancel(ticket)
        desk.cancel(ticket)  # told twice, counted once
    assert [desk.inflight(worker) for worker in "abc"] == [0, 0, 0]
    late = _given(desk)
    assert late.lease is not None
    desk.worker_lost(late.lease.worker_id)
    desk.worker_ready(late.lease.worker_id, 11600, 4, frozenset({"m"}))
    desk.cancel(late)  # an older life's lease is none of the new one's
    assert [desk.inflight(worker) for worker in "abc"] == [0, 0, 0]


def test_a_worker_ten_times_slower_gets_a_small_share() -> None:
    """https://github.com/BerriAI/litellm/pull/38746

    The same peer's own measure: many requests in flight, one of the servers ten times slower.
    """
    desk = _dispatcher("slow", "b", "c", slots=16)
    shares: Counter[str] = Counter()
    ends: list[tuple[float, int, Ticket]] = []
    begun, now = 0, 0.0
    while begun < 1000:
        while len(ends) < 24 and begun < 1000:
            ticket = _given(desk)
            assert ticket.lease is not None
            shares[ticket.lease.worker_id] += 1
            heapq.heappush(ends, (now + (10.0 if ticket.lease.worker_id == "slow" else 1.0), begun, ticket))
            begun += 1
        now, _, ended = heapq.heappop(ends)
        assert ended.lease is not None
        desk.took(ended.lease, 0.1 if ended.lease.worker_id == "slow" else 0.01)
        desk.cancel(ended)
    assert shares["slow"] < 200


# -- the hot path ----------------------------------------------------------------------------------------------------


@dataclass
class _Touching:
    """What is opened in this process while somebody looks: files, databases, processes (PEP 578)."""

    seen: list[str] = field(default_factory=list)
    looking: bool = False

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.looking and event in ("open", "sqlite3.connect", "subprocess.Popen", "os.listdir", "os.scandir"):
            self.seen.append(f"{event} {args[:1]}")

    @contextmanager
    def look(self) -> Iterator[list[str]]:
        self.seen.clear()
        self.looking = True
        try:
            yield self.seen
        finally:
            self.looking = False


@cache
def _touching() -> _Touching:
    """The one there is: an audit hook can not be taken away again."""
    it = _Touching()
    sys.addaudithook(it.hear)
    return it


async def _no_pages(scope: Message, receive: object, send: object) -> None:
    raise AssertionError(f"a page was asked for: {scope['path']}")


async def _keyed(state_dir: Path) -> tuple[Keyring, str]:
    """Keys that are asked for, in a database that is there, and one of them."""
    store = await trio.to_thread.run_sync(lambda: KeyStore(open_database(None, state_dir)))
    keyring = Keyring(store, required=True)
    secret, _ = await keyring.create("a caller", Limits(concurrency=1), priority=0, models=False)
    return keyring, secret


async def _ask_often(hall: Hall, times: int, keyring: Keyring, secret: str) -> None:
    front = Front(hall.exchange, Pulls(hall.exchange), hall.metrics, max_body_bytes=1000, keyring=keyring)
    headers = [("content-length", str(len(CHAT))), ("authorization", f"Bearer {secret}")]
    for _ in range(times):
        client = await AsgiClient(AsgiLane(front, _no_pages), "POST", "/api/chat", headers).ask(CHAT)
        assert client.status == 200


async def test_no_password_is_hashed_for_a_request(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/gpustack/gpustack/issues/1842

    A slow hash, made to be slow, was computed for the key of each request: two thirds of the throughput.
    """

    def slow(*_: object, **__: object) -> bytes:
        raise AssertionError("a hash that is made to be slow")

    for name in ("pbkdf2_hmac", "scrypt"):
        monkeypatch.setattr(hashlib, name, slow)
    hall = Hall(nursery)
    await hall.worker("a", says(b'{"done":true}'))
    await _ask_often(hall, 20, *await _keyed(tmp_path))
    hall.upstream.close()
    slow_ones = {"argon2", "bcrypt", "crypt", "passlib", "pbkdf2_hmac", "scrypt", "werkzeug.security"}
    for module in (ROOT / "gateway").glob("*.py"):
        assert _names(module) & slow_ones == set(), f"{module.name} knows a slow hash"


def _names(module: Path) -> set[str]:
    """Every name that a module imports or asks for."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names}
            found |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


async def test_no_file_and_no_database_is_opened_for_a_request(nursery: trio.Nursery, tmp_path: Path) -> None:
    """https://github.com/gpustack/gpustack/issues/1332

    Each request took a database session to look up its key; when the pool was empty, good keys were refused (401).
    """
    hall = Hall(nursery)
    await hall.worker("a", says(b'{"done":true}'))
    keyring, secret = await _keyed(tmp_path)
    await _ask_often(hall, 1, keyring, secret)  # what is loaded once
    with _touching().look() as touched:
        await _ask_often(hall, 20, keyring, secret)
        assert touched == []
        (ROOT / "pyproject.toml").read_bytes()
        assert len(touched) == 1, "such things are seen"
    hall.upstream.close()


# -- between two lives of a worker -----------------------------------------------------------------------------------


async def test_the_next_life_waits_until_nobody_holds_the_last_ones_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/mostlygeek/llama-swap/issues/97

    The next model was started while the last one's process still held the GPU's memory.
    """
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(process_module, "GROUP_TIMEOUT_S", 10.0)
    me = stat_of("self")
    assert me is not None
    left: tuple[Proc, ...] = (me,)  # plays a runner that takes its time to go
    looked = trio.Event()

    def members(_: int) -> tuple[Proc, ...]:
        trio.from_thread.run_sync(looked.set)
        return left

    async with fake_house(tmp_path, STOP_TIMEOUT_S="0.1") as house:
        await house.store.keep((), lambda: 0.5)
        house.behaves(ignore_term=True)  # such a one is killed
        worker = house.launch()
        await until(worker, State.READY)
        monkeypatch.setattr(process_module, "members", members)
        worker.end(Goal.RESTART)
        await looked.wait()
        # it is killed, reaped, and there is no other: only when the last one is gone
        assert (worker.state, len(house.processes("w1"))) == (State.STOPPING, 0)
        assert house.events("worker_starting") == []  # the first start is no event
        left = ()
        monkeypatch.setattr(process_module, "_lives", lambda _: False)
        await until(worker, State.READY)
        assert len(house.processes("w1")) == 1

        # and as the wait has an end, nothing can hold up a worker for ever
        left = (me,)
        monkeypatch.setattr(process_module, "_lives", lambda _: True)
        monkeypatch.setattr(process_module, "GROUP_TIMEOUT_S", 0.05)
        worker.end(Goal.RESTART)
        await house.leases.wait_told("ready", "w1", times=3)


# -- the table -------------------------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| \d+ \| \[[^\]]+\]\((?P<link>[^)]+)\) \|.*\| `(?P<test>\w+)` \|$", re.MULTILINE)


def _docstrings() -> dict[str, str]:
    """What the tests of the issues say they are, by name."""
    found: dict[str, str] = {}
    for path in (ROOT / "tests").glob("**/test_peers_issues.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name] = ast.get_docstring(node) or ""
    return found


def test_the_table_of_the_fifteen_names_a_test_for_each() -> None:
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = {row["link"]: row["test"] for row in _ROW.finditer(text)}
    assert len(rows) == 15
    tests = _docstrings()
    assert {link: tests.get(name, "").partition("\n")[0] for link, name in rows.items()} == {
        link: link for link in rows
    }

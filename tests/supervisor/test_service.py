"""What systemd is told while Chimera starts, serves, reloads and goes down."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from supervisor.comeback import Comeback
from supervisor.notify import Notifier
from supervisor.restart import HEALTHY_AFTER_S
from supervisor.service import EXTENSION_S, STOP_GRACE_S, Outlook, Service, outlook

URL = "http://127.0.0.1:8000"
PRIMARY: dict[str, Any] = {"store": None, "trouble": None, "problem": None}
Words = dict[str, str | int]


def row(name: str, state: str, problem: str | None = None) -> dict[str, Any]:
    return {"id": name, "state": state, "problem": problem}


@pytest.mark.parametrize(
    ("rows", "primary", "waiting", "expected"),
    [
        ([row("w1", "IDLE"), row("w2", "BUSY")], {}, 0, Outlook(True, f"2 of 2 workers ready at {URL}")),
        ([row("w1", "IDLE"), row("w2", "STARTING")], {}, 1,
         Outlook(True, f"1 of 2 workers ready at {URL}; 1 request waiting")),
        ([row("w1", "IDLE"), row("w2", "BACKOFF", "out of memory")], {}, 7,
         Outlook(True, f"1 of 2 workers ready at {URL}; 7 requests waiting; w2: out of memory")),
        ([row("w1", "WARMING"), row("w2", "STARTING")], {"store": "pulling m: 4 %"}, 0,
         Outlook(False, "starting 2 workers: pulling m: 4 %")),
        ([row("w1", "STARTING")], {}, 0, Outlook(False, "starting 1 worker")),
        ([row("w1", "WARMING")], {"store": "m cannot be pulled; tried twice", "trouble": {"what": "…"}}, 0,
         Outlook(True, f"no worker is ready at {URL}: m cannot be pulled; tried twice")),
        ([row("w1", "WARMING")], {"problem": "port 11434 is held", "trouble": {"what": "…"}}, 0,
         Outlook(True, f"no worker is ready at {URL}: port 11434 is held")),
        ([row("w1", "BACKOFF", "out of memory"), row("w2", "STARTING")], {}, 0, Outlook(False, "starting 2 workers")),
        ([row("w1", "STARTING", "out of memory"), row("w2", "CORDONED")], {}, 0,
         Outlook(True, f"no worker is ready at {URL}: w1: out of memory; w2: CORDONED")),
        ([], {}, 0, Outlook(True, f"no worker is wanted at {URL}; add one with: chimera spawn")),
    ],
)  # fmt: skip
def test_how_the_fleet_stands(
    rows: list[dict[str, Any]], primary: dict[str, Any], waiting: int, expected: Outlook
) -> None:
    assert outlook(rows, PRIMARY | primary, waiting, URL) == expected


class Manager(Notifier):
    """A service manager that writes down what it is told; it takes nothing while it is busy."""

    def __init__(self, watchdog_s: float | None = 30.0) -> None:
        super().__init__("/run/notify", watchdog_s)
        object.__setattr__(self, "heard", [])
        object.__setattr__(self, "busy", False)

    heard: list[Words]
    busy: bool

    def say(self, **words: str | int) -> bool:
        if not self.busy:
            self.heard.append(words)
        return not self.busy

    def told(self, name: str) -> list[str | int]:
        return [words[name] for words in self.heard if name in words]


class CountedComeback(Comeback):
    """A comeback that counts how often it settled."""

    def __init__(self) -> None:
        super().__init__(None)
        self.times = 0

    def settled(self) -> None:
        self.times += 1


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def comeback() -> CountedComeback:
    return CountedComeback()


@pytest.fixture
async def service(
    manager: Manager, comeback: CountedComeback, nursery: trio.Nursery, autojump_clock: MockClock
) -> Service:
    service = Service(manager, comeback)
    await nursery.start(service.run)
    return service


async def test_ready_is_said_once_when_a_worker_is_or_the_cause_is_known(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    seen = [Outlook(False, "starting 1 worker")]
    await trio.sleep(5)
    service.serves(lambda: seen[-1])
    await trio.sleep(5)
    assert manager.told("READY") == []
    assert manager.told("EXTEND_TIMEOUT_USEC")  # a model may be pulled for hours
    seen.append(Outlook(True, "1 of 1 workers ready"))
    await trio.sleep(5)
    extended = len(manager.told("EXTEND_TIMEOUT_USEC"))
    await trio.sleep(5)
    assert manager.told("READY") == [1]
    assert manager.told("STATUS") == ["", "starting 1 worker", "1 of 1 workers ready"][-2:]
    assert len(manager.told("EXTEND_TIMEOUT_USEC")) == extended


async def test_the_watchdog_hears_at_each_beat_and_nothing_more_once_the_loop_stands(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    service.serves(lambda: Outlook(True, "ready"))
    before = len(manager.told("WATCHDOG"))
    await trio.sleep(30)
    assert len(manager.told("WATCHDOG")) - before >= 29


async def test_a_short_watchdog_hears_more_often(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    manager = Manager(watchdog_s=0.9)
    service = Service(manager, CountedComeback())
    await nursery.start(service.run)
    await trio.sleep(3)
    assert len(manager.told("WATCHDOG")) >= 9


async def test_what_a_busy_manager_did_not_take_is_said_again(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    object.__setattr__(manager, "busy", True)
    service.serves(lambda: Outlook(True, "ready"))
    service.reloaded()
    object.__setattr__(manager, "busy", False)
    await trio.sleep(3)
    assert manager.told("STATUS") == ["ready"]
    assert len(manager.told("READY")) >= 1


async def test_a_reload_is_announced_with_its_moment_and_ended_with_ready(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    service.serves(lambda: Outlook(True, "ready"))
    manager.heard.clear()
    service.reloading()
    service.reloaded()
    first = manager.heard[0]
    assert first["RELOADING"] == 1
    assert isinstance(first["MONOTONIC_USEC"], int)
    assert manager.told("READY") == [1]


async def test_a_note_stands_beside_the_state_until_it_is_taken_away(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    service.serves(lambda: Outlook(True, "ready"))
    service.note("w1 restarts")
    await trio.sleep(2)
    service.note("")
    await trio.sleep(2)
    assert manager.told("STATUS") == ["ready", "ready; w1 restarts", "ready"]


async def test_a_stop_is_drawn_out_while_the_loop_turns_and_no_longer_than_it_may_take(
    service: Service, manager: Manager, autojump_clock: MockClock
) -> None:
    service.serves(lambda: Outlook(True, "ready"))
    manager.heard.clear()
    service.stops("stopping", within_s=100)
    await trio.sleep(100 + STOP_GRACE_S)
    told = manager.told("EXTEND_TIMEOUT_USEC")
    assert manager.told("STOPPING") == [1]
    assert set(told) == {round(EXTENSION_S * 1e6)}
    assert len(told) >= 100
    await trio.sleep(10)
    assert len(manager.told("EXTEND_TIMEOUT_USEC")) - len(told) <= 1
    assert manager.told("STATUS") == ["stopping"]


async def test_a_start_has_come_to_something_after_a_minute_or_with_an_orderly_end(
    service: Service, comeback: CountedComeback, autojump_clock: MockClock
) -> None:
    service.serves(lambda: Outlook(True, "ready"))
    await trio.sleep(HEALTHY_AFTER_S - 5)
    assert comeback.times == 0
    await trio.sleep(10)
    assert comeback.times == 1
    service.stops("stopping", 0)
    assert comeback.times == 2

"""Houses in which workers live quickly, each with the fake ollama as a real process; and what a test asks of a worker.

The fixtures `quick`, `house` and `model_house` are for tests to import.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisor import restart, watch
from supervisor.lifecycle import State
from supervisor.placement import Placement
from supervisor.worker import Worker
from tests.fakes.fake_ollama import add_model
from tests.fakes.house import FakeHouse, fake_house, group_lives, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "FIRST_DELAY_S", 0.05)
    for name in ("LOOK_INTERVAL_S", "PROBE_INTERVAL_S", "PS_INTERVAL_S"):
        monkeypatch.setattr(watch, name, 0.02)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[FakeHouse]:
    async with fake_house(tmp_path, STOP_TIMEOUT_S="3", DRAIN_TIMEOUT_S="10") as fake:
        await fake.store.keep((), lambda: 0.5)
        yield fake
    assert fake.processes("w1") == [], "a process outlived its cancelled worker"


@pytest.fixture
async def model_house(tmp_path: Path) -> AsyncIterator[FakeHouse]:
    """The same with a required model, which is in the store."""
    add_model(tmp_path / "models", "tiny")
    async with fake_house(tmp_path, STOP_TIMEOUT_S="3", DRAIN_TIMEOUT_S="10", REQUIRED_MODEL="tiny") as fake:
        await fake.store.keep((), lambda: 0.5)
        yield fake
    assert fake.processes("w1") == [], "a process outlived its cancelled worker"


async def ready(house: FakeHouse, placement: Placement | None = None) -> Worker:
    it = house.launch() if placement is None else house.launch(placement=placement)
    await until(it, State.READY)
    return it


def pid_of(it: Worker) -> int:
    assert it.process is not None
    return it.process.pid


def group_is_gone(pid: int) -> bool:
    return not group_lives(pid)

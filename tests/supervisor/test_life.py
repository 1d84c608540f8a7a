"""One life of a worker, with the fake ollama as a real process on real time: becoming ready, and giving leases."""

import socket
from pathlib import Path

import psutil
import pytest
import trio

from supervisor.lifecycle import State
from supervisor.placement import Placement
from supervisor.standing import Goal
from supervisor.trouble import problem_of
from tests.fakes.fake_ollama import add_model
from tests.fakes.house import FakeHouse, fake_house, until
from tests.fakes.lives import house, model_house, pid_of, quick, ready

GPU = Placement("GPU-aaaaaaaa")
SLOW_S = 60.0  # long enough that a test which waits for it fails

__all__ = ["house", "model_house", "quick"]  # fixtures


# -- becoming ready --------------------------------------------------------------------------------------------------


async def test_a_worker_is_ready_when_it_answers_on_its_own_port(house: FakeHouse) -> None:
    it = await ready(house)

    connections = psutil.Process(pid_of(it)).net_connections("tcp")
    assert [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN] == [it.port]
    assert house.leases.heard("w1") == ["ready"]
    assert (house.leases.ports["w1"], house.leases.slots["w1"]) == (it.port, 2)
    assert [event["event"] for event in house.house.events.newest()] == ["worker_warming", "worker_ready"]
    assert (it.restarts, problem_of(it), it.last_exit) == (0, None, None)


async def test_a_worker_is_ready_only_with_the_required_model_loaded(model_house: FakeHouse) -> None:
    it = await ready(model_house)

    assert it.models == model_house.leases.serving["w1"] == {"tiny:latest"}
    assert [p for p in model_house.processes("w1") if "fake-runner" in p.cmdline()] != []


async def test_a_worker_waits_for_the_model_to_be_in_the_store(tmp_path: Path) -> None:
    async with fake_house(tmp_path, REQUIRED_MODEL="tiny") as house:
        it = house.launch()
        await until(it, State.WARMING)
        assert house.leases.heard("w1") == []
        add_model(tmp_path / "models", "tiny")
        await house.store.keep((), lambda: 0.5)
        await until(it, State.READY)


async def test_a_model_that_does_not_load_is_a_failed_start_with_ollamas_reason(model_house: FakeHouse) -> None:
    model_house.behaves(load_error="out of memory")
    it = model_house.launch()
    await until(it, State.BACKOFF)
    assert problem_of(it) is not None
    assert "tiny cannot be loaded" in (problem_of(it) or "")
    assert "out of memory" in (problem_of(it) or "")
    assert "ready" not in model_house.leases.heard("w1")

    model_house.behaves()
    await until(it, State.READY)
    assert problem_of(it) is None


async def test_a_port_that_a_stranger_has_is_not_taken(house: FakeHouse) -> None:
    base = house.house.settings.worker_port_base
    with socket.create_server(("127.0.0.1", base)):
        it = await ready(house)
        assert it.port == base + 1


async def test_a_strangers_answer_on_the_port_does_not_make_a_worker_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_house(tmp_path, START_TIMEOUT_S="5") as house:
        other = await ready(house)
        assert other.port is not None
        monkeypatch.setattr(house.house.ports, "take", lambda _preferred: other.port)
        it = house.launch("w2")

        await until(it, State.BACKOFF)

        assert "ready" not in house.leases.heard("w2")
        assert other.state is State.READY


async def test_a_port_lost_between_two_starts_is_replaced(house: FakeHouse) -> None:
    it = await ready(house)
    before = it.port
    assert before is not None
    it.end(Goal.QUARANTINE)
    await until(it, State.QUARANTINED)
    with socket.create_server(("127.0.0.1", before)):
        it.release()
        await until(it, State.READY)
        assert it.port != before


# -- leases and drains -----------------------------------------------------------------------------------------------


async def test_a_removal_waits_for_the_leases(house: FakeHouse) -> None:
    it = await ready(house)
    house.leases.hold("w1", 2)
    it.end(Goal.REMOVE)
    await until(it, State.DRAINING)
    assert not house.leases.takes_leases("w1")
    assert psutil.pid_exists(pid_of(it))
    house.leases.free("w1")
    await until(it, State.GONE)
    heard = house.leases.heard("w1")
    assert heard[:5] == ["ready", "hold", "cordon", "free", "lost"]
    assert set(heard[5:]) <= {"lost"}


async def test_a_removal_waits_no_longer_than_the_drain_timeout(tmp_path: Path) -> None:
    async with fake_house(tmp_path, DRAIN_TIMEOUT_S="0.3") as house:
        await house.store.keep((), lambda: 0.5)
        it = await ready(house)
        house.leases.hold("w1")
        before = trio.current_time()
        it.end(Goal.REMOVE)
        await until(it, State.GONE)
        assert trio.current_time() - before >= 0.3


async def test_force_ends_a_wait_that_has_begun(house: FakeHouse) -> None:
    it = await ready(house)
    house.leases.hold("w1")
    it.end(Goal.REMOVE)
    await until(it, State.DRAINING)
    it.end(Goal.REMOVE, force=True)
    await until(it, State.GONE)
    assert house.leases.heard("w1")[-1] == "lost", "its lease has not ended"


async def test_a_drain_keeps_the_worker_cordoned_and_an_uncordon_brings_it_back(house: FakeHouse) -> None:
    it = await ready(house)
    house.leases.hold("w1")
    it.drain()
    await until(it, State.DRAINING)
    house.leases.free("w1")
    await until(it, State.CORDONED)
    assert not house.leases.takes_leases("w1")
    it.uncordon()
    await until(it, State.READY)
    assert house.leases.takes_leases("w1")
    assert it.restarts == 0


@pytest.mark.parametrize("pauses", range(1, 5))
async def test_a_drain_asked_for_again_at_any_moment_still_ends_cordoned(house: FakeHouse, pauses: int) -> None:
    it = await ready(house)
    house.leases.hold("w1")
    it.drain()
    await until(it, State.DRAINING)
    it.uncordon()
    for _ in range(pauses):
        await trio.lowlevel.checkpoint()
    it.drain()
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    house.leases.free("w1")
    await until(it, State.CORDONED, deadline_s=2)


async def test_cordoned_stays_cordoned_over_a_restart(house: FakeHouse) -> None:
    it = await ready(house)
    it.cordon()
    await until(it, State.CORDONED)
    pid = pid_of(it)
    it.end(Goal.RESTART)
    await until(it, State.STARTING)
    await until(it, State.CORDONED)
    assert pid_of(it) != pid
    assert not house.leases.takes_leases("w1")


async def test_a_worker_cordoned_before_it_is_ready_never_takes_a_lease(house: FakeHouse) -> None:
    it = house.launch()
    it.cordon()
    await until(it, State.CORDONED)
    assert house.leases.heard("w1") == ["ready", "cordon"]
    assert not house.leases.takes_leases("w1")


# -- the primary -----------------------------------------------------------------------------------------------------


async def test_the_primary_is_ready_without_a_model(model_house: FakeHouse) -> None:
    model_house.behaves(load_error="nobody may load here")
    it = model_house.launch("primary")
    with trio.fail_after(30):
        await it.wait_ready()
    assert it.models == frozenset()

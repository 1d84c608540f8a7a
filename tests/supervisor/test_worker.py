"""One worker's life, with the fake ollama as a real process on real time: short, and waiting on conditions only."""

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from supervisor import lifecycle, restart
from supervisor.lifecycle import State
from supervisor.placement import Placement
from supervisor.standing import Goal
from supervisor.trouble import problem_of
from supervisor.worker import Worker
from tests.fakes.fake_ollama import add_model
from tests.fakes.house import FakeHouse, fake_house, marked, until
from tests.fakes.lives import group_is_gone, house, model_house, pid_of, quick, ready

GPU = Placement("GPU-aaaaaaaa")
SLOW_S = 60.0  # long enough that a test which waits for it fails

__all__ = ["house", "model_house", "quick"]  # fixtures


# -- failing ---------------------------------------------------------------------------------------------------------


async def test_a_killed_server_is_lost_at_once_and_started_again(model_house: FakeHouse) -> None:
    it = await ready(model_house)
    pid, before = pid_of(it), trio.current_time()

    os.kill(pid, signal.SIGKILL)

    with trio.fail_after(30):
        lost = await model_house.leases.wait_told("lost", "w1")
        assert lost.at - before < 1
        await until(it, State.BACKOFF)
        assert group_is_gone(pid)
        await until(it, State.READY)
    assert pid_of(it) != pid
    assert it.restarts == 1
    assert it.last_exit is not None
    assert it.last_exit.status is not None
    assert it.last_exit.reason == "its process ended by itself (killed by SIGKILL)"
    assert it.last_exit.status.signal == "SIGKILL"
    assert any("fake ollama listens" in line for line in it.last_exit.log)


@pytest.mark.parametrize("state", [State.READY, State.CORDONED, State.DRAINING])
async def test_a_server_that_dies_is_restarted_whatever_it_was_asked_for(house: FakeHouse, state: State) -> None:
    it = await BRING[state](house)
    os.kill(pid_of(it), signal.SIGKILL)
    await until(it, State.BACKOFF)
    await until(it, State.READY if state is State.READY else State.CORDONED)
    assert it.restarts == 1
    assert house.leases.takes_leases("w1") is (state is State.READY)


async def test_a_server_that_dies_while_it_is_drained_for_removal_is_removed(house: FakeHouse) -> None:
    it = await ready(house)
    house.leases.hold("w1")
    it.end(Goal.REMOVE)
    await until(it, State.DRAINING)
    os.kill(pid_of(it), signal.SIGKILL)
    await until(it, State.GONE)


async def test_a_server_that_ends_at_its_start_is_retried_with_growing_delays_until_it_works(house: FakeHouse) -> None:
    house.behaves(exit_at_start=3)
    it = house.launch()
    with trio.fail_after(30):
        while it.restarts < 3:
            await it.wait_changed()
    delays = [event["retry_in_s"] for event in house.events("worker_backoff")]
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert it.last_exit is not None
    assert it.last_exit.status is not None
    assert it.last_exit.status.code == 3
    assert it.last_exit.log[-1] == "Error: fake ollama was asked to exit"

    house.behaves()
    await until(it, State.READY)
    assert problem_of(it) is None


async def test_a_server_that_never_answers_well_is_a_failed_start(tmp_path: Path) -> None:
    async with fake_house(tmp_path, START_TIMEOUT_S="3") as house:
        house.behaves(never_ready=True)
        it = house.launch()
        await until(it, State.BACKOFF)
        assert problem_of(it) == (
            f"it did not answer on port {it.port} within 3 s (START_TIMEOUT_S); failed 1 times in a row"
        )
        house.behaves()
        await until(it, State.READY)


async def test_a_server_that_no_longer_answers_is_replaced(tmp_path: Path) -> None:
    async with fake_house(tmp_path, HANG_TIMEOUT_S="1") as house:
        it = await ready(house)
        pid = pid_of(it)
        house.behaves(never_ready=True)
        await until(it, State.BACKOFF)
        assert it.last_exit is not None
        assert it.last_exit.reason.startswith("it answers no probe")
        assert group_is_gone(pid)
        house.behaves()
        await until(it, State.READY)


async def test_the_models_a_worker_holds_are_told(house: FakeHouse, tmp_path: Path) -> None:
    it = await ready(house)
    assert it.port is not None
    add_model(tmp_path / "models", "late")
    await house.house.prober.load(it.port, "late", 5)
    with trio.fail_after(30):
        while house.leases.serving["w1"] != {"late:latest"}:
            await trio.sleep(0.01)
    assert it.models == {"late:latest"}


async def test_a_start_that_cannot_even_begin_backs_off_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_house(tmp_path) as house:
        monkeypatch.setattr(subprocess, "Popen", _no_such_program)
        it = house.launch()
        await until(it, State.BACKOFF)
        assert "setpriv cannot be started" in (problem_of(it) or "")
        assert it.last_exit is not None
        assert (it.last_exit.status, it.last_exit.log) == (None, ())


async def test_a_worker_whose_log_cannot_be_written_serves_and_says_so(tmp_path: Path) -> None:
    async with fake_house(tmp_path) as house:
        await house.store.keep((), lambda: 0.5)
        (tmp_path / "logs").write_text("a file where the directory should be")
        it = await ready(house)
        assert "cannot be written" in (problem_of(it) or "")


def _no_such_program(*_args: object, **_kwargs: object) -> None:
    raise FileNotFoundError(2, "No such file or directory")


async def test_a_worker_whose_gpu_is_missing_waits_and_says_why(house: FakeHouse) -> None:
    house.gpu_problems[GPU] = "GPU GPU-aaaaaaaa is not there"
    it = house.launch(placement=GPU)
    await until(it, State.BACKOFF)
    assert problem_of(it) == "GPU GPU-aaaaaaaa is not there; failed 1 times in a row"
    assert it.last_exit is not None
    assert it.last_exit.reason == "GPU GPU-aaaaaaaa is not there"
    assert house.processes("w1") == []
    house.gpu_problems.clear()
    await until(it, State.READY)


async def test_the_log_of_an_older_process_is_not_shown_for_a_start_that_never_happened(house: FakeHouse) -> None:
    it = await ready(house, GPU)
    house.gpu_problems[GPU] = "GPU 0: the GPU is lost"
    os.kill(pid_of(it), signal.SIGKILL)
    with trio.fail_after(30):
        while it.last_exit is None or it.last_exit.reason != "GPU 0: the GPU is lost":
            await it.wait_changed()
    assert it.last_exit.log == ()


# -- ending ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_ignores_term_is_killed(tmp_path: Path) -> None:
    async with fake_house(tmp_path, STOP_TIMEOUT_S="0.3") as house:
        await house.store.keep((), lambda: 0.5)
        house.behaves(ignore_term=True)
        it = await ready(house)
        pid, before = pid_of(it), trio.current_time()
        it.end(Goal.REMOVE, force=True)
        await until(it, State.GONE)
        assert trio.current_time() - before >= 0.3
        assert group_is_gone(pid)
        assert it.last_exit is not None
        assert it.last_exit.status is not None
        assert it.last_exit.status.signal == "SIGKILL"


@pytest.mark.parametrize("how", ["killed", "removed"])
async def test_a_runner_left_behind_is_ended_too(model_house: FakeHouse, how: str) -> None:
    model_house.behaves(leave_runner=True)
    it = await ready(model_house)
    pid = pid_of(it)
    assert len(model_house.processes("w1")) == 2
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
        await until(it, State.BACKOFF)
    else:
        it.end(Goal.REMOVE)
        await until(it, State.GONE)
    assert group_is_gone(pid)


# -- every order in every state --------------------------------------------------------------------------------------


async def _starting(house: FakeHouse) -> Worker:
    house.behaves(start_s=SLOW_S)
    it = house.launch()
    with trio.fail_after(30):
        while it.process is None:
            await trio.sleep(0.005)
    return it


async def _warming(house: FakeHouse) -> Worker:
    house.behaves(load_s=SLOW_S)
    it = house.launch()
    await until(it, State.WARMING)
    return it


async def _cordoned(house: FakeHouse) -> Worker:
    it = await ready(house)
    it.cordon()
    await until(it, State.CORDONED)
    return it


async def _draining(house: FakeHouse) -> Worker:
    it = await ready(house)
    house.leases.hold("w1")
    it.drain()
    await until(it, State.DRAINING)
    return it


async def _stopping(house: FakeHouse) -> Worker:
    house.behaves(ignore_term=True)
    it = await ready(house)
    it.end(Goal.RESTART, force=True)
    await until(it, State.STOPPING)
    return it


async def _backing_off(house: FakeHouse) -> Worker:
    house.behaves(exit_at_start=1)
    it = house.launch()
    await until(it, State.BACKOFF)
    return it


async def _quarantined(house: FakeHouse) -> Worker:
    it = await ready(house)
    it.end(Goal.QUARANTINE)
    await until(it, State.QUARANTINED)
    return it


BRING = {
    State.STARTING: _starting,
    State.WARMING: _warming,
    State.READY: ready,
    State.CORDONED: _cordoned,
    State.DRAINING: _draining,
    State.STOPPING: _stopping,
    State.BACKOFF: _backing_off,
    State.QUARANTINED: _quarantined,
}
IN_ANY_STATE = pytest.mark.parametrize("state", BRING)


def test_every_state_but_the_end_can_be_brought_about() -> None:
    assert set(BRING) == set(State) - {State.GONE}


@pytest.fixture
async def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    """A house whose workers stay in the state that they were brought to."""
    monkeypatch.setattr(restart, "FIRST_DELAY_S", SLOW_S)
    add_model(tmp_path / "models", "tiny")
    async with fake_house(tmp_path, STOP_TIMEOUT_S="0.2", DRAIN_TIMEOUT_S="20", REQUIRED_MODEL="tiny") as fake:
        await fake.store.keep((), lambda: 0.5)
        yield fake
    assert fake.processes("w1") == [], "a process outlived its cancelled worker"


@IN_ANY_STATE
async def test_a_worker_can_be_removed_in_any_state(patient: FakeHouse, state: State) -> None:
    it = await BRING[state](patient)
    assert it.state is state
    pid = it.process.pid if it.process else None
    it.end(Goal.REMOVE, force=True)
    await until(it, State.GONE, deadline_s=4)
    assert patient.processes("w1") == []
    assert pid is None or group_is_gone(pid)
    assert "w1" not in patient.leases.serving


@IN_ANY_STATE
async def test_a_cancelled_worker_leaves_no_process_in_any_state(patient: FakeHouse, state: State) -> None:
    with trio.fail_after(8):
        async with trio.open_nursery() as patient.nursery:
            await BRING[state](patient)
            patient.nursery.cancel_scope.cancel()
    assert patient.processes("w1") == []
    assert "w1" not in patient.leases.serving


@IN_ANY_STATE
async def test_a_worker_can_be_restarted_in_any_state_but_quarantine(patient: FakeHouse, state: State) -> None:
    it = await BRING[state](patient)
    pid = it.process.pid if it.process else None
    patient.behaves()
    patient.leases.free("w1")
    it.end(Goal.RESTART)
    if state is State.QUARANTINED:
        assert it.state is State.QUARANTINED
        assert it.goal is Goal.QUARANTINE
        it.release()
    cordoned = state in (State.CORDONED, State.DRAINING)
    with trio.fail_after(6):
        await patient.leases.wait_told("ready", "w1", 2 if "ready" in patient.leases.heard("w1") else 1)
    await until(it, State.CORDONED if cordoned else State.READY)
    assert pid_of(it) != pid
    assert it.restarts == 1


@IN_ANY_STATE
async def test_a_worker_can_be_quarantined_in_any_state_and_released(patient: FakeHouse, state: State) -> None:
    it = await BRING[state](patient)
    patient.behaves()
    patient.leases.free("w1")
    it.end(Goal.QUARANTINE)
    await until(it, State.QUARANTINED, deadline_s=4)
    assert patient.processes("w1") == []
    it.end(Goal.RESTART)
    assert it.goal is Goal.QUARANTINE
    it.release()
    await until(it, State.CORDONED if state in (State.CORDONED, State.DRAINING) else State.READY)


@IN_ANY_STATE
async def test_what_is_wanted_of_leases_holds_as_soon_as_the_worker_serves(patient: FakeHouse, state: State) -> None:
    it = await BRING[state](patient)
    it.cordon()
    patient.behaves()
    patient.leases.free("w1")
    if state in (State.STARTING, State.WARMING, State.BACKOFF):
        it.end(Goal.RESTART)  # the fake goes on waiting otherwise
    it.release()
    await until(it, State.CORDONED, deadline_s=5)
    assert not patient.leases.takes_leases("w1")
    it.uncordon()
    await until(it, State.READY)
    assert patient.leases.takes_leases("w1")
    it.drain()
    await until(it, State.CORDONED)


async def test_a_release_on_the_way_to_quarantine_restarts_the_worker(patient: FakeHouse) -> None:
    it = await ready(patient)
    patient.leases.hold("w1")
    it.end(Goal.QUARANTINE)
    await until(it, State.DRAINING)
    it.release()
    patient.leases.free("w1")
    await until(it, State.STARTING)
    await until(it, State.READY)
    assert patient.events("worker_quarantined") == []


async def test_a_removal_is_never_taken_back(patient: FakeHouse) -> None:
    it = await ready(patient)
    patient.leases.hold("w1")
    it.end(Goal.REMOVE)
    await until(it, State.DRAINING)
    it.end(Goal.RESTART)
    it.end(Goal.QUARANTINE)
    it.release()
    it.uncordon()
    patient.leases.free("w1")
    await until(it, State.GONE)


async def test_a_start_that_hangs_does_not_delay_a_removal(patient: FakeHouse) -> None:
    it = await _starting(patient)
    assert it.port is not None
    with socket.create_server(("127.0.0.1", it.port)) as silent, trio.fail_after(SLOW_S / 2):
        probing, _ = await trio.to_thread.run_sync(silent.accept)  # a probe that gets no answer has begun
        it.end(Goal.REMOVE)
        await until(it, State.GONE)
        probing.close()


async def test_an_event_that_the_table_does_not_have_is_a_bug_that_shows(house: FakeHouse) -> None:
    it = house.worker()
    with pytest.raises(lifecycle.IllegalTransition):
        it._move(lifecycle.Event.WARMED, cause="a test")


async def test_uptime_counts_from_the_start_of_the_process(house: FakeHouse) -> None:
    it = await ready(house)
    assert it.process is not None
    assert it.uptime_s(it.process.started_monotonic + 12.34) == 12.3
    assert it.running
    it.end(Goal.QUARANTINE)
    await until(it, State.QUARANTINED)
    assert it.uptime_s(trio.current_time()) is None
    assert not it.running


def test_marks_are_found_only_where_they_are() -> None:
    assert marked("no such mark") == []

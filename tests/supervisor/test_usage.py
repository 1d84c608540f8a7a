"""What worker processes use, measured on real ones."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from supervisor import usage
from supervisor.procs import Census, Proc
from supervisor.usage import Usage, UsageMeter

# A parent with one child, both waiting; or one that is busy.
FAMILY = (
    "import subprocess, sys, signal; "
    "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import signal; signal.alarm(60); signal.pause()']); "
    "print(child.pid, flush=True); signal.alarm(60); sys.stdin.read(); child.kill(); child.wait()"
)
BUSY = "print(flush=True)\nimport signal; signal.alarm(60)\nwhile True: pass"


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """The pids of a parent and its child."""
    with start(FAMILY) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())


def test_a_workers_children_count_with_it(family: tuple[int, int]) -> None:
    measured = UsageMeter().measure({"w1": family[0]}, 0.0)["w1"]
    assert measured.pids == set(family)
    assert measured.rss_bytes > 2 * 1024**2


def test_cpu_is_what_was_spent_between_two_looks() -> None:
    meter = UsageMeter()
    with start(BUSY) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert meter.measure({"w1": child.pid}, 0.0)["w1"].cpu_percent == 0.0
        busy = 0.0
        for second in range(1, 100):
            busy = max(busy, meter.measure({"w1": child.pid}, float(second))["w1"].cpu_percent)
            if busy > 1:
                break
            child_wait(child, 0.05)
        child.kill()
    assert busy > 1


def test_a_stopped_process_is_seen(family: tuple[int, int]) -> None:
    meter = UsageMeter()
    assert meter.measure({"w1": family[0]}, 0.0)["w1"].stopped == frozenset()
    os.kill(family[1], signal.SIGSTOP)
    looks = (meter.measure({"w1": family[0]}, float(look))["w1"].stopped for look in range(1, 1000))
    assert next(stopped for stopped in looks if stopped) == {family[1]}
    os.kill(family[1], signal.SIGCONT)


def test_runners_are_told_from_their_server(family: tuple[int, int]) -> None:
    measured = UsageMeter().measure({"w1": family[0]}, 0.0)["w1"]
    assert measured.leader == family[0]
    assert measured.runner_pids == {family[1]}
    assert measured.private_bytes is not None
    assert measured.private_bytes > 0


def test_a_process_stuck_in_the_kernel_is_told_after_several_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, state = UsageMeter(), "D"
    monkeypatch.setattr(Census, "take", lambda _self, _wanted: {7: (Proc(7, 1, 7, state, 0, 1, 0),)})
    seen = [meter.measure({"w1": 7}, float(look))["w1"].stuck for look in range(usage.STUCK_LOOKS)]
    assert seen == [frozenset()] * (usage.STUCK_LOOKS - 1) + [frozenset({7})]
    state = "S"
    assert meter.measure({"w1": 7}, 90.0)["w1"].stuck == frozenset()


def test_private_memory_is_asked_for_now_and_then_and_of_new_processes_at_once(
    family: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def thousand(pid: int) -> int:
        asked.append(pid)
        return 1000

    monkeypatch.setattr(usage, "private_bytes", thousand)
    meter = UsageMeter()
    seen = [meter.measure({"w1": family[0]}, float(look))["w1"].private_bytes for look in range(usage.PRIVATE_EVERY)]
    assert (sorted(asked), set(seen)) == (sorted(family), {2000})
    meter.measure({"w1": family[0]}, 99.0)
    assert sorted(asked) == sorted(family * 2)


def test_a_runner_whose_server_is_gone_is_still_the_workers() -> None:
    with start("import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)") as leader:
        assert leader.stdout is not None
        runner = int(leader.stdout.readline())
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
        measured = UsageMeter().measure({"w1": leader.pid}, 0.0)["w1"]
        os.killpg(leader.pid, signal.SIGKILL)
    assert measured.pids == measured.runner_pids == {runner}


def child_wait(child: "subprocess.Popen[bytes]", seconds: float) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(seconds)


def test_a_process_that_is_gone_uses_nothing_and_is_forgotten() -> None:
    meter = UsageMeter()
    with start(BUSY) as child:
        meter.measure({"w1": child.pid}, 0.0)
        child.kill()
        assert meter.measure({"w1": child.pid}, 1.0).keys() == {"w1"}  # dead, not yet reaped
    assert meter.measure({"w1": child.pid}, 2.0) == {"w1": Usage(leader=child.pid, measured_at=2.0)}
    assert meter.measure({}, 3.0) == {}
    assert (meter._ticks, meter._private, meter._in_d) == ({}, {}, {})


async def test_the_newest_figures_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL_S", 0.01)
    meter, leaders = UsageMeter(), {"me": os.getpid()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.watch, lambda: leaders)
        with trio.fail_after(30):
            while "me" not in meter.latest:
                await trio.sleep(0.01)
            leaders.clear()
            while meter.latest:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_looked_at_for_once_keeps_its_last_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL_S", 0.01)
    meter, leaders = UsageMeter(), {"w1": os.getpgrp(), "w2": os.getpgrp()}
    good = meter.measure

    def no_descriptor(_leaders: dict[str, int], _now: float) -> dict[str, Usage]:
        raise OSError(24, "Too many open files")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.watch, lambda: leaders)
        with trio.fail_after(30):
            while "w2" not in meter.latest:
                await trio.sleep(0.01)
            monkeypatch.setattr(meter, "measure", no_descriptor)
            del leaders["w1"]
            while "w1" in meter.latest:
                await trio.sleep(0.01)
            before = meter.latest["w2"]
            assert before.pids
            monkeypatch.setattr(meter, "measure", good)
            while meter.latest["w2"].measured_at == before.measured_at:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

"""What worker processes use, measured on real ones."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from supervisor import usage
from supervisor.usage import Usage, UsageMeter

# A parent with one child, both waiting; or one that is busy.
FAMILY = (
    "import subprocess, sys, signal; "
    "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import signal; signal.alarm(60); signal.pause()']); "
    "print(child.pid, flush=True); signal.alarm(60); sys.stdin.read(); child.kill(); child.wait()"
)
BUSY = "print(flush=True)\nimport signal; signal.alarm(60)\nwhile True: pass"


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """The pids of a parent and its child."""
    with start(FAMILY) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())


def test_a_workers_children_count_with_it(family: tuple[int, int]) -> None:
    measured = UsageMeter().measure({"w1": family[0]})["w1"]
    assert measured.pids == set(family)
    assert measured.rss_bytes > 2 * 1024**2


def test_cpu_is_measured_between_two_looks() -> None:
    meter = UsageMeter()
    with start(BUSY) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert meter.measure({"w1": child.pid})["w1"].cpu_percent == 0.0
        busy = 0.0
        for _ in range(100):
            busy = max(busy, meter.measure({"w1": child.pid})["w1"].cpu_percent)
            if busy > 10:
                break
            child_wait(child, 0.02)
        child.kill()
    assert busy > 10


def child_wait(child: "subprocess.Popen[bytes]", seconds: float) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(seconds)


def test_a_process_that_is_gone_uses_nothing_and_is_forgotten() -> None:
    meter = UsageMeter()
    with start(BUSY) as child:
        meter.measure({"w1": child.pid})
        child.kill()
        assert meter.measure({"w1": child.pid}).keys() == {"w1"}  # dead, not yet reaped
    assert meter.measure({"w1": child.pid}) == {"w1": Usage()}
    assert meter.measure({}) == {}
    assert meter._known == {}


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

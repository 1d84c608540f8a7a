"""A process of ours that holds a GPU and that no worker has is ended; everybody else's is left alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from supervisor import strays
from supervisor.command import MARK, mark_of
from supervisor.events import EventLog
from supervisor.gpu import Gpu, GpuProcess, GpuReading
from supervisor.strays import end_marked, end_strays, on_gpus

WAITING = [sys.executable, "-I", "-S", "-c", "import signal; signal.alarm(60); signal.pause()"]


@contextmanager
def process(**environ: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(WAITING, env=dict(os.environ) | environ, start_new_session=True) as child:
        yield child
        child.kill()


def reading(*pids: int, fault: str | None = None) -> GpuReading:
    processes = tuple(GpuProcess(pid, 1) for pid in pids)
    return GpuReading((Gpu(0, "GPU-a", "Fake", 100, 1, 0, 30, 50.0, processes, None),), "570", fault)


def test_only_what_is_ours_and_nobodys_is_ended(tmp_path: Path) -> None:
    mark = mark_of(tmp_path, "w1").removesuffix("w1")
    with (
        process(**{MARK: mark_of(tmp_path, "w1")}) as ours,
        process() as others,
        process(**{MARK: mark_of(tmp_path / "another", "w1")}) as anothers,
    ):
        pids = frozenset({ours.pid, others.pid, anothers.pid, 2**22 + 1})
        assert end_marked(pids, frozenset({os.getpid()}), mark) == [], "it descends from a process that is known"
        assert end_marked(pids, frozenset(), mark) == [(ours.pid, "w1")]
        assert ours.wait(30) == -9
        assert (others.poll(), anothers.poll()) == (None, None)


def test_a_reading_that_cannot_be_relied_on_names_nobody() -> None:
    assert on_gpus(reading(7)) == {7}
    assert on_gpus(reading(7, fault="NVML has not answered for 9 s")) == frozenset()


async def test_a_stray_is_ended_at_the_second_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strays, "LOOK_INTERVAL_S", 0.02)
    events = EventLog()
    with process(**{MARK: mark_of(tmp_path, "w7")}) as ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_strays, lambda: reading(ours.pid), frozenset, tmp_path, events)
            with trio.fail_after(30):
                while not events.newest():
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert ours.wait(30) == -9
    (event,) = events.newest()
    assert (event["event"], event["pid"], event["worker"]) == ("stray_ended", ours.pid, "w7")

"""Lines written in batches from a thread: nobody waits for a disk."""

import threading
from collections.abc import Callable, Sequence

import pytest
import trio
from structlog.testing import capture_logs

from supervisor import lines as module
from supervisor.lines import LineWriter


class Disk:
    """Where lines go; it may be full, or take nothing until it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.full = False
        self.stuck = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def write(self, place: str, lines: Sequence[str]) -> None:
        self.stuck.set()
        assert self.free.wait(20)
        if self.full:
            raise OSError(28, "No space left on device")
        self.batches.append((place, list(lines)))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what threads do; nothing depends on how long it takes."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.001)
    monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 20.0)


async def test_lines_of_a_moment_are_one_batch_for_each_place(nursery: trio.Nursery) -> None:
    disk = Disk()
    writer = LineWriter("a disk", disk.write)
    await nursery.start(writer.run)
    for line in ("1", "2"):
        writer.put("a", line)
    writer.put("b", "3")
    assert disk.batches == []
    await until(lambda: len(disk.batches) == 2)
    writer.put("a", "4")
    await until(lambda: len(disk.batches) == 3)
    assert disk.batches == [("a", ["1", "2"]), ("b", ["3"]), ("a", ["4"])]


async def test_the_last_lines_are_written_at_the_end() -> None:
    disk = Disk()
    writer = LineWriter("a disk", disk.write)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        writer.put("a", "last")
        nursery.cancel_scope.cancel()
    assert disk.batches == [("a", ["last"])]


async def test_a_disk_that_takes_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 0.05)
    disk = Disk()
    disk.free.clear()
    writer = LineWriter("a disk", disk.write, most_lines=3)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        writer.put("a", "first")
        await trio.to_thread.run_sync(disk.stuck.wait)
        for number in range(5):
            writer.put("a", str(number))  # three wait, two are dropped
        assert writer.dropped == 2
        nursery.cancel_scope.cancel()
    assert disk.batches == []
    disk.free.set()


async def test_what_was_dropped_is_told_once_in_a_while(nursery: trio.Nursery) -> None:
    disk = Disk()
    disk.full = True
    writer = LineWriter("a disk", disk.write)
    await nursery.start(writer.run)

    with capture_logs() as logged:
        for number in range(4):
            writer.put("a", "a line")
            await until(lambda dropped=number + 1: writer.dropped == dropped)  # type: ignore[misc]
        assert [(entry["lines"], entry["to"]) for entry in logged] == [(1, "a disk")]
        disk.full = False
        writer.put("a", "a line")
        await until(lambda: disk.batches != [])
    assert (writer.dropped, disk.batches) == (4, [("a", ["a line"])])

"""The GPUs' events through the real nvidia-ml-py and a driver that is a text file."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pynvml
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor.gpu import GpuReader
from supervisor.gpu_events import GpuEvent, watch_events
from supervisor.gpu_health import Decision, GpuKeeper, Note, Quarantine, Release
from tests.fakes.nvml import GPU_A, GPU_B, FakeNvml, build_fake_nvml, fake_mig_device

LOST, MISMATCH = 15, 18


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    monkeypatch.setattr("supervisor.gpu_events.WAIT_MS", 100)  # a test's end waits for its thread
    driver = FakeNvml(library, tmp_path / "nvml.state")
    with driver.loaded():
        yield driver
        driver.outlast("nvml-events")


def event_threads() -> int:
    return sum(thread.name == "nvml-events" for thread in threading.enumerate())


def nvml_is_open() -> bool:
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def watching(
    *, retry_s: float = 30.0, letting_go: Callable[[], bool] = lambda: False
) -> AsyncIterator[trio.MemoryReceiveChannel[GpuEvent]]:
    """Within the block the events are watched; gives the channel in which they arrive."""
    send, receive = trio.open_memory_channel[GpuEvent](1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(watch_events, send.send_nowait, retry_s=retry_s, letting_go=letting_go))
        yield receive
        nursery.cancel_scope.cancel()


async def next_event(channel: trio.MemoryReceiveChannel[GpuEvent]) -> GpuEvent:
    with trio.fail_after(20):
        return await channel.receive()


async def test_an_xid_is_told_with_its_gpu(fake: FakeNvml) -> None:
    async with watching() as channel:
        fake.gpus[1].xid = 79
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_B, "xid", 79)
        fake.gpus[0].xid = 31
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "xid", 31)


async def test_ecc_errors_and_recovery_actions_are_told_where_the_gpu_supports_it(fake: FakeNvml) -> None:
    fake.gpus[0].ecc, fake.gpus[0].recovery = 0, 0
    fake.write()
    async with watching() as channel:
        fake.gpus[0].ecc = 1
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "ecc")
        fake.gpus[0].recovery = 1
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "recovery")


async def test_an_xid_of_a_split_gpu_is_told_of_the_whole_one(fake: FakeNvml) -> None:
    fake.gpus[0].mig = "1"
    fake.gpus.append(fake_mig_device("MIG-1", GPU_A))
    fake.write()
    async with watching() as channel:
        fake.gpus[0].xid = 94
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "xid", 94)


async def test_a_lost_gpu_is_told_once_and_the_others_go_on(fake: FakeNvml) -> None:
    async with watching() as channel:
        fake.gpus[0].ret = LOST
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "lost")
        fake.gpus[1].xid = 13
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_B, "xid", 13)


async def test_an_xid_is_told_before_its_gpu_is_lost(fake: FakeNvml) -> None:
    async with watching() as channel:
        fake.gpus[1].xid, fake.gpus[1].ret = 79, LOST
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_B, "xid", 79), "it cannot tell its UUID any more"
        assert await next_event(channel) == GpuEvent(GPU_B, "lost")


async def test_a_gpu_that_comes_back_is_watched_again(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching() as channel:
        fake.gpus[0].ret = LOST
        fake.write()
        assert (await next_event(channel)).kind == "lost"
        monkeypatch.setattr("supervisor.gpu_events.LIST_EVERY_S", 0.0)
        fake.gpus[0].ret = 0
        fake.write()
        xid = 13
        with trio.fail_after(20):  # until it is registered its Xids are not heard
            while channel.statistics().current_buffer_used == 0:
                xid = 31 if xid == 13 else 13
                fake.gpus[0].xid = xid
                fake.write()
                await trio.sleep(0.2)
        assert (await next_event(channel)).uuid == GPU_A


@pytest.mark.parametrize("init", [MISMATCH, 9])
async def test_a_driver_that_refuses_is_asked_again(fake: FakeNvml, init: int) -> None:
    fake.init = init
    fake.write()
    async with watching(retry_s=0.05):
        assert not nvml_is_open()
        fake.init = 0
        fake.write()
        await until(nvml_is_open)


async def test_without_a_library_it_is_looked_for_now_and_then(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    tried: list[float] = []

    def refuse() -> None:
        tried.append(trio.from_thread.run_sync(trio.current_time))
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    async with watching(retry_s=30.0):
        for expected in ([0, 0], [30], [60], [90]):  # at first once to count as started, and once to wait
            while len(tried) < len(expected) or event_threads():
                await wait_all_tasks_blocked(0.01)
            await wait_all_tasks_blocked(0.05)
            assert tried == expected
            tried.clear()
            mock_clock.jump(30)


async def test_a_stuck_nvml_delays_neither_the_start_nor_the_loop_nor_the_end(
    fake: FakeNvml, mock_clock: MockClock
) -> None:
    mock_clock.rate = 20  # five seconds of patience in a quarter of one
    fake.hang_ms = 60_000
    fake.write()
    with trio.fail_after(1000):
        async with watching():
            await trio.sleep(10)
            assert event_threads() == 1


async def test_after_nvml_was_stuck_events_are_heard_again(fake: FakeNvml) -> None:
    async with watching() as channel:
        fake.hang_ms = 60_000
        fake.write()
        await trio.sleep(0.1)
        fake.hang_ms = 0
        fake.write()
        fake.gpus[0].xid = 31
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "xid", 31)


async def test_nvml_is_let_go_when_somebody_is_about_to_open_it_anew(fake: FakeNvml) -> None:
    asked = [True]
    async with watching(letting_go=lambda: asked[0]) as channel:
        await until(lambda: not nvml_is_open())
        asked[0] = False
        await until(nvml_is_open)
        asked[0] = True
        await until(lambda: not nvml_is_open())
        assert channel.statistics().current_buffer_used == 0


async def test_the_end_lets_nvml_go(fake: FakeNvml) -> None:
    async with watching():
        assert nvml_is_open()
    await until(lambda: not event_threads())
    assert not nvml_is_open()


async def test_events_hold_nvml_open_beside_others(fake: FakeNvml) -> None:
    pynvml.nvmlInit()
    async with watching():
        pass
    await until(lambda: not event_threads())
    assert nvml_is_open(), "each nvmlShutdown ends one nvmlInit"
    pynvml.nvmlShutdown()


async def test_where_no_gpu_is_left_nvml_is_not_held_open(fake: FakeNvml) -> None:
    del fake.gpus[1]
    fake.write()
    async with watching(retry_s=0.05) as channel:
        fake.gpus[0].ret = LOST
        fake.write()
        assert await next_event(channel) == GpuEvent(GPU_A, "lost")
        await until(lambda: not nvml_is_open())
        fake.gpus[0].ret = 0
        fake.write()
        await until(nvml_is_open)


async def test_while_a_gpu_is_faulty_nvml_is_really_opened_anew(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.nvml.LET_GO_S", 0.5)
    reader = GpuReader(retry_s=0.1)
    shut = pynvml.nvmlShutdown
    all_shut = threading.Event()

    def shut_and_look() -> None:
        shut()
        if not nvml_is_open():
            all_shut.set()

    async with watching(letting_go=reader.letting_go):
        monkeypatch.setattr(pynvml, "nvmlShutdown", shut_and_look)
        await reader.read()
        fake.gpus[0].ret = LOST
        fake.write()
        with trio.fail_after(20):
            while not all_shut.is_set():
                await reader.read()
                await trio.sleep(0.02)
        await until(nvml_is_open)
    await reader.close()


async def test_a_driver_that_hangs_for_a_minute_quarantines_nothing(fake: FakeNvml) -> None:
    keeper, reader, now = GpuKeeper(), GpuReader(timeout_s=2.0), 0.0

    async def readings(count: int) -> list[Decision]:
        nonlocal now
        decided: list[Decision] = []
        for _ in range(count):
            now += 1
            decided += keeper.observe(await reader.read(), now, datetime(2026, 1, 2, tzinfo=UTC))
        return decided

    async with watching() as channel:
        assert await readings(2) == []
        fake.hang_ms = 60_000
        fake.write()
        assert [type(decision) for decision in await readings(60)] == [Note]
        assert keeper.verdict(GPU_A, now).verdict == "faulty"
        fake.hang_ms = 0
        fake.write()
        with trio.fail_after(20):
            while (await reader.read()).fault is not None:
                await trio.sleep(0.01)
        assert await readings(1) == [Note("", "NVML answers again", "info")]
        fake.gpus[1].xid, fake.gpus[1].ret = 79, LOST
        fake.write()
        event = await next_event(channel)
        assert keeper.event(event, now, datetime(2026, 1, 2, tzinfo=UTC)) == [
            Quarantine(GPU_B, "Xid 79: GPU has fallen off the bus", drain=False)
        ]
        assert await readings(5) == []
        fake.gpus[1].ret = 0
        fake.write()
        assert [type(decision) for decision in await readings(31)] == [Release]
    await reader.close()

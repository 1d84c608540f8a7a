"""GPUs as the supervisor reads them, through the real nvidia-ml-py and a driver that is a text file."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest
import trio
from structlog.testing import capture_logs

from supervisor.gpu import NO_DEVICES, NO_LIBRARY, Gpu, GpuProcess, GpuReader, GpuReading, watch_gpus
from tests.fakes.nvml import GPU_A, GPU_B, LIBRARY_NAME, FakeGpu, FakeNvml, build_fake_nvml

ROOT = Path(__file__).parents[2]
LOST, MISMATCH, DRIVER_GONE = 15, 18, 9
MIB = 1 << 20


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> Iterator[FakeNvml]:
    driver = FakeNvml(library, tmp_path / "nvml.state")
    with driver.loaded():
        yield driver
        driver.outlast("nvml")


def nvml_threads() -> int:
    return sum(thread.name == "nvml" for thread in threading.enumerate())


async def one_nvml_thread() -> None:
    """One thread is in NVML; that of a reading before may need a moment to lay its name down."""
    with trio.fail_after(10):
        while nvml_threads() != 1:
            await trio.sleep(0.001)


async def read_until(reader: GpuReader, wanted: Callable[[GpuReading], bool]) -> GpuReading:
    with trio.fail_after(10):
        while True:
            reading = await reader.read()
            if wanted(reading):
                return reading
            await trio.sleep(0.01)


async def test_two_gpus_are_read_with_all_their_values(fake: FakeNvml) -> None:
    fake.gpus[0] = FakeGpu(GPU_A, "Fake H200", 1000, 250, 42, 61, 512_300, processes={4711: 200, 4712: None})
    fake.write()

    reading = await GpuReader().read()

    assert (reading.fault, reading.stuck_s, reading.driver_version) == (None, 0, "570.86.15")
    assert [(gpu.index, gpu.uuid) for gpu in reading.gpus] == [(0, GPU_A), (1, GPU_B)]
    assert reading.gpus[0] == Gpu(
        index=0,
        uuid=GPU_A,
        name="Fake H200",
        memory_total_bytes=1000 * MIB,
        memory_used_bytes=250 * MIB,
        utilisation_percent=42,
        temperature_c=61,
        power_w=512.3,
        processes=(GpuProcess(4711, 200 * MIB), GpuProcess(4712, None)),
        fault=None,
    )
    assert reading.gpus[1].processes == ()


async def test_each_reading_is_a_new_one(fake: FakeNvml) -> None:
    reader = GpuReader()
    assert (await reader.read()).gpus[1].processes == ()
    fake.gpus[1].processes[99] = 17
    fake.write()
    assert (await reader.read()).gpus[1].processes == (GpuProcess(99, 17 * MIB),)


async def test_what_a_gpu_does_not_support_is_unknown_and_no_fault(fake: FakeNvml) -> None:
    fake.gpus = [FakeGpu(GPU_A, "shares the host's memory", None, 0, None, None, None)]
    fake.write()
    (gpu,) = (await GpuReader().read()).gpus
    assert gpu == Gpu(0, GPU_A, "shares the host's memory", 0, 0, None, None, None, (), None)


async def test_a_driver_that_lacks_a_function_is_read_without_it(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldLibrary:
        def __getattr__(self, symbol: str) -> object:
            if symbol in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetPowerUsage"):
                raise AttributeError(symbol)
            return getattr(library, symbol)

    library = pynvml.nvmlLib
    monkeypatch.setattr(pynvml, "nvmlLib", OldLibrary())
    gpu = (await GpuReader().read()).gpus[0]
    assert (gpu.power_w, gpu.processes, gpu.temperature_c, gpu.fault) == (None, None, 35, None)


async def test_a_lost_gpu_keeps_its_place_and_comes_back(fake: FakeNvml) -> None:
    fake.gpus[0].processes[7] = 100
    fake.write()
    reader = GpuReader()
    healthy = await reader.read()

    fake.gpus[0].ret = LOST
    fake.write()
    reading = await reader.read()
    assert reading.fault is None
    lost = reading.gpus[0]
    assert lost == Gpu(
        0, GPU_A, "Fake H200", 143_771 * MIB, 0, None, None, None, None, "the GPU is lost: the driver cannot reach it"
    )
    assert reading.gpus[1] == healthy.gpus[1]

    fake.gpus[0].ret = 0
    fake.write()
    assert await reader.read() == healthy


async def test_a_gpu_that_the_driver_no_longer_lists_keeps_its_place(fake: FakeNvml) -> None:
    reader = GpuReader()
    await reader.read()
    del fake.gpus[0]  # the other one is number 0 from now on
    fake.write()
    gpus = (await reader.read()).gpus
    assert [(gpu.index, gpu.uuid, gpu.fault) for gpu in gpus] == [
        (0, GPU_B, None),
        (0, GPU_A, "the driver no longer lists the GPU"),
    ]


async def test_a_gpu_that_never_answered_has_no_identity(fake: FakeNvml) -> None:
    fake.gpus[1].ret = LOST
    fake.write()
    reader = GpuReader()
    stranger = (await reader.read()).gpus[1]
    assert (stranger.index, stranger.uuid, stranger.name) == (1, "", "unknown GPU")
    assert stranger.fault is not None

    fake.gpus[1].ret = 0
    fake.write()
    assert [gpu.uuid for gpu in (await reader.read()).gpus] == [GPU_A, GPU_B]


async def test_nvml_is_opened_anew_now_and_then_while_a_gpu_is_faulty(
    fake: FakeNvml, mock_clock: trio.testing.MockClock
) -> None:
    reader = GpuReader(retry_s=30)
    await reader.read()
    fake.gpus[0].ret, fake.init = LOST, MISMATCH  # the second shows when NVML is opened
    fake.write()
    assert (await reader.read()).fault is None
    mock_clock.jump(30)
    assert (await reader.read()).fault is None
    assert reader.letting_go(), "first others are asked to let go: an open NVML is not opened anew"
    mock_clock.jump(2)
    assert "different versions" in str((await reader.read()).fault)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (MISMATCH, "of different versions: reboot or restart chimera"),
        (DRIVER_GONE, "the NVIDIA driver is not loaded"),
        (999, r"NVML: Unknown Error \(code 999\)"),
        (20, r"NVML: Insufficient Memory \(code 20\)"),
        (77, r"NVML: an error of the fake NVML \(code 77\)"),
    ],
)
async def test_a_driver_that_refuses_is_a_fault_in_words_until_it_agrees(
    fake: FakeNvml, code: int, sentence: str
) -> None:
    fake.init = code
    fake.write()
    reader = GpuReader()
    reading = await reader.read()
    assert reading.gpus == ()
    assert re.search(sentence, str(reading.fault))

    fake.init = 0
    fake.write()
    assert len((await reader.read()).gpus) == 2


async def test_a_driver_that_goes_away_leaves_the_known_gpus_faulty(fake: FakeNvml) -> None:
    reader = GpuReader()
    healthy = await reader.read()
    fake.call = DRIVER_GONE
    fake.write()
    reading = await reader.read()
    assert reading.fault == "the NVIDIA driver is not loaded: load it or reboot"
    assert [(gpu.uuid, gpu.fault) for gpu in reading.gpus] == [(GPU_A, reading.fault), (GPU_B, reading.fault)]

    fake.call = 0
    fake.write()
    assert await reader.read() == healthy


async def test_a_driver_without_gpus_says_so(fake: FakeNvml) -> None:
    fake.gpus = []
    fake.write()
    assert await GpuReader().read() == GpuReading((), "570.86.15", NO_DEVICES)


async def test_a_stuck_nvml_costs_one_thread_and_no_tick_of_the_loop(fake: FakeNvml) -> None:
    reader = GpuReader(timeout_s=0.5)
    healthy = await reader.read()
    fake.hang_ms = 30_000
    fake.write()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.01)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        with trio.fail_after(30):
            first = await reader.read()
            nursery.cancel_scope.cancel()
    assert ticks >= 20
    assert first.gpus == healthy.gpus
    assert first.stuck_s >= 0.5
    assert re.fullmatch(r"NVML has not answered for \d s", str(first.fault))

    with trio.fail_after(9):  # twenty waits of half a second would be ten
        again = [await reader.read() for _ in range(20)]
    assert again[-1].stuck_s > first.stuck_s
    await one_nvml_thread()

    fake.hang_ms = 0
    fake.write()
    assert await read_until(reader, lambda reading: reading.fault is None) == healthy


async def test_the_fault_says_for_how_long_nvml_has_been_stuck(
    fake: FakeNvml, mock_clock: trio.testing.MockClock
) -> None:
    reader = GpuReader(timeout_s=5)
    fake.hang_ms = 30_000
    fake.write()
    readings: list[GpuReading] = []

    async def read() -> None:
        readings.append(await reader.read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(7)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()  # the second has not had to wait
    assert readings == [
        GpuReading((), None, "NVML has not answered for 5 s", 5),
        GpuReading((), None, "NVML has not answered for 12 s", 12),
    ]


async def test_a_cancelled_reading_leaves_the_reader_usable(fake: FakeNvml) -> None:
    reader = GpuReader()
    healthy = await reader.read()
    fake.hang_ms = 30_000
    fake.write()
    with trio.move_on_after(0.1) as scope:
        await reader.read()
    assert scope.cancelled_caught
    await one_nvml_thread()
    fake.hang_ms = 0
    fake.write()
    assert await reader.read() == healthy


async def test_close_opens_again_at_the_next_reading(fake: FakeNvml) -> None:
    reader = GpuReader()
    healthy = await reader.read()
    await reader.close()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    assert await reader.read() == healthy


async def test_close_does_its_work_in_a_cancelled_task_and_returns_though_nvml_is_stuck(fake: FakeNvml) -> None:
    reader = GpuReader(timeout_s=0.5)
    await reader.read()
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.close()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()

    fake.hang_ms = 30_000
    fake.write()
    assert (await reader.read()).stuck_s > 0
    with trio.fail_after(30):
        await reader.close()


async def test_the_watch_publishes_before_it_counts_as_started_and_logs_only_changes(fake: FakeNvml) -> None:
    publish, published = trio.open_memory_channel[GpuReading](1000)

    async def three_more() -> None:
        for _ in range(published.statistics().current_buffer_used + 3):
            with trio.fail_after(10):
                await published.receive()

    async def watch(*, task_status: trio.TaskStatus[GpuReading]) -> None:
        await watch_gpus(GpuReader(), publish.send_nowait, interval_s=0.01, task_status=task_status)

    fake.init = MISMATCH
    fake.write()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            first = await nursery.start(watch)
            assert published.receive_nowait() is first
            await three_more()
            for init, ret in ((0, 0), (0, LOST), (0, 0)):
                fake.init, fake.gpus[1].ret = init, ret
                fake.write()
                await three_more()
            nursery.cancel_scope.cancel()

    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        (
            "warning",
            "no GPU: the NVIDIA driver and its library are of different versions: reboot or restart chimera; "
            "workers run on the CPU",
        ),
        ("info", "GPUs found"),
        ("warning", "GPU 1: the GPU is lost: the driver cannot reach it"),
        ("info", "GPU 1 answers again"),
    ]
    assert logs[1]["gpus"] == [f"0: Fake H200 {GPU_A}", f"1: Fake H200 {GPU_B}"]


async def test_the_watch_tells_once_that_nvml_is_stuck_and_once_that_it_is_not(fake: FakeNvml) -> None:
    publish, published = trio.open_memory_channel[GpuReading](1000)
    reader = GpuReader(timeout_s=0.8)

    async def three_with(*, stuck: bool) -> None:
        for _ in range(3):
            with trio.fail_after(10):
                while ((await published.receive()).stuck_s > 0) is not stuck:
                    pass

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: watch_gpus(reader, publish.send_nowait, interval_s=0.01))
            await three_with(stuck=False)
            fake.hang_ms = 30_000
            fake.write()
            await three_with(stuck=True)
            fake.hang_ms = 0
            fake.write()
            await three_with(stuck=False)
            nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["GPUs found", "NVML has not answered for 1 s", "GPUs found"]


LATE_DRIVER = """
import json, sys
from pathlib import Path
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock
from supervisor.gpu import GpuReader, watch_gpus
from tests.fakes.nvml import build_fake_nvml

async def main():
    reader, seen = GpuReader(retry_s=30), []
    async def watch(*, task_status):
        await watch_gpus(reader, seen.append, task_status=task_status)
    async def look():
        reading = await reader.read()
        seen.append([len(reading.gpus), reading.fault])
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch)
            nursery.cancel_scope.cancel()
    seen.clear()
    await look()
    build_fake_nvml(Path(sys.argv[1]))
    clock.jump(29); await look()
    clock.jump(1); await look()
    print(json.dumps({"seen": seen, "logs": logs}))

clock = MockClock()
trio.run(main, clock=clock)
"""


def test_a_driver_that_comes_later_is_found_within_the_half_minute(tmp_path: Path) -> None:
    # A file that is no library hides the driver this machine may have.
    (tmp_path / LIBRARY_NAME).write_text("not a library\n")
    fake = FakeNvml(tmp_path / LIBRARY_NAME, tmp_path / "nvml.state")
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATE_DRIVER, str(tmp_path)],
        env=os.environ | fake.environ() | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert told["seen"] == [[0, NO_LIBRARY], [0, NO_LIBRARY], [2, None]]
    assert told["logs"] == [{"event": "no GPU: NVML library not found; workers run on the CPU", "log_level": "info"}]


def test_the_fake_delivers_an_xid_once_and_only_after_registration(fake: FakeNvml) -> None:
    def wait() -> tuple[str, int] | None:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, 30)
        except pynvml.NVMLError_Timeout:
            return None
        return str(pynvml.nvmlDeviceGetUUID(event.device)), int(event.eventData)

    def show(xid: int) -> None:
        fake.gpus[1].xid = xid
        fake.write()

    show(43)
    pynvml.nvmlInit()
    events = pynvml.nvmlEventSetCreate()
    for uuid in (GPU_A, GPU_B):
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlDeviceGetSupportedEventTypes(handle), events)
    assert wait() is None
    show(79)
    assert [wait(), wait()] == [(GPU_B, 79), None]
    show(0)
    assert wait() is None
    show(79)
    assert wait() == (GPU_B, 79)
    pynvml.nvmlEventSetFree(events)
    pynvml.nvmlShutdown()


def test_the_fake_answers_both_forms_of_the_memory_question(fake: FakeNvml) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for version in (None, pynvml.nvmlMemory_v2):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
        assert (memory.total, memory.used, memory.free) == (143_771 * MIB, 600 * MIB, 143_171 * MIB)
    pynvml.nvmlShutdown()

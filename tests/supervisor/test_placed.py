"""Where a worker computes: one sign is not enough, one restart is tried, and then it is left as it is."""

from dataclasses import dataclass

import pytest

from supervisor.gpu_reading import Gpu, GpuProcess, GpuReading
from supervisor.placed import PLACED_AFTER_S, PinnedGpu, Placed, computes_on_cpu, misplaced, on_gpus, vram_bytes


@dataclass(frozen=True)
class Model:
    name: str = "tiny:latest"
    size_bytes: int = 1000
    size_vram_bytes: int = 1000


@pytest.mark.parametrize(
    ("models", "gpu", "foreign", "loaded_for_s", "fault"),
    [
        ([Model()], PinnedGpu(5000, frozenset({7})), (), 60, None),
        ([Model(size_vram_bytes=0)], None, (), 0, "size_vram is 0"),
        ([Model(size_vram_bytes=400)], PinnedGpu(5000, frozenset({7})), (), 60, None),  # too large for the GPU: in part
        ([Model(size_bytes=0, size_vram_bytes=0)], None, (), 60, None),  # a version that does not say
        ([Model()], PinnedGpu(10, frozenset()), (), 60, "NVML shows no process"),
        ([Model()], PinnedGpu(10, frozenset()), (), PLACED_AFTER_S - 1, None),  # it may still be coming up
        ([Model()], PinnedGpu(5000, frozenset()), (), 60, None),  # it is in use: its pids are another namespace's
        ([Model()], PinnedGpu(10, None), (), 60, None),  # the driver does not tell
        ([Model()], None, (), 60, None),  # NVML is not to be relied on
        ([], PinnedGpu(10, frozenset()), (), 60, None),
        ([Model()], PinnedGpu(5000, frozenset({7})), (8,), 60, "process 8 computes on a GPU that is not its own"),
    ],
)
def test_a_gpu_worker_computes_where_it_was_placed(
    models: list[Model], gpu: PinnedGpu | None, foreign: tuple[int, ...], loaded_for_s: float, fault: str | None
) -> None:
    said = misplaced(models, {7, 8}, gpu, foreign, loaded_for_s)
    assert (said is None) if fault is None else (said is not None and fault in said)


CUDA_LINE = (
    'time=2026-01-01T12:00:00.000Z level=INFO source=types.go:131 msg="inference compute" id=GPU-aa library=cuda '
    'variant=v12 compute=9.0 driver=12.8 name="NVIDIA H200" total="139.8 GiB" available="139.2 GiB"\n'
)


CPU_LINE = CUDA_LINE.replace("GPU-aa", "0").replace("library=cuda", "library=cpu")


@pytest.mark.parametrize(
    ("log", "on_cpu"),
    [
        ("", False),
        ("listening on 127.0.0.1:11500\n", False),
        (CUDA_LINE, False),
        (CPU_LINE, True),
        (CPU_LINE + CUDA_LINE, False),
        (CPU_LINE.replace("library=cpu", 'library="cpu"'), True),
        ("library=cpu inference compute\nlibrary=cpu\n", False),
        ("inference compute " * 60_000 + CPU_LINE, True),  # 64 KiB of it took 1.7 s
    ],
)
def test_ollamas_log_says_where_it_computes(log: str, on_cpu: bool) -> None:
    assert computes_on_cpu(log) is on_cpu


# -- what NVML shows -------------------------------------------------------------------------------------------------

OWN, OTHER, SPLIT = "GPU-a", "GPU-b", "GPU-c"


def gpu(uuid: str, *pids: int, tells: bool = True, fault: str | None = None, split: bool = False) -> Gpu:
    processes = tuple(GpuProcess(pid, 100 * pid) for pid in pids) if tells else None
    return Gpu(0, uuid, "Fake", 10_000, 5000, 0, 30, 50.0, processes, fault, mig_devices=split)


@pytest.mark.parametrize(
    ("reading", "own", "foreign"),
    [
        (GpuReading((gpu(OWN, 1, 2), gpu(OTHER, 3)), "570", None), PinnedGpu(5000, frozenset({1, 2})), {3}),
        (GpuReading((gpu(OWN, tells=False),), "570", None), PinnedGpu(5000, None), set()),
        (GpuReading((gpu(OWN, 1), gpu(SPLIT, 9, split=True)), "570", None), PinnedGpu(5000, frozenset({1})), set()),
        (GpuReading((gpu(OWN, fault="lost"), gpu(OTHER, 3)), "570", None), None, {3}),
        (GpuReading((gpu(OTHER, 3),), "570", None), None, {3}),
        (GpuReading((gpu(OWN, 1),), "570", None, 9.0), None, set()),  # the reading is old
        (GpuReading((), None, "NVML library not found"), None, set()),
    ],
)
def test_a_reading_says_who_is_on_the_own_gpu_and_who_on_others(
    reading: GpuReading, own: PinnedGpu | None, foreign: set[int]
) -> None:
    assert on_gpus(reading, OWN) == (own, frozenset(foreign))


def test_a_gpu_that_tells_shows_a_worker_by_any_of_its_processes() -> None:
    assert PinnedGpu(1, frozenset({1, 2})).shows({2, 3})
    assert not PinnedGpu(1, frozenset({1})).shows({3})
    assert not PinnedGpu(1, None).shows({3})


def test_a_workers_memory_on_its_gpu_is_that_of_its_processes() -> None:
    reading = GpuReading((gpu(OTHER, 2), gpu(OWN, 1, 2, 3)), "570", None)
    assert vram_bytes(reading, OWN, {1, 2}) == 300
    assert vram_bytes(reading, "cpu", {1, 2}) is None
    assert vram_bytes(GpuReading((gpu(OWN, tells=False),), "570", None), OWN, {1}) is None


# -- what is done about it -------------------------------------------------------------------------------------------


def test_a_worker_is_left_as_it_is_once_and_forgiven_when_it_is_proven() -> None:
    placed = Placed(restarts=1)
    assert placed.leave("on the CPU", 5.0)
    assert not placed.leave("on the CPU still", 9.0), "that is no news"
    assert (placed.fault, placed.since) == ("on the CPU", 5.0)
    placed.forgive()
    assert (placed.restarts, placed.fault) == (0, None)

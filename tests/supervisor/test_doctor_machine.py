"""What the doctor makes of the machine: tables of facts and verdicts."""

from dataclasses import replace

import pytest

from supervisor.doctor import Finding
from supervisor.doctor_machine import Disk, GpuFacts, clock, disks, gpus, limits, memory, ollama, version_in
from supervisor.gpu_reading import NO_DEVICES, NO_LIBRARY, Gpu, GpuReading

GIB, MIB = 1024**3, 1024**2
GPU = Gpu(0, "GPU-a", "NVIDIA H100", 80 * GIB, 0, 0, 30, 70.0, (), None)
NODES = {"/dev/nvidia-uvm": True, "/dev/nvidia0": True, "/dev/nvidiactl": True}
WELL = GpuFacts(1, GpuReading((GPU,), "550.1", None), NODES, {0: True})
MISMATCH = "the NVIDIA driver and its library are of different versions: reboot or restart chimera"


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.verdict.value, finding.text) for finding in findings]


def none(reading_fault: str, cards: int) -> GpuFacts:
    return GpuFacts(cards, GpuReading((), None, reading_fault))


@pytest.mark.parametrize(
    ("facts", "findings"),
    [
        (WELL, [("ok", "0: NVIDIA H100; driver 550.1")]),
        (none(NO_LIBRARY, 0), [("ok", "no NVIDIA GPU; workers run on the CPU")]),
        (none(NO_DEVICES, 0), [("ok", "no NVIDIA GPU; workers run on the CPU")]),
        (none(NO_LIBRARY, 2), [("fault", f"2 NVIDIA GPUs on the bus, but none can be used: {NO_LIBRARY}")]),
        (none(MISMATCH, 1), [("fault", f"1 NVIDIA GPUs on the bus, but none can be used: {MISMATCH}")]),
        (none(MISMATCH, 0), [("fault", f"0 NVIDIA GPUs on the bus, but none can be used: {MISMATCH}")]),
        (
            replace(none(NO_LIBRARY, 0), wanted=["WORKERS: there is no GPU 3 here"]),
            [("fault", "WORKERS: there is no GPU 3 here")],
        ),
        (
            replace(WELL, reading=GpuReading((replace(GPU, fault="the GPU is lost"),), "550.1", None)),
            [("fault", "GPU 0 (GPU-a): the GPU is lost")],
        ),
        (
            replace(WELL, nodes={"/dev/nvidia0": True}),
            [("warning", "there is no /dev/nvidia-uvm, without which CUDA finds no GPU")],
        ),
        (
            replace(WELL, nodes=NODES | {"/dev/nvidia0": False, "/dev/nvidiactl": None}),
            [("fault", "chimera may not open /dev/nvidia0")],
        ),
        (
            replace(WELL, persistent={0: False, 1: True}),
            [("warning", "persistence mode is off (GPU 0): the driver starts anew with each first use")],
        ),
    ],
)
def test_gpus(facts: GpuFacts, findings: list[tuple[str, str]]) -> None:
    assert told(gpus(facts, "chimera")) == findings
    assert all(finding.advice for finding in gpus(facts, "chimera") if finding.verdict.value != "ok")


@pytest.mark.parametrize(
    ("said", "problem", "gpu", "cuda", "verdict", "text"),
    [
        ("ollama version is 0.12.3", None, True, True, "ok", "/o, version 0.12.3"),
        ("Warning: client version is 0.5.4\n", None, False, False, "ok", "/o, version 0.5.4"),
        (
            "ollama version is 0.3.14",
            None,
            False,
            False,
            "warning",
            "/o, version 0.3.14, is older than 0.5.4, the oldest",
        ),
        (
            "ollama version is 0.12.3",
            None,
            True,
            False,
            "warning",
            "/o, version 0.12.3, has no CUDA libraries beside it",
        ),
        ("ollama version is dev", None, False, False, "warning", "/o does not say its version"),
        (None, "no such file", False, False, "fault", "/o cannot be run: no such file"),
    ],
)
def test_ollama(said: str | None, problem: str | None, gpu: bool, cuda: bool, verdict: str, text: str) -> None:
    (finding,) = ollama("/o", said, problem, gpu=gpu, cuda=cuda)
    assert finding.verdict == verdict
    assert finding.text.startswith(text)


def test_a_version_is_found_whatever_else_is_said() -> None:
    assert version_in("Warning: could not connect to a running Ollama instance\nclient version is 0.12.10-rc1") == (
        0, 12, 10,
    )  # fmt: skip


ALL = ("store", "STATE_DIR", "LOG_DIR")


@pytest.mark.parametrize(
    ("disk", "verdict", "about"),
    [
        (Disk(ALL, 50 * GIB, 100 * GIB, 900, 1000), "ok", "50.0 GiB free of 100.0 GiB"),
        (Disk(ALL, 50 * GIB, 100 * GIB), "ok", "50.0 GiB free"),
        (Disk(ALL, 10 * MIB, 100 * GIB, 900, 1000), "fault", "full"),
        (Disk(ALL, 50 * GIB, 100 * GIB, 0, 1000), "fault", "no inode is free"),
        (Disk(ALL, 50 * GIB, 100 * GIB, 5, 1000), "warning", "nearly full (inodes)"),
        (Disk(ALL, 500 * MIB, 100 * GIB, 900, 1000), "fault", "the required models need 600.0 MiB more"),
        (Disk(("STATE_DIR",), 500 * MIB, 100 * GIB, 900, 1000), "warning", "nearly full"),
        (Disk(("LOG_DIR",), 2 * GIB, 4 * GIB, 900, 1000), "warning", "logs may take 3.0 GiB more"),
    ],
)
def test_disks(disk: Disk, verdict: str, about: str) -> None:
    (finding,) = disks([disk], logs_bytes=GIB, logs_most_bytes=4 * GIB, missing_bytes=600 * MIB)
    assert (finding.verdict, about in finding.text) == (verdict, True)


@pytest.mark.parametrize(
    ("available", "swapped", "need", "verdict"),
    [(8, 0, 0, "ok"), (8, 0, 9, "warning"), (8, 5, 0, "warning"), (8, 3, 0, "ok")],
)
def test_memory(available: int, swapped: int, need: int, verdict: str) -> None:
    (finding,) = memory(available * GIB, 16 * GIB, swapped * GIB, need * GIB)
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("connections", "tasks", "verdicts"),
    [
        (4096, None, ["ok"]),
        (4096, 1000, ["ok"]),
        (500, 1000, ["warning"]),
        (4096, 300, ["warning"]),
        (500, 300, ["warning", "warning"]),
    ],
)
def test_limits(connections: int, tasks: int | None, verdicts: list[str]) -> None:
    assert [finding.verdict.value for finding in limits(connections, 4096, tasks, 4)] == verdicts


@pytest.mark.parametrize(
    ("now_s", "synchronised", "verdict"),
    [(1e9, True, "ok"), (1e9, None, "ok"), (1e9, False, "warning"), (9e8, True, "fault")],
)
def test_the_clock(now_s: float, synchronised: bool | None, verdict: str) -> None:
    (finding,) = clock(now_s, 1e9, synchronised=synchronised)
    assert finding.verdict == verdict

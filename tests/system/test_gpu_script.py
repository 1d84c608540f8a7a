"""make test-gpu against stand-ins for both drivers, so that it does not rot where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.chimera import ROOT
from tests.fakes.cuda import build_fake_cuda
from tests.fakes.nvml import GPU_A, GPU_B, FakeNvml, build_fake_nvml

ROWS = (
    "a worker on every GPU", "pinned by UUID", "NVML's process list", "the worker's gpu_memory_bytes", "telemetry",
    "memory in use, 1 on a GPU", "a worker on the CPU", f"two workers on {GPU_A[:12]}", "both in NVML's process list",
    "memory in use, 2 on a GPU", "placement, after {settle} s", "Xid 31, injected", "the others, after Xid 31",
    "Xid 79, injected", "its programs", "its memory", "the others, after Xid 79", "released by the operator", "stopped",
)  # fmt: skip


@pytest.fixture
def drivers(tmp_path: Path) -> dict[str, str]:
    """The variables with which a process meets two GPUs and CUDA."""
    build_fake_cuda(tmp_path)
    return FakeNvml(build_fake_nvml(tmp_path), tmp_path / "nvml.state").environ()


def run(folder: Path, settle_s: int, **env: str) -> tuple[int, dict[str, str]]:
    """Run the script; return its exit status and the verdict of each row of the page that it wrote."""
    page = folder / "page.md"
    argv = [sys.executable, str(ROOT / "scripts" / "test_gpu.py"), "--out", str(page), "--settle", str(settle_s)]
    done = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, timeout=110, check=False)
    assert page.exists(), done.stderr
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("|")][2:]
    return done.returncode, {row[0]: row[-1] for row in rows}


def test_every_row_is_there_and_kept(drivers: dict[str, str], tmp_path: Path) -> None:
    status, verdicts = run(tmp_path, 12, **drivers)
    assert verdicts == {row.format(settle=12): "kept" for row in ROWS}
    assert status == 0


def test_a_pin_that_does_not_hold_fails_the_run(drivers: dict[str, str], tmp_path: Path) -> None:
    status, verdicts = run(tmp_path, 0, FAKE_CUDA_SHOWS=GPU_B, **drivers)
    broken = {row for row, verdict in verdicts.items() if verdict == "BROKEN"}
    assert broken == {"pinned by UUID", "a worker on the CPU", f"two workers on {GPU_A[:12]}"}
    assert status == 1

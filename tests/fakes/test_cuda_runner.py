"""The CUDA program says what a CUDA driver shows it, here a fake one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chimera import wait_for
from tests.fakes.cuda import CUDA_RUNNER, build_fake_cuda
from tests.fakes.nvml import GPU_A, GPU_B


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_cuda(tmp_path_factory.mktemp("cuda")).parent


def report_of(tmp_path: Path, **env: str) -> dict[str, Any]:
    """What the program reports; it still runs then."""
    report = tmp_path / "report"
    own = {"CUDA_RUNNER_REPORT": str(report), "CHIMERA_WORKER": "0123456789ab/w7"}
    with subprocess.Popen([sys.executable, "-I", "-S", CUDA_RUNNER], env=os.environ | own | env) as process:
        try:
            wait_for(lambda: report.exists() and report.read_text().endswith("\n"))
            assert process.poll() is None
        finally:
            process.terminate()
    said: dict[str, Any] = json.loads(report.read_text())
    assert (said.pop("pid"), said.pop("worker")) == (process.pid, "w7")
    return said


@pytest.mark.parametrize(
    ("visible", "shows", "uuids"),
    [
        (GPU_A, "", [GPU_A]),
        ("-1", "", []),
        ("MIG-" + GPU_A[4:], "", ["MIG-" + GPU_A[4:]]),
        (GPU_A, GPU_B, [GPU_B]),
        ("-1", GPU_B, [GPU_B]),
    ],
)
def test_it_says_what_it_sees(folder: Path, tmp_path: Path, visible: str, shows: str, uuids: list[str]) -> None:
    said = report_of(tmp_path, LD_LIBRARY_PATH=str(folder), CUDA_VISIBLE_DEVICES=visible, FAKE_CUDA_SHOWS=shows)
    assert said == {"visible": visible, "uuids": uuids, "error": None}


def test_it_says_what_failed_and_lives_on(folder: Path, tmp_path: Path) -> None:
    refused = report_of(tmp_path, LD_LIBRARY_PATH=str(folder), CUDA_VISIBLE_DEVICES=GPU_A, CUDA_RUNNER_MIB="0")
    assert refused["error"] == "cuMemAlloc_v2 returned 1"

"""What the doctor reads of the machine, from folders of the test's own."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from supervisor import examine_machine
from supervisor.config_load import load_settings
from supervisor.doctor import Finding
from supervisor.examine import Subject, account_of
from supervisor.examine_machine import cards_on, clock, device_nodes, disks, gpus, has_cuda, limits, memory, ollama
from supervisor.gpu_reading import NO_LIBRARY, GpuReading
from supervisor.locate import Ollama
from tests.fakes.nvml import FakeNvml, build_fake_nvml
from tests.fakes.serving import FAKE_OLLAMA


def subject(tmp_path: Path, **names: str) -> Subject:
    given = {"STATE_DIR": str(tmp_path / "state"), "OLLAMA_MODELS": str(tmp_path / "models"), "PATH": "/usr/bin:/bin"}
    environ = given | {"OLLAMA_BIN": str(FAKE_OLLAMA)} | names
    return Subject(tmp_path / ".env", environ, load_settings(environ, {}), (), False, account_of(None))


def verdict(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict.value for finding in findings]


def card(bus: Path, name: str, vendor: str, kind: str) -> None:
    (bus / name).mkdir(parents=True)
    (bus / name / "vendor").write_text(f"{vendor}\n")
    (bus / name / "class").write_text(f"{kind}\n")


def test_nvidias_display_devices_are_counted_on_the_bus(tmp_path: Path) -> None:
    card(tmp_path, "a", "0x10de", "0x030000")
    card(tmp_path, "b", "0x10de", "0x030200")
    card(tmp_path, "c", "0x10de", "0x040300")  # its sound
    card(tmp_path, "d", "0x1002", "0x030000")
    (tmp_path / "e").mkdir()
    assert cards_on(tmp_path) == 2
    assert cards_on(tmp_path / "none") == 0


def test_device_files_are_those_that_cuda_opens(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "null"):
        (tmp_path / name).write_text("")
    assert [path.name for path in device_nodes(tmp_path)] == ["nvidia-uvm", "nvidia0", "nvidia12", "nvidiactl"]


def test_without_a_driver_gpus_that_workers_want_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_machine, "PCI", tmp_path)
    monkeypatch.setattr(examine_machine, "Nvml", NoNvml)
    assert verdict(gpus(subject(tmp_path))) == ["ok"]
    assert verdict(gpus(subject(tmp_path, WORKERS="gpu:0=1"))) == ["fault"]


class NoNvml:
    """A machine without NVIDIA's library."""

    def __init__(self, retry_s: float) -> None:
        pass

    def read(self, now: float) -> GpuReading:
        return GpuReading((), None, NO_LIBRARY)

    def close(self) -> None:
        pass


def test_a_driver_is_asked_and_its_device_files_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_machine, "DEVICES", tmp_path)
    (tmp_path / "nvidia0").write_text("")
    fake = FakeNvml(build_fake_nvml(tmp_path), tmp_path / "nvml.state")
    with fake.loaded():
        assert told(gpus(subject(tmp_path))) == ["there is no /dev/nvidia-uvm, without which CUDA finds no GPU"]
        (tmp_path / "nvidia-uvm").write_text("")
        assert told(gpus(subject(tmp_path))) == [f"0: Fake H200, 1: Fake H200; driver {fake.driver}"]
        fake.gpus[1].ret = 15
        fake.write()
        assert told(gpus(subject(tmp_path))) == ["GPU 1: the GPU is lost: the driver cannot reach it"]
        fake.init = 18
        fake.write()
        (text,) = told(gpus(subject(tmp_path)))
        assert "of different versions" in text


def told(findings: Sequence[Finding]) -> list[str]:
    return [finding.text for finding in findings]


@pytest.mark.parametrize(
    ("library", "found"),
    [
        ("lib/ollama/cuda_v12/libggml-cuda.so", True),
        ("lib/ollama/libggml-cpu.so", False),
        ("bin/libggml_cuda.so", True),
    ],
)
def test_cudas_libraries_are_looked_for_where_ollama_does(tmp_path: Path, library: str, found: bool) -> None:
    program = tmp_path / "bin" / "ollama"
    for path in (program, tmp_path / library):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert has_cuda(Ollama(program)) is found


def script(tmp_path: Path, text: str) -> str:
    program = tmp_path / "ollama"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("text", "verdict_", "about"),
    [
        ('echo "ollama version is 0.12.3"; echo "$OLLAMA_HOST" >&2', "ok", "version 0.12.3"),
        ("echo it is broken >&2; exit 3", "fault", "it is broken"),
        ("exit 3", "fault", "it failed"),
    ],
)
def test_the_program_is_asked_for_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, verdict_: str, about: str
) -> None:
    monkeypatch.setattr(examine_machine, "PCI", tmp_path / "none")
    (finding,) = ollama(subject(tmp_path, OLLAMA_BIN=script(tmp_path, text)))
    assert (finding.verdict, about in finding.text) == (verdict_, True)


def test_a_program_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    assert verdict(ollama(subject(tmp_path, OLLAMA_BIN="/no/such"))) == ["fault"]


def test_places_on_one_file_system_are_one_finding(tmp_path: Path) -> None:
    (finding,) = disks(subject(tmp_path))
    assert "store, STATE_DIR, LOG_DIR: " in finding.text
    assert not (tmp_path / "state").exists()


def test_memory_limits_and_clock_are_read(tmp_path: Path) -> None:
    whole = subject(tmp_path, WORKERS="cpu=2")
    assert memory(whole)[0].check == "memory"
    assert clock(whole)[0].check == "clock"
    assert verdict(limits(whole, lambda wanted, soft, hard: (wanted - 1, 0))) == ["warning"]


def test_a_services_limits_are_its_units(tmp_path: Path) -> None:
    it = subject(tmp_path)
    asked: list[tuple[int, int, int]] = []

    def bound(wanted: int, soft: int, hard: int) -> tuple[int, int]:
        asked.append((wanted, soft, hard))
        return wanted, soft

    unit = {"LimitNOFILE": "524288", "TasksMax": "18446744073709551615"}
    of_unit = Subject(it.env_file, it.environ, it.settings, (), False, it.account, None, unit)
    (finding,) = limits(of_unit, bound)
    assert asked == [(4096, 524288, 524288)]
    assert "any number of tasks" in finding.text

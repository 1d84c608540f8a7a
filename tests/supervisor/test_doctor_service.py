"""What the doctor makes of Chimera itself: tables of facts and verdicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.doctor_service import (
    OURS,
    FileFacts,
    StoreFacts,
    certificate,
    gateway,
    port,
    rights,
    settings,
    store,
    unit,
    worker_ports,
)  # fmt: skip


@pytest.mark.parametrize(
    ("faults", "there", "hidden", "verdicts"),
    [
        ([], True, False, ["ok"]),
        ([], False, False, ["ok"]),
        (["A: bad", "B: bad"], True, False, ["fault", "fault", "warning"]),
        ([], True, True, ["warning"]),
    ],
)
def test_settings(faults: list[str], there: bool, hidden: bool, verdicts: list[str]) -> None:
    found = settings("/e", faults, there=there, hidden=hidden)
    assert [finding.verdict.value for finding in found] == verdicts


@pytest.mark.parametrize(
    ("holder", "running", "verdict", "advice"),
    [
        (None, False, "ok", ""),
        (OURS, True, "ok", ""),
        (None, True, "warning", "chimera status; were settings changed?"),
        ("process 7 (ollama)", False, "fault", "systemctl stop ollama, or set OLLAMA_PORT to another port"),
        ("process 7 (nginx)", True, "fault", "stop it, or set OLLAMA_PORT to another port"),
    ],
)
def test_a_port(holder: str | None, running: bool, verdict: str, advice: str) -> None:
    finding = port("OLLAMA_PORT", 11434, holder, running=running)
    assert (finding.verdict, finding.advice) == (verdict, advice)


@pytest.mark.parametrize(
    ("others", "clients_from", "verdict", "about"),
    [
        ({}, 32768, "ok", "11500 to 12011"),
        ({}, None, "ok", "no one else's"),
        (
            dict.fromkeys(range(11500, 11504), "process 7 (x)"),
            32768,
            "warning",
            "others have 4 of them: 11500 (process 7",
        ),
        ({}, 12000, "warning", "from 12000 on"),
    ],
)
def test_the_workers_ports(others: dict[int, str], clients_from: int | None, verdict: str, about: str) -> None:
    finding = worker_ports(11500, 512, others, clients_from)
    assert (finding.verdict, about in finding.text) == (verdict, True)


@pytest.mark.parametrize(
    ("facts", "findings"),
    [
        (StoreFacts("/s", True, True, {}), [("ok", "/s, no model is required")]),
        (StoreFacts("/s", True, True, {"m:1": 2 * 1024**3}), [("ok", "/s: m:1 (2.0 GiB)")]),
        (StoreFacts("/s", True, True, {"m:1": None, "n:1": 5}), [("warning", "not there yet: m:1")]),
        (StoreFacts("/s", True, True, {"m:1": 5}, ["m:1"]), [("fault", "m:1: its files in /s are not whole")]),
        (StoreFacts("/s", True, False, {"m:1": None}), [("fault", "chimera may not write /s")]),
        (StoreFacts("/s", False, True, {"m:1": None}), [("ok", "/s is not there yet; Chimera makes it, with: m:1")]),
        (StoreFacts("/s", True, None, {}), [("warning", "/s cannot be looked at by this user")]),
    ],
)
def test_the_store(facts: StoreFacts, findings: list[tuple[str, str]]) -> None:
    assert [(finding.verdict.value, finding.text) for finding in store(facts, "chimera")] == findings


@pytest.mark.parametrize(
    ("file", "verdicts"),
    [
        (FileFacts("/f", 0o640, True, True), ["ok"]),
        (FileFacts("/f", 0o644, False, True), ["ok"]),
        (FileFacts("/f", None, True, None), ["ok"]),
        (FileFacts("/f", 0o644, True, True), ["fault"]),
        (FileFacts("/f", 0o646, True, False), ["fault", "fault", "fault"]),
        (FileFacts("/f", 0o777, False, True), ["fault"]),
    ],
)
def test_rights(file: FileFacts, verdicts: list[str]) -> None:
    assert [finding.verdict.value for finding in rights([file], "chimera")] == verdicts


RUNS = {
    "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled",
    "User": "chimera", "StatusText": "2 of 2 workers ready", "NeedDaemonReload": "no", "Delegate": "yes",
}  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "stale", "shipped", "findings"),
    [
        ({}, [], None, ["ok"]),
        (RUNS, [], True, ["ok"]),
        (RUNS, [], False, ["warning"]),
        (RUNS, ["chimera.socket.d/50-settings.conf"], None, ["warning"]),
        (RUNS | {"ActiveState": "failed", "StatusText": "", "Result": "exit-code"}, [], None, ["fault"]),
        (RUNS | {"UnitFileState": "disabled"}, [], None, ["warning"]),
        (RUNS | {"NeedDaemonReload": "yes", "Delegate": "no"}, [], None, ["warning", "warning"]),
    ],
)
def test_the_unit(shown: dict[str, str], stale: list[str], shipped: bool | None, findings: list[str]) -> None:
    assert [finding.verdict.value for finding in unit(shown, stale=stale, shipped=shipped)] == findings


@pytest.mark.parametrize(
    ("path", "told", "verdicts"),
    [
        (None, [], ["ok"]),
        (Path("/c"), [], ["ok"]),
        (Path("/c"), ["TLS_CERT: /c ends soon", "TLS_CERT: /c is not for api.example"], ["warning", "warning"]),
    ],
)
def test_the_certificate(path: Path | None, told: list[str], verdicts: list[str]) -> None:
    assert [finding.verdict.value for finding in certificate(path, told)] == verdicts


def test_the_unit_says_how_it_stands() -> None:
    assert unit(RUNS, stale=[], shipped=None)[0].text == "active (running) as chimera: 2 of 2 workers ready"


@pytest.mark.parametrize(
    ("health", "ready", "running", "verdict"),
    [
        (None, None, False, "ok"),
        (None, None, True, "fault"),
        (404, None, False, "fault"),
        (200, {"ready_workers": 0}, True, "warning"),
        (200, None, True, "warning"),
        (200, {"ready_workers": 2}, True, "ok"),
    ],
)
def test_the_gateway(health: int | None, ready: Mapping[str, Any] | None, running: bool, verdict: str) -> None:
    (finding,) = gateway("http://g", health, ready, running=running)
    assert finding.verdict == verdict

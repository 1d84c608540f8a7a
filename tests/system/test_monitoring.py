"""A real Prometheus, by the shipped configuration and rules, watches a Chimera (Debian: package prometheus)."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes.chimera import ROOT, Chimera, free_ports, wait_for

MONITORING = ROOT / "scripts" / "monitoring"


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def asked(self, path: str, **parameters: str) -> Any:
        """What it has at a path of its API."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expression: str) -> float | None:
        """The value of an expression that has one; None where it has none yet."""
        found = self.asked("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self._client.close()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """The shipped configuration, but for the target's address and a pace that a test can wait for."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH (Debian: package prometheus)")
    shutil.copy(MONITORING / "chimera.rules.yml", folder)
    config = (MONITORING / "prometheus.yml").read_text().replace("127.0.0.1:8000", target)
    (folder / "prometheus.yml").write_text(re.sub(r"_interval: 15s", "_interval: 1s", config))
    (port,) = free_ports(1, 30_000)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    made = Prometheus(port)
    try:
        wait_for(made.ready, 60)
        yield made
    finally:
        made.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_prometheus_reads_the_metrics_and_evaluates_the_rules(faked: Chimera, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH (Debian: package prometheus)")
    faked.start().ready(2)
    answer = faked.client.post("/api/generate", json={"model": "tiny", "prompt": "hello", "stream": False})
    assert answer.status_code == 200
    with prometheus(tmp_path, f"127.0.0.1:{faked.port}") as watcher:
        wait_for(lambda: watcher.value("sum(chimera_worker_up)") == 2, 60)
        (target,) = watcher.asked("targets")["activeTargets"]
        assert (target["health"], target["labels"]["job"]) == ("up", "chimera")
        assert watcher.value('chimera_requests_total{outcome="ok", route="/api/generate"}') == 1
        assert watcher.value("process_start_time_seconds") is not None

        def evaluated() -> list[dict[str, Any]] | None:
            (group,) = watcher.asked("rules")["groups"]
            return group["rules"] if all(rule["health"] == "ok" for rule in group["rules"]) else None

        rules = wait_for(evaluated, 60)
        written = yaml.safe_load((MONITORING / "chimera.rules.yml").read_text())["groups"][0]["rules"]
        assert [rule["name"] for rule in rules] == [rule["alert"] for rule in written]
        wait_for(lambda: watcher.asked("alerts")["alerts"] == [], 60)  # before its first look it watches nobody

        for panel in json.loads((MONITORING / "chimera.dashboard.json").read_text())["panels"]:
            for asked in panel.get("targets", ()):
                expression = asked["expr"].replace("$__rate_interval", "1m").replace("$job", "chimera")
                watcher.asked("query", query=expression.replace("$instance", ".+"))

        assert faked.command("prune", "--force").returncode == 0
        pending = wait_for(lambda: watcher.asked("alerts")["alerts"], 60)
        assert {(alert["labels"]["alertname"], alert["state"]) for alert in pending} == {
            ("ChimeraNoReadyWorker", "pending")
        }

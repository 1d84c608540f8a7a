"""Alert rules and dashboard: of metrics that Chimera has, and each rule raised by what it is for and only that."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.fleet_metrics import STATES
from gateway.labels import DOOR_REASONS, OTHER
from gateway.phases import BREAKS, LEFT_IN, OUTCOMES, REFUSALS, TRY_OUTCOMES
from scripts.reference import exported as exported_text
from supervisor.xid import XIDS, Action

FOLDER = Path(__file__).parents[2] / "scripts" / "monitoring"
RULES, TESTS, CONFIG = FOLDER / "chimera.rules.yml", FOLDER / "chimera.rules.test.yml", FOLDER / "prometheus.yml"
DASHBOARD = FOLDER / "chimera.dashboard.json"

# What Prometheus itself adds to each series, and `le` of a histogram's buckets.
OF_PROMETHEUS = {"job", "instance", "le"}
VALUES = {
    "state": set(STATES), "outcome": {*OUTCOMES, *TRY_OUTCOMES}, "cause": {*REFUSALS.values(), *BREAKS},
    "kind": {"prompt", "answer"}, "phase": set(LEFT_IN), "reason": {*DOOR_REASONS.values(), OTHER},
    "job": {"chimera", "$job"},
}  # fmt: skip

WORKER = {"id": "w1", "placement": "GPU-1", "state": "IDLE", "inflight": 0, "restarts": 0, "slots": 4}
GPU = {
    "index": 0, "uuid": "GPU-1", "memory_used_bytes": 10, "memory_total_bytes": 20, "utilisation_percent": 30,
    "temperature_c": 45, "power_w": 99.5, "xids": [{"code": 79, "at": "2026-01-02T03:04:05+00:00"}],
}  # fmt: skip


@cache
def exported() -> dict[str, set[str]]:
    """Every series that /metrics can have, and its labels: of a gateway to which everything has happened."""
    found: dict[str, set[str]] = {"up": set()}  # Prometheus' own
    for family in text_string_to_metric_families(exported_text(WORKER, GPU)):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@cache
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_expressions() -> list[tuple[str, str]]:
    """Each expression of the dashboard, with its legend."""
    return [(target["expr"], target["legendFormat"]) for panel in panels() for target in panel.get("targets", ())]


EXPRESSIONS = [
    *((rule["expr"], " ".join(rule["annotations"].values()).replace("$labels.", "")) for rule in rules()),
    *dashboard_expressions(),
]


def series_in(expression: str) -> list[tuple[str, str]]:
    """Each metric in an expression, and what is asked of its labels."""
    return re.findall(
        r"\b((?:chimera|process)_\w+|up)\b(?:\{([^}]*)\})?", re.sub(r"\b(?:by|on) \([^)]*\)", "", expression)
    )


def test_an_expression_is_taken_apart() -> None:
    assert series_in('sum by (up, le) (rate(chimera_a_total{x="y"}[5m])) > on (job) up') == [
        ("chimera_a_total", 'x="y"'), ("up", ""),
    ]  # fmt: skip


# -- what is asked for is there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expression", "told"), EXPRESSIONS)
def test_each_metric_and_label_is_one_that_chimera_has(expression: str, told: str) -> None:
    series = series_in(expression)
    assert series
    known = set(OF_PROMETHEUS)
    for name, asked in series:
        assert name in exported()
        labels = exported()[name] | OF_PROMETHEUS
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', asked):
            assert label in labels, f"{name} has no label {label}"
            if label in VALUES:
                assert set(value.split("|")) <= VALUES[label]
        known |= labels
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    assert {label.strip() for labels in grouped for label in labels.split(",")} <= known
    assert set(re.findall(r"\{\{\s*(\w+)\s*\}\}", told)) <= known


def test_whatever_is_exported_is_on_the_dashboard() -> None:
    shown = {
        name.removesuffix("_bucket") for expression, _ in dashboard_expressions() for name, _ in series_in(expression)
    }
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("chimera_")}
    assert there - shown == set()


# -- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_waits_has_a_severity_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Chimera[A-Za-z]+", rule["alert"])
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    commands = re.findall(r"`([^`]+)`", rule["annotations"]["description"])
    assert commands, "an alert without a command leaves its reader alone"


def test_names_are_unique_and_few_wake_a_person() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    critical = {rule["alert"] for rule in rules() if rule["labels"]["severity"] == "critical"}
    assert critical == {"ChimeraDown", "ChimeraNoReadyWorker", "ChimeraRequestsRefused", "ChimeraRequestsFail"}


def test_each_alert_is_tried_with_what_raises_it_and_with_what_does_not() -> None:
    tried: dict[str, set[bool]] = {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            tried.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in rules()}


def test_the_commands_are_chimeras_own_and_exist() -> None:
    from supervisor.cli import main

    told = " ".join(rule["annotations"]["description"] for rule in rules())
    assert set(re.findall(r"`(?:sudo )?chimera (\w+)", told)) <= set(main.commands)


def test_no_xid_that_harms_a_gpu_is_passed_over() -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == "ChimeraGpuXid"]
    (passed,) = re.findall(r'code!~"([^"]*)"', rule["expr"])
    actions = {code: XIDS[int(code)].action for code in passed.split("|")}
    assert Action.QUARANTINE not in actions.values()


# -- the dashboard -------------------------------------------------------------------------------------------------


def test_the_dashboard_is_sound() -> None:
    whole = json.loads(DASHBOARD.read_text())
    assert (whole["title"], whole["uid"]) == ("Chimera", "chimera")
    assert "id" not in whole, "a database's number: provisioning gives its own"
    assert [variable["name"] for variable in whole["templating"]["list"]] == ["datasource", "job", "instance"]
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: panel["title"])
def test_each_panel_has_a_title_a_unit_and_the_chosen_data_source(panel: dict[str, Any]) -> None:
    assert panel["title"]
    if panel["type"] == "row":
        return
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all('job="$job", instance=~"$instance"' in target["expr"] for target in panel["targets"])


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


# -- Prometheus' own word ------------------------------------------------------------------------------------------


def promtool(*words: str | Path, cwd: Path = FOLDER) -> "subprocess.CompletedProcess[str]":
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on PATH (Debian: package prometheus)")
    return subprocess.run([found, *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [("check", "rules", RULES), ("check", "config", CONFIG), ("test", "rules", TESTS)])
def test_promtool_finds_nothing(words: tuple[str | Path, ...]) -> None:
    done = promtool(*words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_understands_the_dashboards_expressions(tmp_path: Path) -> None:
    expressions = [expr.replace("$__rate_interval", "1m").replace("$", "") for expr, _ in dashboard_expressions()]
    made = [{"record": f"chimera:panel{number}", "expr": expr} for number, expr in enumerate(expressions)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": made}]}))
    done = promtool("check", "rules", "panels.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_that_are_changed_fail_their_tests(tmp_path: Path) -> None:
    other = [rule | {"for": "36h"} for rule in rules()]
    (tmp_path / RULES.name).write_text(json.dumps({"groups": [{"name": "chimera", "rules": other}]}))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    done = promtool("test", "rules", TESTS.name, cwd=tmp_path)
    assert done.returncode == 1
    assert {rule["alert"] for rule in rules()} == set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr))

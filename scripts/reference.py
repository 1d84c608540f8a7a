"""Write docs/reference.md from the code: every setting, command, call of the admin API, metric.

A test says when it is out of date: `.venv/bin/python -m scripts.reference` writes it anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.labels import ModelLabels
from gateway.metrics import Metrics
from gateway.openapi import document
from supervisor.cli import main as command
from supervisor.config import CLIENT_NAMES, Settings
from supervisor.config_load import load_settings
from supervisor.config_text import effective

PLACE = Path(__file__).parents[1] / "docs" / "reference.md"

_HOME = "/HOME"
_METHODS = ("get", "post", "patch", "delete")
_WORKER = {"id": "w1", "placement": "cpu", "state": "IDLE", "inflight": 0, "restarts": 0, "slots": 4}
_GPU = {
    "index": 0, "uuid": "GPU-1", "memory_used_bytes": 0, "memory_total_bytes": 0, "utilisation_percent": 0,
    "temperature_c": 0, "power_w": 0, "xids": [{"code": 79, "at": "2026-01-02T03:04:05+00:00"}],
}  # fmt: skip


def text() -> str:
    """Return the whole document."""
    parts = [
        "# Reference",
        "Written by `python -m scripts.reference` from the code; a test says when it is out of date.",
        "## Settings",
        "In the environment, else in `.env`, else the default. [.env.example](../.env.example) says more of each; "
        "`chimera config` shows those in effect.",
        _table(("setting", "default", ""), _settings()),
        f"For `client.sh` and the scripts alone: {', '.join(f'`{name}`' for name in sorted(CLIENT_NAMES))}.",
        "## Commands",
        _table(("command", ""), _commands()),
        "## Calls",
        "`GET /openapi.json` has the form of each. Those under `/admin` want `Authorization: Bearer ADMIN_TOKEN` where "
        "ADMIN_TOKEN is set, and answer this machine only where it is not.",
        _table(("call", ""), _calls()),
        "## Metrics",
        "At `/metrics`, and `process_*` of the process, as Prometheus' client libraries have them.",
        _table(("metric", "kind", "labels", ""), _metrics()),
    ]
    return "\n\n".join(parts) + "\n"


def _settings() -> Iterator[Sequence[str]]:
    defaults = effective(load_settings({"HOME": _HOME}, {}))
    for field in Settings.model_fields.values():
        name = str(field.alias)
        default = str(defaults[name]).replace(_HOME, "~")
        yield f"`{name}`", f"`{default}`" if default else "", field.description or ""


def _commands() -> Iterator[Sequence[str]]:
    for name, each in sorted(command.commands.items()):
        yield f"`chimera {name}`", " ".join((each.help or "").split())


def _calls() -> Iterator[Sequence[str]]:
    for path, operations in document()["paths"].items():
        if path.startswith(("/api", "/v1")) or path == "/":
            continue
        for method in _METHODS:
            if method in operations:
                yield f"`{method.upper()} {path}`", operations[method]["summary"]


def _metrics() -> Iterator[Sequence[str]]:
    for family in text_string_to_metric_families(exported()):
        if family.name.startswith("chimera_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield f"`{name}`", family.type, ", ".join(sorted(labels)), family.documentation


def exported(worker: dict[str, Any] = _WORKER, gpu: dict[str, Any] = _GPU) -> str:
    """Return the metrics of a gateway to which everything has happened once, with one worker and one GPU."""
    metrics = Metrics(ModelLabels(lambda: ["m:latest"]), lambda: 0.0)
    metrics.ended("/api/chat", 200, "ok", "m", 1.0)
    metrics.tried("w1", "ok")
    metrics.refused("queue_full")
    metrics.refused_at_door(400)
    metrics.left("queue")
    metrics.broken("lost")
    metrics.tokens(1, 1, "m")
    return metrics.render(0, [worker], [gpu]).decode()


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")

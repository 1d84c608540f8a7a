"""docs/reference.md names what there is, and nothing else."""

from gateway.openapi import document
from scripts.reference import PLACE, text
from supervisor.config import CLIENT_NAMES, NAMES

ENV_EXAMPLE = PLACE.parents[1] / ".env.example"


def test_it_is_what_the_code_says_now() -> None:
    assert PLACE.read_text(encoding="utf-8") == text(), "run: .venv/bin/python -m scripts.reference"


def test_every_setting_and_admin_call_is_named() -> None:
    written = text()
    assert {name for name in NAMES | CLIENT_NAMES if f"`{name}`" not in written} == set()
    calls = {
        f"`{method.upper()} {path}`"
        for path, operations in document()["paths"].items() if path.startswith("/admin")
        for method in operations if method != "parameters"
    }  # fmt: skip
    assert {call for call in calls if call not in written} == set()
    assert "`GET /admin/instances`" in calls


def test_every_setting_is_explained_in_the_example() -> None:
    explained = ENV_EXAMPLE.read_text(encoding="utf-8")
    assert {name for name in NAMES | CLIENT_NAMES if f"# {name}=" not in explained} == set()

"""`python -m scripts.bench`: what it runs, what it keeps, and what it says when something could not be measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scripts.bench import __main__ as bench
from scripts.bench import decision
from scripts.bench.measurement import Measure, Options, Record
from tests.fakes.bench import all_records

RECORDS = all_records()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Have measurements return records without measuring; those that a test puts in here cannot be made."""
    made: set[str] = set()

    def measure_of(name: str) -> Callable[[Options], Record]:
        def measure(options: Options) -> Record:
            if name in made:
                raise RuntimeError("no Chimera here")
            return RECORDS[name]

        return measure

    monkeypatch.setattr(bench, "measure_of", measure_of)
    monkeypatch.setattr(bench, "MEASUREMENTS", {name: "" for name in RECORDS if name != "conversations"})
    return made


def bench_command(*words: str) -> Result:
    return CliRunner().invoke(bench.main, words)


def test_all_keeps_every_record_and_writes_the_report(broken: set[str], tmp_path: Path) -> None:
    result = bench_command("all", "--to", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {file.stem for file in tmp_path.glob("*.json")} == set(RECORDS)
    assert "# Chimera next to its peers" in (tmp_path / "README.md").read_text()
    assert (
        "holds          CPU per streamed chunk, 64 streams, in HAProxy's: 2.50 times (at most 3 times)" in result.output
    )


def test_what_cannot_be_measured_is_said_and_the_others_are_measured(broken: set[str], tmp_path: Path) -> None:
    broken.add("cost")
    result = bench_command("all", "--to", str(tmp_path))
    assert result.exit_code == 1
    assert "cost was not measured: no Chimera here" in result.output
    assert result.output.endswith("Error: not measured: cost\n")
    assert "cost: not measured: there is no `cost.json` here" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "growth.json").exists()


def test_a_quick_run_leaves_the_projects_figures_alone(
    broken: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "docs")
    monkeypatch.setattr(bench, "QUICK_FOLDER", tmp_path / "build")
    assert bench_command("all", "--quick").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


def test_one_measurement_prints_its_figures_and_keeps_them_where_it_is_told(broken: set[str], tmp_path: Path) -> None:
    result = bench_command("decision", "--json", str(tmp_path / "d.json"))
    assert json.loads(result.output) == RECORDS["decision"].figures
    assert json.loads((tmp_path / "d.json").read_text())["name"] == "decision"


def test_one_that_cannot_be_made_is_one_line(broken: set[str]) -> None:
    broken.add("decision")
    result = bench_command("decision")
    assert (result.exit_code, result.output) == (1, "Error: decision: no Chimera here\n")


def test_the_report_is_written_again_from_records(broken: set[str], tmp_path: Path) -> None:
    result = bench_command("report", "--from", str(tmp_path))
    assert result.exit_code == 0
    assert "not measured: there is no `cost.json` here" in result.output


@pytest.mark.parametrize("name", [*bench.MEASUREMENTS, "conversations"])
def test_each_measurement_has_its_module_and_its_command(name: str) -> None:
    measure: Measure = bench.measure_of(name)
    assert callable(measure)
    assert name in bench.main.commands
    assert bench_command(name, "--help").exit_code == 0


def test_a_decision_is_timed_and_every_slot_stays_taken() -> None:
    assert decision.decision_us(1, 20) > 0

"""What a measurement leaves: a record, kept as JSON."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.machine import commit, cpu_model, take_files, this_machine
from scripts.bench.measurement import Options, load, record, save
from scripts.bench.peers import Direct, Plain
from tests.fakes.bench import MACHINE, a_record


def test_a_record_that_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    made = a_record(
        "cost", {"rows": [{"side": "Chimera", "cpu_us": 25.5}], "criteria": {"a": 1.5}}, ["nginx is not here"]
    )
    save(made, tmp_path / "new" / "cost.json")
    assert load(tmp_path / "new" / "cost.json") == made


def test_a_figure_that_is_none_is_kept(tmp_path: Path) -> None:
    save(a_record("cost", {"delay": math.nan, "times": None}), tmp_path / "cost.json")
    figures = load(tmp_path / "cost.json").figures
    assert (math.isnan(figures["delay"]), figures["times"]) == (True, None)


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "cost.json")


def changed(**fields: object) -> str:
    """Return the text of a record, some of whose fields are others."""
    machine = {name: getattr(MACHINE, name) for name in MACHINE.__slots__}
    good = {"name": "cost", "command": "c", "machine": machine, "versions": {}, "figures": {}, "left_out": []}
    return json.dumps(good | fields)


def test_what_changed_makes_is_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(changed())
    assert load(tmp_path / "a.json").machine == MACHINE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field"),
        (changed(machine={"cpu": "a"}), r"\$.machine"),
        (changed(figures=[1]), r"\$.figures"),
        (changed(versions={"nginx": 1}), r"\$.versions"),
        (changed(figures={"criteria": {"a": "much"}}), "Expected `float`, got `str`"),
        (changed(figures={"criteria": [1]}), "Expected `object`, got `array`"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "bad.json")


def test_a_record_says_how_it_was_made() -> None:
    options = Options(rounds=3, quick=True, guests=("herd",), machine=MACHINE)
    made = record("cost", options, [Direct(), Plain()], {"rows": []}, ["nginx is left out"])
    assert made.command == "python -m scripts.bench cost --rounds 3 --quick --with herd"
    assert (made.machine, made.left_out) == (MACHINE, ("nginx is left out",))
    assert list(made.versions) == ["direct", "Quart + httpx"]


def test_a_machine_in_one_line() -> None:
    assert MACHINE.text() == (
        "A Processor, 2 cores, 8 GiB, Linux 6.1.0, Python 3.11.7, commit 0123456789, load 0.2 at the start"
    )
    assert MACHINE.what == replace(MACHINE, load_1_min=7.0).what


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [(1024, 4096, 4096), (1024, -1, 65_536), (1024, 1_000_000, 65_536), (100_000, 200_000, 100_000), (-1, -1, -1)],
)
def test_a_run_may_open_as_many_files_as_it_is_let(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, after: int
) -> None:
    limits = [soft, hard]
    monkeypatch.setattr("resource.getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr("resource.setrlimit", lambda _, new: limits.__setitem__(slice(None), list(new)))
    assert take_files() == after
    assert limits == [after, hard]


def test_this_machine_is_one() -> None:
    here = this_machine()
    assert here.cores > 0
    assert here.memory_bytes > 2**20
    assert here.commit


def test_the_processors_name() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: Other\n") == "Some CPU @ 2.00GHz"
    assert cpu_model(""), "else the architecture"


def test_what_a_run_writes_itself_makes_no_commit_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert commit(tmp_path) == "unknown"
    files = [tmp_path / name for name in ("README.md", "code.py", "docs/bench/cost.json")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    clean = commit(tmp_path)
    assert len(clean) == 10
    for file in (files[0], files[2]):
        file.write_text("2")
    assert commit(tmp_path) == clean
    files[1].write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"

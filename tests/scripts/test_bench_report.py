"""The report: every figure, how it was made, and a line in the place of what is not there."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from scripts.bench.criteria import CRITERIA
from scripts.bench.markdown import number, table, times
from scripts.bench.measurement import Record, save
from scripts.bench.proxy_sections import middles
from scripts.bench.report import BEGIN, END, between, write
from scripts.bench.section import other
from scripts.bench.summary import summary
from tests.fakes.bench import SIDES, a_record, all_records
from tests.scripts.test_bench_pictures import inside, texts_of

RECORDS = all_records()
README = f"# Project\n\n{BEGIN}\nold\n{END}\n\nMore.\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All records, in docs/bench of a project."""
    made = tmp_path / "docs" / "bench"
    for name, record in RECORDS.items():
        save(record, made / f"{name}.json")
    (tmp_path / "README.md").write_text(README)
    return made


def written(folder: Path) -> tuple[str, list[str]]:
    """Write the report; return its page and what was said."""
    said: list[str] = []
    write(folder, folder.parents[1] / "README.md", said.append)
    return (folder / "README.md").read_text(), said


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.0449, "0.04"), (1.0, "1.00"), (9.994, "9.99"), (9.996, "10.0"), (24.29, "24.3"), (99.96, "100"),
        (634.4, "634"), (51_224.2, "51,224"), (-0.25, "-0.25"), (None, "–"), (float("nan"), "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_ratio() -> None:
    assert [times(value) for value in (9.324, None, float("nan"))] == ["9.32 ×", "–", "–"]


def test_a_table_keeps_its_cells_apart() -> None:
    assert table(("a", "b"), [["x|y", "1\n2"]]) == ["| a | b |", "| --- | --: |", r"| x\|y | 1 2 |"]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_measurement_and_every_criterion(folder: Path) -> None:
    page, _ = written(folder)
    heads = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert heads == [
        "What is to hold", "Cost: CPU per request and per chunk", "How the cost grows",
        "Saturation: chunks a second on one core", "Makespan: how long a batch takes",
        "Conversations: the first token of later turns", "Workers that die: what is lost", "Memory of the proxy",
        "A decision of the dispatcher",
    ]  # fmt: skip
    assert "| CPU per streamed chunk, 64 streams, in HAProxy's | at most 3 times | 2.50 times | holds |" in page
    assert "| chunks a second on one core, p99 delay under 10 ms | at least 12,000 | 3,000 | does not hold |" in page
    assert "| makespan with two models, in HAProxy leastconn's | at most 0.5 times | – | not measured |" in page


def test_figures_are_ratios_where_two_sides_are_compared(folder: Path) -> None:
    page, _ = written(folder)
    assert "| 64 | Chimera | 25.0 | 2.50 × | 1,234 | 0.50 | -0.25 | 0 |" in page
    assert "| 64 | direct | – | – | 1,234 | – | – | 0 |" in page
    assert "| two models | Chimera | 9.00 | 1.29 × | 2.00 | 4.00 | 0 |" in page
    assert "| 256 | 10.0 | 25.0 | 2.50 × |" in page
    assert "7.01 times sooner" in page
    assert "| Chimera | 12 | 995 | 3 | 2 | 101 | 1,234 | 2.00 | 4.50 |" in page
    assert "| waiting request of 1 KiB | Chimera | 8.00 KiB | 2.00 × | 1,000 |" in page
    assert "| idle | Chimera | 1.95 MiB | 1.00 × | – |" in page


def test_each_measurement_says_how_it_was_made_and_who_was_left_out(folder: Path) -> None:
    page, _ = written(folder)
    for name, record in RECORDS.items():
        assert f"Made with `python -m scripts.bench {name} --rounds 5` on {record.machine.text()}." in page
    assert "nginx 1.22.1, HAProxy 2.6.12, Quart + httpx: quart 0.20, httpx 0.28, Chimera 0123456789." in page
    assert "- LiteLLM is left out: no" in page


def test_requests_that_failed_are_said_and_their_figure_is_in_no_line(folder: Path) -> None:
    page, _ = written(folder)
    assert "25.0 (1,200 failed)" in page
    assert "Chimera, unary by queue 100: 1,200 failed: status 503" in page
    points = [
        one.get("points", "").split() for one in Xml.parse(folder / "growth-queue.svg").iter() if one.get("points")
    ]
    assert [len(line) for line in points] == [2, 1], "HAProxy's, and Chimera's without it"


def test_every_picture_is_there_and_every_side_in_it(folder: Path) -> None:
    page, _ = written(folder)
    pictures = {file.name for file in folder.glob("*.svg")}
    assert {name for name in pictures if f"]({name})" in page} == pictures
    assert pictures == {
        "cost-request.svg", "cost-chunk.svg", "cost-streams.svg", "growth-workers-chunk.svg", "saturation-64.svg",
        "growth-workers-request.svg", "growth-queue.svg", "saturation-256.svg", "makespan-mixed.svg",
        "makespan-unequal.svg", "makespan-two-models.svg", "conversations-2.svg", "conversations-4.svg",
        "kills.svg", "memory-idle.svg",
        "memory-idle-connection.svg", "memory-waiting-request-of-1-KiB.svg", "memory-waiting-request-of-64-KiB.svg",
    }  # fmt: skip
    for name in pictures:
        picture = (folder / name).read_text()
        inside(picture)
        texts = texts_of(picture)
        of_two = name.startswith(("growth", "conversations"))
        sides = ("HAProxy", "Chimera") if of_two else SIDES if name.startswith(("sat", "make")) else SIDES[1:]
        assert set(sides) <= set(texts)
        foot = " ".join(texts)
        assert "python -m scripts.bench" in foot
        assert "A Processor" in foot
        assert "HAProxy 2.6.12" in foot


def test_the_report_of_the_same_records_is_the_same(folder: Path) -> None:
    first, _ = written(folder)
    readme = (folder.parents[1] / "README.md").read_text()
    assert written(folder)[0] == first
    assert (folder.parents[1] / "README.md").read_text() == readme


def test_a_line_through_what_was_tried_joins_what_is_near() -> None:
    steps = [{"asked_per_s": rate, "delay_p99_ms": delay} for rate, delay in
             ((3000, 2.0), (2900, 4.0), (3100, 9.0), (6000, 20.0), (9000, float("nan")), (300, 5.0))]  # fmt: skip
    assert middles(steps) == ((3000, 4.0), (6000, 20.0)), "nobody asks for 300 a second"


def test_of_a_rate_that_was_tried_once_more_the_line_has_what_came_of_that() -> None:
    steps = [{"asked_per_s": 2000, "delay_p99_ms": delay} for delay in (70.0, 3.0)]
    assert middles(steps) == ((2000, 3.0),)


# -- what is not there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_missing_is_a_line(folder: Path, name: str) -> None:
    (folder / f"{name}.json").unlink()
    page, said = written(folder)
    line = f"{name}: not measured: there is no `{name}.json` here"
    assert f"{line}." in page
    assert line in said


def test_with_no_record_at_all_there_is_a_page(tmp_path: Path) -> None:
    said: list[str] = []
    write(tmp_path / "new", None, said.append)
    assert (tmp_path / "new" / "README.md").read_text().count("not measured") == len(RECORDS) + len(CRITERIA)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "cost"}', "\x00"])
@pytest.mark.parametrize("name", ["cost", "decision"])
def test_a_file_that_is_no_record_is_a_line(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.json").write_text(text)
    page, said = written(folder)
    assert f"{name}: not shown: `{name}.json` cannot be read: " in page
    assert any(line.startswith(f"{name}: not shown") for line in said)
    assert "Conversations: the first token" in page, "the others are shown"


BAD_FIGURES: list[dict[str, Any]] = [
    {},
    {"rows": None, "sides": None, "rounds_us": None},
    {"rows": [1], "sides": [1], "rounds_us": 1},
    {"rows": [{"what": "stream"}], "sides": {"Chimera": {}}, "decision_us": "much", "rounds_us": [], "workers": 1},
    {"rows": [{"what": "unary", "size": "x", "side": None, "cpu_us": "y", "streams": []}], "rate": "z"},
]


@pytest.mark.parametrize("figures", BAD_FIGURES)
@pytest.mark.parametrize("name", RECORDS)
def test_figures_of_another_form_are_a_line(folder: Path, name: str, figures: dict[str, Any]) -> None:
    save(replace(RECORDS[name], figures=figures), folder / f"{name}.json")
    page, _ = written(folder)
    assert f"{name}: not shown: the figures in `{name}.json` have another form: " in page
    assert page.count("not shown") == 1


def test_figures_of_another_form_say_nothing_of_the_criteria(folder: Path) -> None:
    save(replace(RECORDS["cost"], figures={"criteria": {"chunk_times_haproxy": 1.0}}), folder / "cost.json")
    page, _ = written(folder)
    assert "in HAProxy's | at most 3 times | – | not measured |" in page


def test_a_measurement_without_a_section_is_shown_as_it_is(folder: Path) -> None:
    rows = [{"side": "Chimera", "lost_requests": 0, "p99_ms": 12.34, "rounds": [1, 2], "note": None}]
    save(a_record("newer", {"rows": rows, "every_s": 10}), folder / "newer.json")
    page, _ = written(folder)
    assert "## Newer" in page
    assert "| side | lost requests | p99 ms | note |" in page
    assert "| Chimera | 0 | 12.3 | – |" in page
    assert "every s: 10.0" in page
    assert other(a_record("empty", {})).text == []


def test_a_quick_run_is_named_as_one(folder: Path) -> None:
    assert "quick run" not in written(folder)[0]
    save(replace(RECORDS["cost"], command="python -m scripts.bench cost --rounds 1 --quick"), folder / "cost.json")
    assert "quick run" in written(folder)[0]


# -- the project's README ----------------------------------------------------------------------------------------------


def test_the_projects_readme_gets_the_table_between_its_marks(folder: Path) -> None:
    written(folder)
    text = (folder.parents[1] / "README.md").read_text()
    assert text.startswith(f"# Project\n\n{BEGIN}\n|")
    assert text.endswith(f"{END}\n\nMore.\n")
    assert "old" not in text
    assert "|  | nginx | HAProxy | Quart + httpx | Chimera |" in text
    assert (
        "| CPU per streamed chunk, 64 streams | 9.00 µs (0.90 ×) | 10.0 µs | 130 µs (13.0 ×) | 25.0 µs (2.50 ×) |"
        in text
    )
    assert (
        "| first token of a conversation's later turns, real Ollama, 4 workers | – | 2,874 ms | – | 410 ms (0.14 ×) |"
        in text
    )
    assert "| requests lost or answers cut, of 1,000, a worker killed every 10 s | 5.00 (1.00 ×) | 5.00 |" in text
    assert (
        "| first byte meanwhile, p99 | 1,234 ms (1.00 ×) | 1,234 ms | 1,234 ms (1.00 ×) | 1,234 ms (1.00 ×) |" in text
    )
    assert "| memory of a waiting request of 1 KiB | 2.00 KiB (0.50 ×) | 4.00 KiB |" in text
    assert text.count("![") == 2
    assert "](docs/bench/cost-chunk.svg)" in text
    assert "[docs/bench/README.md](docs/bench/README.md)" in text
    assert "`make bench` on A Processor, 2 cores, 8 GiB, Linux 6.1.0, Python 3.11.7, commit 0123456789" in text
    assert "HAProxy 2.6.12" in text


@pytest.mark.parametrize("text", ["no marks", BEGIN, f"{END} {BEGIN}"])
def test_a_readme_without_marks_is_left_alone(folder: Path, text: str) -> None:
    readme = folder.parents[1] / "README.md"
    readme.write_text(text)
    _, said = written(folder)
    assert readme.read_text() == text
    assert f"{readme} is as it was: there are no {BEGIN} and {END}" in said


def test_what_is_between_the_marks_is_replaced() -> None:
    assert between(f"a{BEGIN}b{END}c", "new\n") == f"a{BEGIN}\nnew\n{END}c"


def test_before_anything_is_measured_it_says_so() -> None:
    assert summary([], [], Path("docs/bench")).startswith("Nothing is measured yet: `make bench` does")


def test_records_of_two_machines_are_told_apart() -> None:
    other_machine = replace(RECORDS["makespan"], machine=replace(RECORDS["makespan"].machine, cpu="Another"))
    text = summary([RECORDS["cost"], other_machine], [], Path("docs/bench"))
    assert "on A Processor, 2 cores, 8 GiB, Linux 6.1.0, Python 3.11.7, commit 0123456789 (cost); " in text
    assert "on Another, 2 cores, 8 GiB, Linux 6.1.0, Python 3.11.7, commit 0123456789 (makespan)" in text


def test_a_run_of_other_rounds_is_told_as_it_was() -> None:
    record = replace(RECORDS["cost"], command="python -m scripts.bench cost --rounds 1 --with herd")
    assert '`make bench ARGS="--rounds 1 --with herd"` on A Processor' in summary([record], [], Path("docs/bench"))


def test_a_failed_request_is_in_the_table_too() -> None:
    rows = [row | {"failed": 7} for row in RECORDS["makespan"].figures["rows"]]
    made = replace(RECORDS["makespan"], figures=RECORDS["makespan"].figures | {"rows": rows})
    assert "9.00 s (1.29 ×), 7 failed" in summary([made], [], Path("docs/bench"))


def test_the_projects_own_readme_has_the_marks() -> None:
    text = (ROOT / "README.md").read_text()
    assert between(text, "x").count(BEGIN) == 1


def test_a_record_is_plain_json() -> None:
    for record in RECORDS.values():
        assert isinstance(record, Record)
        json.dumps(asdict(record))

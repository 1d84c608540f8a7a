"""make test-faults: what its rows say of what was measured, and which of them are broken."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.faults.driver import GPU_A, RET, Driver
from scripts.faults.load import Asked, read_answer
from scripts.faults.machine import ShiftedClock, alive, boot_s, cpu_s, started_boot_s
from scripts.faults.row import COLUMNS, MIB, Fate, Outcome, Row, cells, count, first_good, judge, markdown, seconds
from scripts.faults.run import SCENARIOS, chosen, in_order

GOOD = Outcome(1.0, 2.0, Fate.GOOD, "w1")
TOKEN, END = '{"response":"a","done":false}\n', '{"response":"","done":true}\n'


# --- Rows


def test_a_row_counts_what_became_of_the_load() -> None:
    row = Row("serve killed", "real")
    count(row, [GOOD, Outcome(1, 2, Fate.LOST), Outcome(1, 2, Fate.CUT, "w1", 3), Outcome(1, 2, Fate.RESENT)])
    assert (row.good, row.lost, row.cut, row.retried) == (1, 1, 1, 2)
    assert row.notes == ["1 sent again by their clients, since no gateway listened"]


@pytest.mark.parametrize(
    ("row", "cuts", "broken"),
    [
        (Row("f", "fake", good=1), False, []),
        (Row("f", "fake", good=1, cut=2), True, []),
        (Row("f", "fake", good=1, cut=2), False, ["2 cut, though no answer's worker was struck"]),
        (Row("f", "fake", good=1, lost=1), True, ["1 lost (503: busy)"]),
        (Row("f", "fake", good=1, left=3), True, ["3 processes left"]),
        (Row("f", "fake", good=1, held_bytes=9 * MIB, returned_bytes=2 * MIB), True, ["7 MiB not returned"]),
        (Row("f", "fake"), True, ["no request was answered at all"]),
    ],
)
def test_a_broken_promise_is_named(row: Row, cuts: bool, broken: list[str]) -> None:
    judge(row, cuts=cuts, why_lost=["503: busy"])
    assert (row.broken, row.kept) == (broken, not broken)


@pytest.mark.parametrize(
    ("since", "worker", "expected"),
    [(0.0, None, 2.0), (1.0, None, 2.0), (1.5, None, 5.0), (0.0, "w2", 5.0), (0.0, "w3", None), (9.0, None, None)],
)
def test_the_first_good_answer_is_to_a_request_after_the_fault(
    since: float, worker: str | None, expected: float | None
) -> None:
    outcomes = [Outcome(3.0, 3.5, Fate.CUT, "w1"), Outcome(4.0, 5.0, Fate.GOOD, "w2"), GOOD]
    assert first_good(outcomes, since, worker) == expected


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0021, "0.002"), (0.9996, "1.000"), (4.04, "4.0")])
def test_times_are_short(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_the_cells_of_a_row() -> None:
    row = Row("TERM ignored", "fake", 0.004, 0.1, 2.5, 9, 0, 1, 2, 0, 30 * MIB, 30 * MIB, ["noted"])
    assert cells(row) == (
        "TERM ignored", "fake", "0.004", "0.100 (2.5 by its worker)", "0", "1", "2", "0", "30 of 30 MiB", "kept; noted",
    )  # fmt: skip
    row.broken.append("1 lost")
    assert cells(row)[-1] == "BROKEN: 1 lost; noted"


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), max_size=3))
def test_the_page_is_one_line_per_row_whatever_was_said(notes: list[str]) -> None:
    page = markdown([Row("a", "fake", notes=[*notes, "two\nlines | and a bar"])], "Measured.").splitlines()
    assert page[0] == "# Faults"
    assert len(page) == 7
    assert page[4] == "| " + " | ".join(COLUMNS) + " |"
    assert page[6].count(" | ") == page[4].count(" | ")


# --- The load


@pytest.mark.parametrize(
    ("status", "text", "fate"),
    [
        (200, TOKEN + END, Fate.GOOD),
        (200, END, Fate.GOOD),
        (200, '{"response":"a\u2028b\x85","done":true}', Fate.GOOD),
        (200, TOKEN, Fate.CUT),
        (200, "", Fate.CUT),
        (200, TOKEN + '{"error":"the worker was lost"}\n', Fate.CUT),
        (200, TOKEN + '{"done":tr', Fate.CUT),
        (503, '{"error":"busy"}', Fate.LOST),
        (500, '{"error":"unexpected EOF"}', Fate.LOST),
    ],
)
def test_an_answer_is_good_only_when_it_says_that_it_is_done(status: int, text: str, fate: Fate) -> None:
    outcome = read_answer(httpx.Response(status, text=text), Asked())
    assert outcome.fate is fate
    assert (outcome.why is None) is (fate is Fate.GOOD)


# --- The scenarios


def test_each_fault_of_the_list_is_there_once() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(names) == len(set(names)) >= 24
    for word in ("killed", "stopped", "TERM", "port", "leftovers", "slower", "loop", "disk", "OOM", "Xid", "lost",
                 "NVML", "mismatch", "fallback", "clock", "pull"):  # fmt: skip
        assert any(word in name for name in names), word


def test_scenarios_are_chosen_by_a_part_of_their_name() -> None:
    assert [scenario.name for scenario in chosen(["xid 79"])] == ["Xid 79"]
    assert {scenario.kind for scenario in chosen([], "fake")} == {"fake"}
    assert len(chosen([])) == len(SCENARIOS)
    with pytest.raises(KeyError):
        chosen(["nothing like this"])


def test_rows_stand_in_the_order_of_the_scenarios() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert [row.fault for row in in_order(Row(name, "fake") for name in reversed(names))] == names


# --- The machine


def test_a_process_knows_when_it_started_and_what_it_cost() -> None:

    own = psutil.Process()
    started_s = started_boot_s(own.pid)
    assert started_s is not None
    assert 0 < started_s < boot_s()
    assert cpu_s(own.pid) > 0
    assert alive(own)
    assert started_boot_s(2**22 + 1) is None


def test_the_fake_driver_takes_back_the_memory_of_the_dead(tmp_path: Path) -> None:

    driver = Driver(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as process:
        driver.fake.gpus[0].processes = {process.pid: 512}
        driver.fake.gpus[0].used_mib += 512
        driver.fake.write()
        driver.reap()
        assert driver.taken_mib() == 512
        process.kill()
    driver.reap()
    assert driver.taken_mib() == 0
    driver.set(GPU_A, RET, 15)
    driver.says("hang", 5)
    assert "|15||0" in driver.fake.state.read_text()
    assert driver.fake.state.read_text().count("!hang 5\n") == 1
    driver.says("hang", 0)
    back = driver.unload()
    assert not driver.fake.state.exists()
    back()
    assert "!hang" not in driver.fake.state.read_text()


def test_a_shifted_clock_jumps_in_a_running_process(tmp_path: Path) -> None:

    clock = ShiftedClock(tmp_path)
    program = "import time\nfor _ in range(2): input(); print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | clock.environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read() -> tuple[float, float]:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            wall, monotonic = process.stdout.readline().split()  # type: ignore[union-attr]
            return float(wall), float(monotonic)

        before, clock_before = read()
        clock.jump(-3600)
        after, clock_after = read()
    assert after - before == pytest.approx((clock_after - clock_before) - 3600, abs=5)

"""Which request a worker was given, in the worker's own log."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervisor.lines import LineWriter
from supervisor.logfiles import append
from supervisor.notes import MARK, WorkerLogNotes
from supervisor.worker_log import last_lines

STAMP = "2026-11-24T10:00:00.123Z"


async def test_the_notes_stand_between_ollamas_own_lines(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("time=2026 level=INFO source=routes.go\n")
    writer: LineWriter[Path] = LineWriter("workers' logs", append)
    notes = WorkerLogNotes(lambda worker_id: tmp_path / f"{worker_id}.log", writer, lambda: STAMP)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        notes.begins("w1", "req-1", "llama3")
        with trio.fail_after(20):
            while "begins" not in log.read_text():
                await trio.sleep(0.01)
        with log.open("a") as ollama:
            ollama.write("[GIN] 200\n")
        notes.ends("w1", "req-1", 200, "ok", 1.2344)
        notes.begins("w1", "req-2", None)
        nursery.cancel_scope.cancel()
    assert log.read_text().splitlines() == [
        "time=2026 level=INFO source=routes.go",
        f"{STAMP} chimera request=req-1 model=llama3 begins",
        "[GIN] 200",
        f"{STAMP} chimera request=req-1 ends status=200 outcome=ok after_ms=1234",
        f"{STAMP} chimera request=req-2 begins",
    ]
    assert last_lines(log, 9, without=MARK) == ["time=2026 level=INFO source=routes.go", "[GIN] 200"]


@pytest.mark.parametrize("model", ["m\ntime=2026 level=ERROR", "m begins", "\x1b[2J", "x" * 1000])
def test_a_model_is_one_word_whatever_it_is_called(model: str) -> None:
    assert_one_word(model)


@given(st.text(min_size=1))
def test_any_model_is_one_word(model: str) -> None:
    assert_one_word(model)


def assert_one_word(model: str) -> None:
    put: list[str] = []

    class Writer(LineWriter[Path]):
        def __init__(self) -> None:
            pass

        def put(self, place: Path, line: str) -> None:
            put.append(line)

    WorkerLogNotes(Path, Writer(), lambda: STAMP).begins("w1", "r", model)
    (line,) = put
    assert line.isascii()
    assert line.isprintable()
    assert len(line.split(" ")) == 5
    assert len(line) < 200

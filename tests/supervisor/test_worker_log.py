"""A worker's own log: appended to, set aside when it has grown, read from its end or from a mark on."""

import os
from pathlib import Path

import pytest

from supervisor import worker_log
from supervisor.worker_log import last_lines, open_log, size_of, written_since


def write(log: Path, text: bytes) -> str | None:
    """Write what a process would; return what is said of the log."""
    file, problem = open_log(log)
    os.write(file, text)
    os.close(file)
    return problem


def test_a_log_is_appended_to_and_its_folder_made(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "w1.log"
    assert [write(log, b"again\n"), write(log, b"again\n")] == [None, None]
    assert last_lines(log, 9) == ["again", "again"]


def test_a_log_that_has_grown_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_log, "ROTATE_BYTES", 10)
    log = tmp_path / "w1.log"
    log.write_text("eleven bytes")
    (tmp_path / "w1.log.1").write_text("an older generation")
    write(log, b"new\n")
    assert last_lines(log, 9) == ["new"]
    assert (tmp_path / "w1.log.1").read_text() == "eleven bytes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w1.log", "w1.log.1"]


def test_a_full_disk_is_said_and_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 10, 5, 5, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _file: full)
    log = tmp_path / "w1.log"
    assert write(log, b"there is room again\n") == f"its log {log} cannot be written: the disk is full"
    assert last_lines(log, 1) == ["there is room again"]


def test_a_log_that_cannot_be_opened_is_none_and_what_is_written_is_lost(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    problem = write(tmp_path / "logs" / "w1.log", b"lost\n")
    assert problem is not None
    assert problem.startswith(f"its log {tmp_path}/logs/w1.log cannot be written: ")


@pytest.mark.parametrize(
    ("text", "count", "lines"),
    [
        ("", 3, []),
        ("a\nb\nc\n", 2, ["b", "c"]),
        ("a\nb\nc", 9, ["a", "b", "c"]),
        ("a\nb\n", 0, []),
        ("x" * 200 + "\nlast\n", 1, ["last"]),
    ],
)
def test_the_last_lines_are_the_last_lines(tmp_path: Path, text: str, count: int, lines: list[str]) -> None:
    (tmp_path / "log").write_text(text)
    assert last_lines(tmp_path / "log", count, at_most_bytes=100) == lines


def test_no_log_has_no_lines_and_odd_bytes_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\xfe ok\n")
    assert last_lines(tmp_path / "none", 5) == []
    assert last_lines(tmp_path / "log" / "below", 5) == []
    assert last_lines(tmp_path / "log", 5)[0].endswith(" ok")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (b"old\n", b"old\nnew\n", "new\n"),
        (b"", b"new\n", "new\n"),
        (b"a long old log\n", b"new\n", "new\n"),  # set aside, and begun anew
        (b"old\n", b"old\n" + b"x" * 20, "x" * 10),  # its beginning is enough
        (b"old\n", b"old\n", ""),
        (b"old\n", None, ""),
    ],
)
def test_what_a_process_has_written_is_what_has_come_since_its_start(
    tmp_path: Path, before: bytes, after: bytes | None, text: str
) -> None:
    log = tmp_path / "w1.log"
    assert size_of(log) == 0
    log.write_bytes(before)
    begin = size_of(log)
    log.unlink() if after is None else log.write_bytes(after)
    assert written_since(log, begin, at_most_bytes=10) == text

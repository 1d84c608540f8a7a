"""Lines in logs that others write too, with real files."""

import os
import threading
from pathlib import Path

import pytest

from supervisor.logfiles import PIPE_BYTES, append, write_own


def test_lines_are_added_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("ollama's\n")
    append(log, ["ours", "too"])
    assert log.read_text() == "ollama's\nours\ntoo\n"


def test_half_a_line_is_not_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("loading model ....")
    append(log, ["ours"])
    assert log.read_text() == "loading model ....\nours\n"


def test_a_log_that_is_not_there_yet_is_made_and_not_for_everybody(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    append(log, ["ours"])
    assert (log.read_text(), log.stat().st_mode & 0o007) == ("ours\n", 0)


def test_after_a_rotation_lines_go_into_the_new_log(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    append(log, ["before"])
    log.replace(log.with_suffix(".log.1"))  # as a worker's start does
    append(log, ["after"])
    assert log.read_text() == "after\n"


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        append(tmp_path, ["ours"])
    with pytest.raises(OSError, match="No such file"):
        append(tmp_path / "not" / "there.log", ["ours"])


def test_many_lines_into_a_pipe_do_not_mix_with_anothers() -> None:
    read, write = os.pipe()
    got: list[bytes] = []

    def reader() -> None:
        with os.fdopen(read, "rb") as pipe:
            got.extend(pipe.readlines())

    listening = threading.Thread(target=reader)
    listening.start()
    ours = [f"ours {number} {'x' * 200}" for number in range(2000)]

    def other() -> None:
        for number in range(2000):
            os.write(write, f"other {number} {'y' * 200}\n".encode())

    beside = threading.Thread(target=other)
    beside.start()
    write_own(None, ours, stderr=write)
    beside.join()
    os.close(write)
    listening.join()
    assert [line for line in got if line.startswith(b"ours")] == [f"{line}\n".encode() for line in ours]
    assert len(got) == 4000
    assert all(len(line) < PIPE_BYTES for line in got)

"""Lines in logs that others write too, with real files."""

import os
import threading
from pathlib import Path

import pytest

from supervisor.logfiles import PIPE_BYTES, LogFiles, OwnLog, set_aside


def test_lines_are_added_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("ollama's\n")
    LogFiles().append(log, ["ours", "too"])
    assert log.read_text() == "ollama's\nours\ntoo\n"


def test_half_a_line_is_not_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("loading model ....")
    LogFiles().append(log, ["ours"])
    assert log.read_text() == "loading model ....\nours\n"


def test_a_log_that_is_not_there_yet_is_made_and_not_for_everybody(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    LogFiles().append(log, ["ours"])
    assert (log.read_text(), log.stat().st_mode & 0o007) == ("ours\n", 0)


def test_after_a_rotation_lines_go_into_the_new_log(tmp_path: Path) -> None:
    log, files = tmp_path / "w1.log", LogFiles()
    files.append(log, ["before"])
    log.replace(log.with_suffix(".log.1"))  # as a worker's start does
    files.append(log, ["after"])
    assert log.read_text() == "after\n"


def test_a_log_that_grew_is_set_aside_and_its_process_goes_on_in_the_same_file(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    ollama = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ollama, b"x" * 100 + b"\n")
        LogFiles(aside_bytes=50).append(log, ["ours"])
        os.write(ollama, b"ollama goes on\n")
    finally:
        os.close(ollama)
    assert log.read_text() == "ollama goes on\n"
    assert log.with_suffix(".log.1").read_text() == "x" * 100 + "\nours\n"


def test_where_there_is_no_room_to_set_it_aside_it_is_kept_and_not_tried_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def full(source: Path, target: Path) -> None:
        tried.append(target)
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("supervisor.logfiles.shutil.copyfile", full)
    log, files = tmp_path / "w1.log", LogFiles(aside_bytes=5)
    for _ in range(3):
        files.append(log, ["12345"])
    assert log.read_text() == "12345\n" * 3
    assert len(tried) == 1
    assert not log.with_suffix(".log.1").exists()


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        LogFiles().append(tmp_path, ["ours"])
    with pytest.raises(OSError, match="No such file"):
        LogFiles().append(tmp_path / "not" / "there.log", ["ours"])


def test_many_lines_into_a_pipe_do_not_mix_with_anothers() -> None:
    read, write = os.pipe()
    got: list[bytes] = []

    def reader() -> None:
        with os.fdopen(read, "rb") as pipe:
            got.extend(pipe.readlines())

    listening = threading.Thread(target=reader)
    listening.start()
    ours = [f"ours {number} {'x' * 200}" for number in range(2000)]
    own = OwnLog(Path("/nowhere"), stderr=write)

    def other() -> None:
        for number in range(2000):
            os.write(write, f"other {number} {'y' * 200}\n".encode())

    beside = threading.Thread(target=other)
    beside.start()
    own.write(None, ours)
    beside.join()
    os.close(write)
    listening.join()
    assert [line for line in got if line.startswith(b"ours")] == [f"{line}\n".encode() for line in ours]
    assert len(got) == 4000
    assert all(len(line) < PIPE_BYTES for line in got)


def test_chimeras_own_log_is_set_aside_but_nobody_elses_file(tmp_path: Path) -> None:
    own, others = tmp_path / "chimera.log", tmp_path / "redirected.txt"
    for path in (own, others):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            OwnLog(own, aside_bytes=10, stderr=file).write(None, ["a line of more than ten bytes"])
        finally:
            os.close(file)
    assert own.read_text() == ""
    assert own.with_suffix(".log.1").read_text() == "a line of more than ten bytes\n"
    assert others.read_text() == "a line of more than ten bytes\n"


def test_setting_aside_says_whether_it_did(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    log.write_text("text")
    with log.open("r+b") as file:
        assert set_aside(file.fileno(), log)
    assert log.read_text() == ""

"""Logs are kept within their bound while others write them, with real files; a full disk, a file that goes."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from supervisor import log_keeper, rotation
from supervisor.log_keeper import END_BYTES, LogKeeper, keep, look, set_aside

MIB = 1024**2
MOST = 16 * MIB


def wrote(path: Path, size_bytes: int, at: float | None = None) -> Path:
    path.write_bytes(b"x" * (size_bytes - 1) + b"\n")
    if at is not None:
        os.utime(path, (at, at))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_log_is_copied_and_emptied_and_its_process_goes_on_in_the_same_file(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    ollama = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ollama, b"before\n")
        set_aside(log)
        os.write(ollama, b"after\n")
    finally:
        os.close(ollama)
    assert log.read_text() == "after\n"
    aside = tmp_path / "w1.log.1"
    assert (aside.read_text(), aside.stat().st_mode & 0o777) == ("before\n", 0o640)
    assert names(tmp_path) == ["w1.log", "w1.log.1"]


def test_a_log_that_its_workers_start_renames_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, aside = wrote(tmp_path / "w1.log", 100), tmp_path / "w1.log.1"
    copy = shutil.copyfileobj

    def and_renamed(source: Any, target: Any) -> None:
        log.replace(aside)
        wrote(log, 10)
        copy(source, target)

    monkeypatch.setattr("supervisor.log_keeper.shutil.copyfileobj", and_renamed)
    set_aside(log)
    assert (log.stat().st_size, aside.stat().st_size) == (10, 100)


def no_room(_source: Any, target: Any) -> None:
    target.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("told_before", [True, False])
def test_on_a_full_disk_a_log_keeps_its_end_and_grows_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_before: bool
) -> None:
    if told_before:
        monkeypatch.setattr(log_keeper, "_has_room", lambda _file, _size: False)
    else:
        monkeypatch.setattr("supervisor.log_keeper.shutil.copyfileobj", no_room)
    log = wrote(tmp_path / "w1.log", 3 * MIB)
    with log.open("ab") as file:
        file.write(b"the last line\n")
    set_aside(log)
    aside = (tmp_path / "w1.log.1").read_bytes()
    assert log.read_bytes() == b""
    assert (len(aside), aside.endswith(b"x\nthe last line\n")) == (END_BYTES, True)
    assert names(tmp_path) == ["w1.log", "w1.log.1"]


def test_what_is_too_much_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    wrote(tmp_path / "w1.log", 4 * MIB)
    for number in range(2, 8):
        wrote(tmp_path / f"w{number}.log", 3 * MIB, at=time.time_ns() / 1e9 - 1000 + number)
    wrote(tmp_path / "else.log", 20 * MIB)
    assert keep(tmp_path, ["w1"], MOST) == frozenset()
    assert names(tmp_path) == ["else.log", "w1.log", "w1.log.1", "w4.log", "w5.log", "w6.log", "w7.log"]


def test_a_link_is_its_makers_affair(tmp_path: Path) -> None:
    (tmp_path / "w1.log").symlink_to("/dev/null")
    (tmp_path / "w2.log").mkdir()
    assert look(tmp_path) == []


def test_a_file_or_a_folder_that_has_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep(tmp_path / "none", [], MOST) == frozenset()
    listed = [rotation.LogFile("w1.log", 99 * MIB, 0.0), rotation.LogFile("w2.log", 99 * MIB, 0.0)]
    monkeypatch.setattr(log_keeper, "look", lambda _: listed)
    assert keep(tmp_path, ["w1"], MOST) == frozenset()


def test_what_cannot_be_done_is_said_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w2.log").mkdir()
    wrote(tmp_path / "w1.log", 4 * MIB)
    listed = [rotation.LogFile("w2.log", 4 * MIB, 0.0), *look(tmp_path)]
    monkeypatch.setattr(log_keeper, "look", lambda _: listed)
    assert keep(tmp_path, ["w1", "w2"], MOST) == {f"{tmp_path}/w2.log: Is a directory"}
    assert (tmp_path / "w1.log").stat().st_size == 0
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    assert keep(tmp_path / "file", [], MOST) == {f"{tmp_path}/file: Not a directory"}


async def test_the_task_looks_again_and_says_a_fault_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, folder = 0, tmp_path / "logs"
    folder.write_text("no folder")

    def counted(path: Path) -> list[rotation.LogFile]:
        nonlocal looks
        looks += 1
        return look(path)

    async def looked(times: int) -> None:
        with trio.fail_after(60):
            until = looks + times
            while looks < until:
                await trio.sleep(0.001)

    monkeypatch.setattr(log_keeper, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(log_keeper, "look", counted)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(LogKeeper(folder, lambda: frozenset({"w1"}), lambda: MOST).run)
            await looked(3)
            folder.unlink()
            folder.mkdir()
            wrote(folder / "w1.log", 4 * MIB)
            await looked(3)
            nursery.cancel_scope.cancel()
    assert names(folder) == ["w1.log", "w1.log.1"]
    assert [line["cause"] for line in lines] == [f"{folder}: Not a directory"]

"""One Chimera per state directory, however the last one ended."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor import lock
from supervisor.errors import StartRefused
from supervisor.lock import NAME, holder, locked

HOLD = """
import sys
from pathlib import Path
from supervisor.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_directory_is_made_private_and_names_its_holder(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    with locked(state):
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / NAME).read_text() == f"{os.getpid()}\n"
        assert holder(state) == os.getpid()
    assert holder(state) is None
    assert (state / NAME).read_text() == ""


def test_a_second_one_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert holder(tmp_path) == first.pid
        with pytest.raises(StartRefused) as refused, locked(tmp_path):
            pass
        assert str(refused.value).startswith(f"another Chimera (process {first.pid}) runs with STATE_DIR {tmp_path}")
        first.kill()
        first.wait()
        assert holder(tmp_path) is None
        with locked(tmp_path):  # the killed one's lock is free, though its pid is still written there
            assert holder(tmp_path) == os.getpid()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with locked(tmp_path):
            assert holder(tmp_path) == os.getpid()
    finally:
        child.kill()
        child.wait()


def test_an_error_in_the_block_gives_the_lock_back(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for state in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartRefused) as refused, locked(state):
            pass
        assert str(refused.value).startswith(f"STATE_DIR: {state} cannot be used: ")
        assert holder(state) is None


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_locks_place_is_set_aside(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / NAME)
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(f"{NAME}.corrupt-")]) == 1


def test_a_lock_file_that_may_not_be_opened_stays_for_somebody_may_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / NAME).touch()
    monkeypatch.setattr(lock.os, "open", denied)  # type: ignore[attr-defined]
    with pytest.raises(StartRefused) as refused, locked(tmp_path):
        pass
    assert str(refused.value) == (
        f"STATE_DIR: {tmp_path} cannot be used: Permission denied; it must be a folder that Chimera's user may write, "
        "or set another"
    )
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_full_disk_is_one_clear_line_and_the_lock_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "pwrite", full)  # type: ignore[attr-defined]
        with pytest.raises(StartRefused, match="No space left on device; free some space"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None


@pytest.mark.parametrize("written", ["", "1\n", "999999999\n", "no number\n", "\xff\n"])
def test_a_lock_on_the_same_inode_number_by_somebody_else_is_not_taken_for_a_chimera(
    tmp_path: Path, written: str
) -> None:
    """A file of another file system may have the same inode number, and `chimera stop` signals whoever is named."""
    with locked(tmp_path):
        (tmp_path / NAME).write_text(written, encoding="latin-1")
        assert holder(tmp_path) is None

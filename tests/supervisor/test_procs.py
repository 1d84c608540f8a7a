"""/proc read in one pass: names that lie, groups whose leader is gone, zombies that are none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from supervisor import procs
from supervisor.procs import Census, Proc, parse_stat, private_bytes, scan, stat_of

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["ollama", "a b", ") R 1 1 (", "))", ""])
def test_a_name_may_hold_anything(name: str) -> None:
    rest = "S 7 9 9 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 8 0 1234 5678 42 18446744073709551615 0 0"
    assert parse_stat(f"4711 ({name}) {rest}\n".encode()) == Proc(4711, 7, 9, "S", 200, 1234, 42 * PAGE)


def test_this_very_process_is_found_as_psutil_finds_it() -> None:
    own = stat_of(os.getpid())
    assert own is not None
    known = psutil.Process()
    assert (own.ppid, own.pgid) == (known.ppid(), os.getpgrp())
    assert own.rss_bytes > 1024**2
    assert own.pid in {member.pid for member in scan()[os.getpgrp()]}


def test_a_group_is_found_by_its_number_when_its_leader_is_gone_and_zombies_are_none() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        left = int(leader.stdout.readline())
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie until it is reaped
        assert [member.pid for member in scan()[leader.pid]] == [left]
        os.killpg(leader.pid, signal.SIGKILL)


def test_what_is_gone_is_none(tmp_path: Path) -> None:
    assert stat_of(2**22 + 1) is None
    assert private_bytes(2**22 + 1) is None
    assert scan(tmp_path) == {}


def fake_process(proc: Path, pid: int, pgid: int, state: str = "S") -> Path:
    """Write what /proc says of a process."""
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / f"{pid}/stat").write_text(
        f"{pid} (x) {state} 1 {pgid} {pgid} 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 99 0 5 0 0 0\n"
    )
    return proc / str(pid)


def test_what_is_not_ours_to_see_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_process(tmp_path, 5, 5)

    def hidden(*_args: object, **_more: object) -> object:
        raise PermissionError(13, "hidepid")

    monkeypatch.setattr(procs, "open", hidden, raising=False)
    assert scan(tmp_path) == {}


def test_no_descriptor_left_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_process(tmp_path, 5, 5)

    def exhausted(*_args: object, **_more: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(procs, "open", exhausted, raising=False)
    with pytest.raises(OSError, match="Too many open files"):
        scan(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pids whose files were read."""
    read: list[str] = []

    def counting(pid: int | str, proc: Path = procs.PROC) -> Proc | None:
        read.append(str(pid))
        return stat_of(pid, proc)

    monkeypatch.setattr(procs, "stat_of", counting)
    return read


def take(census: Census, reads: list[str], *wanted: int) -> tuple[list[int], list[str]]:
    """The pids found in the wanted groups, and those that were read for it."""
    reads.clear()
    found = census.take(wanted)
    return sorted(member.pid for members in found.values() for member in members), sorted(reads)


def test_those_outside_are_soon_passed_over_and_members_never(tmp_path: Path, reads: list[str]) -> None:
    for pid, pgid in ((2, 0), (3, 0), (10, 10), (11, 10)):
        fake_process(tmp_path, pid, pgid)
    census = Census(tmp_path)
    assert [take(census, reads, 10) for _ in range(3)] == [([10, 11], ["10", "11", "2", "3"])] * 3
    assert take(census, reads, 10) == ([10, 11], ["10", "11"])
    fake_process(tmp_path, 12, 10)  # a new runner
    assert take(census, reads, 10) == ([10, 11, 12], ["10", "11", "12"])


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path, reads: list[str]) -> None:
    fake_process(tmp_path, 10, 10)
    stranger = fake_process(tmp_path, 20, 20)
    census = Census(tmp_path)
    for _ in range(5):
        take(census, reads, 10)
    stranger.rename(tmp_path / "old")  # so that its inode is not given to the next
    fake_process(tmp_path, 20, 10)
    assert take(census, reads, 10) == ([10, 20], ["10", "20"])


def test_a_group_that_becomes_wanted_is_found_whole(tmp_path: Path, reads: list[str]) -> None:
    fake_process(tmp_path, 10, 10)
    fake_process(tmp_path, 30, 30)
    census = Census(tmp_path)
    for _ in range(5):
        take(census, reads, 10)
    assert take(census, reads, 10, 30) == ([10, 30], ["10", "30"])
    assert take(census, reads, 30)[0] == [30]


def test_a_real_group_is_found_again_and_again() -> None:
    census = Census()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        assert [[m.pid for m in census.take([child.pid])[child.pid]] for _ in range(6)] == [[child.pid]] * 6
        child.kill()
    assert census.take([child.pid]) == {}


def test_private_memory_is_what_is_ones_own_in_ram_and_in_swap(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(
        "Name:\tx\nVmRSS:\t900 kB\nRssAnon:\t 300 kB\nRssFile:\t600 kB\nVmSwap:\t 20 kB\n"
    )
    assert private_bytes(7, tmp_path) == 320 * 1024
    mine = private_bytes(os.getpid())
    assert mine is not None
    assert 0 < mine < 2 * psutil.Process().memory_info().rss

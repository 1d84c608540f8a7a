"""/proc read in one pass: names that lie, groups whose leader is gone, zombies that are none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from supervisor.procs import Proc, parse_stat, private_bytes, scan, stat_of

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
    assert own in [stat_of(member.pid) for member in scan()[os.getpgrp()]] or own.pid in {
        member.pid for member in scan()[os.getpgrp()]
    }


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


def test_private_memory_is_what_is_ones_own_in_ram_and_in_swap(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text(
        "Name:\tx\nVmRSS:\t900 kB\nRssAnon:\t 300 kB\nRssFile:\t600 kB\nVmSwap:\t 20 kB\n"
    )
    assert private_bytes(7, tmp_path) == 320 * 1024
    mine = private_bytes(os.getpid())
    assert mine is not None
    assert 0 < mine < 2 * psutil.Process().memory_info().rss

"""What processes have cost, by the kernel's accounts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from scripts.bench.accounts import Memory, cpu_s, field_bytes, memory, with_children
from scripts.bench.load_run import cpu_of

SMAPS = "Rss:    2048 kB\nPss:              1000 kB\nPss_Dirty:     7 kB\nRssAnon:\t    12 kB\n"


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def gone(sleeper: "subprocess.Popen[bytes]") -> int:
    sleeper.kill()
    sleeper.wait()
    return sleeper.pid


@pytest.mark.parametrize("reads", [cpu_s, cpu_of])
def test_cpu_is_counted_as_the_process_itself_counts_it(reads: object) -> None:
    assert callable(reads)
    before, began = time.process_time(), reads([os.getpid()])
    while time.process_time() < before + 0.02:
        pass
    least = time.process_time() - before
    assert reads([os.getpid()]) - began >= least * 0.99


def test_what_has_ended_counts_for_nothing(gone: int) -> None:
    assert (cpu_s([gone]), cpu_of([gone]), with_children(gone), memory([gone])) == (0.0, 0.0, (), Memory(0, 0))


def test_a_process_and_its_children(sleeper: "subprocess.Popen[bytes]") -> None:
    assert with_children(os.getpid())[0] == os.getpid()
    assert sleeper.pid in with_children(os.getpid())


def test_memory_is_added_up(sleeper: "subprocess.Popen[bytes]") -> None:
    mine, both = memory([os.getpid()]), memory([os.getpid(), sleeper.pid])
    assert 0 < mine.anonymous_bytes < both.anonymous_bytes
    assert mine.proportional_bytes > 0


@pytest.mark.parametrize(("name", "value"), [("Pss", 1000 * 1024), ("RssAnon", 12 * 1024), ("Swap", 0)])
def test_a_field_is_found_by_its_whole_name(name: str, value: int) -> None:
    assert field_bytes(SMAPS, name) == value

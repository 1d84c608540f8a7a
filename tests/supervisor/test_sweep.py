"""What a former run left behind is ended; what is anybody else's is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from supervisor.command import MARK, mark_of
from supervisor.sweep import leftovers, sweep

QUIET = "import signal; print(flush=True); signal.alarm(60); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {QUIET}"

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with a mark (None: without); at the end of the test it is killed, and only it."""
    with ExitStack() as stack:

        def begin(mark: str | None, code: str = QUIET) -> "subprocess.Popen[bytes]":
            environ = {"PATH": os.environ["PATH"]} | ({MARK: mark} if mark is not None else {})
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code], env=environ, stdout=subprocess.PIPE, start_new_session=True
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            child.stdout.readline()  # it is past its own start
            return child

        yield begin


async def test_leftovers_are_ended_and_others_are_not(tmp_path: Path, start: Start) -> None:
    own = [start(mark_of(tmp_path, "w1")), start(mark_of(tmp_path, "primary"))]
    others = [start(mark_of(tmp_path / "other", "w1")), start(None), start(""), start(mark_of(tmp_path, "")[:-2])]
    with trio.fail_after(10):
        assert await sweep(tmp_path, stop_timeout_s=5) == 2
    assert [child.wait(1) for child in own] == [-signal.SIGTERM] * 2
    assert [child.poll() for child in others] == [None] * 4


async def test_a_leftover_that_ignores_term_is_killed(tmp_path: Path, start: Start) -> None:
    stubborn = start(mark_of(tmp_path, "w1"), STUBBORN)
    with trio.fail_after(10):
        assert await sweep(tmp_path, stop_timeout_s=0.2) == 1
    assert stubborn.wait(1) == -signal.SIGKILL


async def test_a_stopped_leftover_is_ended(tmp_path: Path, start: Start) -> None:
    child = start(mark_of(tmp_path, "w1"))
    child.send_signal(signal.SIGSTOP)
    with trio.fail_after(10):
        assert await sweep(tmp_path, stop_timeout_s=5) == 1
    assert child.wait(1) == -signal.SIGTERM


async def test_nothing_left_is_nothing_done(tmp_path: Path) -> None:
    with trio.fail_after(30):
        assert await sweep(tmp_path, stop_timeout_s=5) == 0


def test_chimera_itself_is_no_leftover(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from supervisor.sweep import leftovers;"
        f"print([p.pid for p in leftovers(Path({str(tmp_path)!r}))])"
    )
    environ = os.environ | {MARK: mark_of(tmp_path, "w1")}
    said = subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True).stdout
    assert said == "[]\n"


def test_leftovers_are_found_with_their_numbers(tmp_path: Path, start: Start) -> None:
    child = start(mark_of(tmp_path, "w7"))
    assert [found.pid for found in leftovers(tmp_path)] == [child.pid]

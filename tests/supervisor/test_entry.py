"""The first moments of the command, while Python reads the program."""

import signal
import subprocess
import sys

import pytest

# Somebody presses Ctrl-C just when the program is looked for.
PRESSED = """
import os, signal, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "supervisor.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from supervisor.entry import main
sys.argv = ["chimera", "--version"]
main()
"""
# What the commands find when they begin.
FOUND = """
import signal, sys, types
cli = sys.modules["supervisor.cli"] = types.ModuleType("supervisor.cli")
cli.main = lambda: print(getattr(signal.getsignal(signal.SIGINT), "__name__", "ignored"))
from supervisor.entry import main
main()
"""


def run(program: str, *, ignored: bool = False) -> "subprocess.CompletedProcess[str]":
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, preexec_fn=ignore
    )


def test_who_presses_ctrl_c_while_the_program_is_read_sees_nothing() -> None:
    done = run(PRESSED)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_where_it_is_ignored_it_stays_so() -> None:
    done = run(PRESSED, ignored=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("chimera")


@pytest.mark.parametrize(("ignored", "found"), [(False, "default_int_handler"), (True, "ignored")])
def test_the_commands_find_it_as_it_was(ignored: bool, found: str) -> None:
    assert run(FOUND, ignored=ignored).stdout.strip() == found

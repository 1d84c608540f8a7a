"""Output that goes to a full disk: /dev/full is one."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor import output

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/var/a"), False),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False),
    ],
)
def test_only_an_error_of_the_output_itself_is_one(error: OSError, full: bool) -> None:
    assert output.is_full(error) is full


def test_a_stream_without_a_file_is_left_alone() -> None:
    output.forget(io.StringIO())


@pytest.mark.parametrize("words", ["config", "env"])
def test_a_command_whose_output_has_no_room_says_so_in_one_line(words: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor", *words.split()], stdout=full, stderr=subprocess.PIPE, text=True,
            env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "chimera: standard output cannot be written: No space left on device\n",
    )

"""How commands tell what is wrong: one line each, the exit status, and the service's status for systemd."""

import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from supervisor.cli_faults import faults_told
from supervisor.errors import BadConfiguration, StartRefused


def told(error: Exception | None) -> Result:
    @click.command()
    @faults_told()
    def command() -> None:
        if error is not None:
            raise error

    return CliRunner().invoke(command)


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (None, 0, ""),
        (StartRefused("chimera is not running"), 1, "chimera: chimera is not running\n"),
        (
            BadConfiguration(["A: bad", "B: bad"]),
            78,
            "chimera: bad configuration: A: bad\nchimera: bad configuration: B: bad\n",
        ),
    ],
)
def test_a_fault_is_a_line_and_a_status(error: Exception | None, status: int, lines: str) -> None:
    done = told(error)
    assert (done.exit_code, done.stdout, done.stderr) == (status, "", lines)


def test_a_bug_is_not_told_as_a_fault_and_usage_is_told_by_click() -> None:
    assert isinstance(told(KeyError("x")).exception, KeyError)
    assert told(click.UsageError("say what is to change")).exit_code == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StartRefused("port 8000 is taken"), b"STATUS=port 8000 is taken"),
        (BadConfiguration(["A: bad", "B: bad"]), b"STATUS=bad configuration: A: bad; B: bad"),
    ],
)
def test_systemd_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told(error)
        assert status in manager.recv(4096)

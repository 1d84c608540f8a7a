"""`chimera reload`, `upgrade-check` and `units`: exit statuses, and one clear line per fault."""

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from gateway.database import Database, url_of
from supervisor import cli_service
from supervisor.cli import main
from supervisor.errors import StartRefused
from supervisor.reload import Outcome
from tests.fakes.serving import FAKE_OLLAMA


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the test's own, from a file; no service manager."""
    for name in ("MAINPID", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "STATE_DIRECTORY", "LOGS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, f"STATE_DIR={tmp_path}/state\nOLLAMA_BIN={FAKE_OLLAMA}\n")


def write(folder: Path, text: str) -> None:
    (folder / ".env").write_text(text)


def chimera(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def lines(result: Result) -> list[str]:
    return result.output.splitlines()


# -- reload ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Path]]:
    """A Chimera that answers each reload; what it was asked."""
    asked: list[tuple[int, Path]] = []

    def ask(pid: int, directory: Path) -> Outcome:
        asked.append((pid, directory))
        return Outcome(pid, 1, ["in force: QUEUE_SIZE"], []) if pid != 13 else Outcome(pid, 1, [], ["A: bad", "B: bad"])

    monkeypatch.setattr(cli_service, "ask_for_reload", ask)
    return asked


def test_a_reload_says_what_was_done(
    tmp_path: Path, running: list[tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_service, "holder", lambda state_dir: 4711 if state_dir == tmp_path / "state" else None)
    result = chimera("reload")
    assert (result.exit_code, lines(result)) == (0, ["in force: QUEUE_SIZE"])
    assert running == [(4711, tmp_path / "state")]


def test_systemd_names_the_process_and_the_folder_whatever_the_file_says(
    tmp_path: Path, running: list[tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "STATE_DIR=elsewhere\nthis is no setting\n")
    monkeypatch.setenv("MAINPID", "12")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/chimera")
    assert chimera("reload").exit_code == 0
    assert running == [(12, Path("/run/chimera"))]


def test_a_refused_reload_has_every_fault_and_the_status_of_a_bad_configuration(
    running: list[tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAINPID", "13")
    result = chimera("reload")
    assert (result.exit_code, lines(result)) == (
        78, ["chimera: bad configuration: A: bad", "chimera: bad configuration: B: bad"],
    )  # fmt: skip


def test_without_a_chimera_there_is_nothing_to_reload() -> None:
    result = chimera("reload")
    assert (result.exit_code, lines(result)) == (1, ["chimera: chimera is not running"])


# -- upgrade-check ---------------------------------------------------------------------------------------------------


def test_a_version_says_that_it_accepts_the_settings() -> None:
    result = chimera("upgrade-check")
    assert result.exit_code == 0
    assert f"accepts .env; it would run {FAKE_OLLAMA}; " in lines(result)[0]
    assert lines(result)[0].endswith("state/chimera.db: it will be made")


def test_a_version_does_not_accept_a_database_of_a_newer_one(tmp_path: Path) -> None:
    database = Database(url_of(None, tmp_path))
    database.open()
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of_tomorrow'"))
    write(tmp_path, f"STATE_DIR={tmp_path}\nOLLAMA_BIN={FAKE_OLLAMA}\n")
    result = chimera("upgrade-check")
    assert result.exit_code == 1
    assert "is of another version of Chimera (of_tomorrow)" in lines(result)[0]


def test_a_damaged_database_is_no_reason_against_a_version(tmp_path: Path) -> None:
    (tmp_path / "chimera.db").write_bytes(b"no database")
    write(tmp_path, f"STATE_DIR={tmp_path}\nOLLAMA_BIN={FAKE_OLLAMA}\n")
    result = chimera("upgrade-check")
    assert (result.exit_code, "it is damaged" in lines(result)[0]) == (0, True)


def test_a_version_says_every_setting_that_it_does_not_accept(tmp_path: Path) -> None:
    write(tmp_path, "QUEUE_SIZE=many\nGONE_WITH_THIS_VERSION=1\n")
    result = chimera("upgrade-check")
    assert result.exit_code == 78
    assert [line.split(": ")[2] for line in lines(result)] == ["GONE_WITH_THIS_VERSION", "QUEUE_SIZE"]


# -- units -----------------------------------------------------------------------------------------------------------


def test_units_are_shown(tmp_path: Path) -> None:
    write(tmp_path, f"STATE_DIR={tmp_path}\nGATEWAY_PORT=9000\n")
    result = chimera("units")
    assert result.exit_code == 0
    assert "# /etc/systemd/system/chimera.socket.d/50-settings.conf" in lines(result)
    assert "ListenStream=127.0.0.1:9000" in lines(result)


def test_units_are_written_once(tmp_path: Path) -> None:
    into = tmp_path / "units"
    first = chimera("units", "--write", "--into", str(into))
    assert first.exit_code == 0
    assert lines(first)[0] == "written: chimera.socket.d/50-settings.conf, chimera.service.d/50-settings.conf"
    assert "ListenStream=127.0.0.1:8000\n" in (into / "chimera.socket.d" / "50-settings.conf").read_text()
    assert lines(chimera("units", "--write", "--into", str(into))) == ["nothing has changed"]


def test_systemd_reads_them_where_they_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(cli_service, "SYSTEM_UNITS", tmp_path / "units")
    monkeypatch.setattr(cli_service, "_daemon_reload", lambda: told.append("daemon-reload"))
    for _ in range(2):
        assert chimera("units", "--write", "--into", str(tmp_path / "units")).exit_code == 0
    assert told == ["daemon-reload"]


def test_what_systemctl_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StartRefused, match="systemctl daemon-reload: no bus"):
        cli_service._daemon_reload()


def test_a_host_that_is_no_address_and_a_folder_that_cannot_be_written_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    result = chimera("units", "--write", "--into", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert "cannot be written" in lines(result)[0]
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = chimera("units")
    assert (result.exit_code, lines(result)) == (78, ["chimera: bad configuration: GATEWAY_HOST: '127.0.0.1': unknown"])


def unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "unknown")

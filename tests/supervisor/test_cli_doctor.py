"""`chimera doctor`: what it prints, its exit status, and that it changes nothing."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisor import cli_doctor
from supervisor.cli import main
from supervisor.cli_doctor import subject_of
from supervisor.config import NAMES
from tests.fakes.serving import FAKE_OLLAMA, free_port


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the test's own, from a file; no service of this machine's."""
    for name in (*NAMES, "STATE_DIRECTORY", "LOGS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_doctor, "unit_shown", lambda _: {})
    write(tmp_path)


def write(folder: Path, **names: object) -> None:
    given = {"STATE_DIR": folder / "state", "OLLAMA_BIN": FAKE_OLLAMA, "OLLAMA_MODELS": folder / "models",
             "GATEWAY_PORT": free_port(), "OLLAMA_PORT": free_port()}  # fmt: skip
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in {**given, **names}.items()))


def chimera(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


CHECKS = ["settings", "gpu", "ollama", "ports", "store", "disk", "memory", "limits", "rights", "database", "clock",
          "service", "certificate", "gateway"]  # fmt: skip


def test_every_check_has_its_lines_and_nothing_is_made(tmp_path: Path) -> None:
    result = chimera("doctor", "--json")
    told = json.loads(result.output)
    assert list(dict.fromkeys(row["check"] for row in told["findings"])) == CHECKS
    assert all(row["advice"] for row in told["findings"] if row["verdict"] != "ok")
    assert result.exit_code == (1 if told["verdict"] == "fault" else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env"]


def test_people_get_lines() -> None:
    lines = chimera("doctor").output.splitlines()
    assert lines[0] == "ok       settings     .env: no fault"
    assert all(line[:9].strip() in ("ok", "warning", "fault", "") for line in lines)


def test_a_fault_is_exit_status_1_and_every_one_is_told(tmp_path: Path) -> None:
    write(tmp_path, QUEUE_SIZE="many", WORKERS="some")
    result = chimera("doctor")
    assert result.exit_code == 1
    about = [line.split()[2] for line in result.output.splitlines() if line.startswith("fault    settings")]
    assert sorted(about) == ["QUEUE_SIZE:", "WORKERS:"]
    assert "all that follows is of the default settings" in result.output


def test_a_secret_at_fault_is_not_repeated(tmp_path: Path) -> None:
    write(tmp_path, ADMIN_TOKEN="hunter2é", DATABASE_URL="mysql://me:hunter2@here/x")
    assert "hunter2" not in chimera("doctor").output


def test_a_database_that_is_none_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "chimera.db").write_text("this is no database" * 100)
    (tmp_path / "state" / "chimera.db").chmod(0o600)
    result = chimera("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("fault    database")]
    assert "it is damaged" in line


def test_the_services_user_counts_and_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "unit_shown", lambda _: {"User": "nobody", "MainPID": "4711"})
    it = subject_of(tmp_path / ".env", dict(os.environ))
    assert (it.account.name, it.pid) == ("nobody", 4711)


def test_without_the_settings_only_what_needs_none_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_doctor, "_is_hidden", lambda _: True)
    write(tmp_path, QUEUE_SIZE="many")  # as good as a file that cannot be read
    result = chimera("doctor", "--json")
    told = json.loads(result.output)
    assert list(dict.fromkeys(row["check"] for row in told["findings"])) == ["settings", "gpu", "clock", "service"]
    assert (result.exit_code, told["findings"][0]["advice"]) == (0, "sudo chimera doctor")


def test_a_file_is_hidden_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert not cli_doctor._is_hidden(tmp_path / "none")
    assert not cli_doctor._is_hidden(tmp_path)
    monkeypatch.setattr(Path, "open", shut)
    assert cli_doctor._is_hidden(tmp_path / ".env")

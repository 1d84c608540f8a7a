"""The `chimera` command: exit statuses, one clear line per fault, and what its own commands print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.cli import main
from supervisor.config import NAMES
from tests.fakes.command_line import Chimera, chimera
from tests.fakes.serving import FAKE_OLLAMA, free_port

__all__ = ["chimera"]  # a fixture

ROOT = Path(__file__).parents[2]


# -- exit statuses ---------------------------------------------------------------------------------------------------


def test_a_broken_dotenv_ends_with_78_and_a_line_for_each_fault(tmp_path: Path) -> None:
    file = tmp_path / "broken.env"
    file.write_text("GATEWAY_PORT=x\nQUEUE_SIZE=-1\nGATEWAY_HOTS=y\nhunter2\nADMIN_TOKEN=hunter2é\n")
    environ = {name: text for name, text in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "--env-file", file, "run"],
        env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    lines = done.stderr.splitlines()
    assert all(line.startswith("chimera: bad configuration: ") for line in lines)
    about = sorted(line.removeprefix("chimera: bad configuration: ").split(":")[0] for line in lines)
    assert about == sorted(["ADMIN_TOKEN", "GATEWAY_HOTS", "GATEWAY_PORT", "QUEUE_SIZE", f"{file} line 4"])
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "words", [["explode"], ["spawn", "--count", "0"], ["spawn", "--count", "x"], ["drain"], ["logs", "w1", "-n", "-1"]]
)
def test_wrong_usage_is_2(chimera: Chimera, words: list[str]) -> None:
    done = chimera(*words)
    assert done.exit_code == 2
    assert "Usage: chimera" in done.stderr


COMMANDS = [
    ["status"], ["status", "--json"], ["status", "--watch"], ["spawn"], ["prune"], ["drain", "w1"], ["cordon", "w1"],
    ["uncordon", "w1"], ["restart", "w1"], ["logs", "w1"], ["logs", "-f", "w1"], ["gpus"], ["gpus", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_a_gateway_there_is_one_clear_line_and_status_1(chimera: Chimera, words: list[str]) -> None:
    port = free_port()
    done = chimera(*words, GATEWAY_PORT=str(port))
    assert done.exit_code == 1
    assert done.stderr == (
        f"chimera: no gateway answers at http://127.0.0.1:{port}; start one with `make run` or `chimera start`\n"
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_bad_configuration_is_78_for_every_command(chimera: Chimera, words: list[str]) -> None:
    done = chimera(*words, GATEWAY_PORT="x")
    assert done.exit_code == 78
    assert done.stderr.startswith("chimera: bad configuration: GATEWAY_PORT: ")


def test_stop_without_a_chimera_is_done(chimera: Chimera) -> None:
    done = chimera("stop")
    assert (done.exit_code, done.stdout) == (0, "chimera is not running\n")


def test_help_names_every_command_of_the_contract(chimera: Chimera) -> None:
    done = chimera("-h")
    assert done.exit_code == 0
    assert set(main.commands) >= {
        "run", "start", "stop", "status", "spawn", "prune", "drain", "cordon", "uncordon", "restart", "logs", "gpus",
        "config", "doctor",
    }  # fmt: skip
    assert all(command.help for command in main.commands.values())
    assert chimera("--version").stdout.startswith("chimera, version ")
    assert "..." not in done.stdout.partition("Commands:")[2]  # each has its whole sentence


def test_ctrl_c_of_a_start_says_that_chimera_goes_on(chimera: Chimera, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("supervisor.background.start", interrupted)
    done = chimera("start")
    assert done.exit_code == 1
    assert done.stderr.startswith("chimera: interrupted; Chimera goes on in the background")
    assert done.stderr.count("\n") == 1


# -- config ----------------------------------------------------------------------------------------------------------


def test_config_prints_every_setting_and_the_ollama(chimera: Chimera) -> None:
    done = chimera("config", ADMIN_TOKEN="hunter2", WORKERS="cpu=2")
    assert done.exit_code == 0
    *rows, ollama = done.stdout.splitlines()
    assert {row.partition("=")[0] for row in rows} == NAMES
    assert "WORKERS=cpu=2" in rows
    assert ollama == f"# ollama: {FAKE_OLLAMA}"
    assert "hunter2" not in done.stdout


def test_env_is_what_client_sh_needs_quoted_for_the_shell(chimera: Chimera, tmp_path: Path) -> None:
    assert chimera("env", GATEWAY_PORT="8100").stdout == "export CHIMERA_URL=http://127.0.0.1:8100\n"
    file = tmp_path / "chimera.env"
    file.write_text('ADMIN_TOKEN="it\'s; secret"\nCHIMERA_URL=http://elsewhere:80\nCHIMERA_API_KEY=k\n')
    script = chimera("--env-file", str(file), "env").stdout + 'echo "$ADMIN_TOKEN $CHIMERA_URL $CHIMERA_API_KEY"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "it's; secret http://elsewhere:80 k\n"


def test_config_heeds_the_env_file(chimera: Chimera, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("QUEUE_SIZE=7\n")
    (tmp_path / "other").write_text("QUEUE_SIZE=8\n")
    assert "QUEUE_SIZE=7\n" in chimera("config").stdout
    assert "QUEUE_SIZE=8\n" in chimera("--env-file", "other", "config").stdout


def test_an_ollama_that_cannot_be_run_is_bad_configuration(chimera: Chimera) -> None:
    done = chimera("config", OLLAMA_BIN="/no/such")
    assert done.exit_code == 78
    assert done.stderr == "chimera: bad configuration: OLLAMA_BIN: '/no/such' is not a program that can be run\n"

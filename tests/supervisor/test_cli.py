"""The `chimera` command: exit statuses, one clear line per fault, and what it asks of the gateway."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from supervisor import cli
from supervisor.cli import main, read_dotenv
from supervisor.config import NAMES
from tests.fakes.serving import FAKE_OLLAMA, free_port

ROOT = Path(__file__).parents[2]
WORKER: dict[str, Any] = {
    "id": "w1", "state": "IDLE", "placement": "cpu", "gpu": None, "port": 11500, "slots": 4, "inflight": 0,
    "models": [], "restarts": 0, "uptime_s": 1.0, "last_exit": None, "problem": None, "trouble": None, "rss_bytes": 0,
    "cpu_percent": 0.0,
}  # fmt: skip
FLEET: dict[str, Any] = {
    "instances": [WORKER], "queue": {"depth": 0, "size": 512, "oldest_s": 0},
    "primary": {"url": "http://127.0.0.1:11434", "state": "READY", "problem": None, "store": None, "trouble": None},
}  # fmt: skip
GPUS: dict[str, Any] = {"gpus": [], "driver_version": None, "fault": "NVML library not found"}


class Gateway(ThreadingHTTPServer):
    """Answers as it is told, and writes down what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answerer)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.says("GET /admin/instances", FLEET)
        self.says("GET /admin/gpus", GPUS)

    def says(self, request: str, value: object, status: int = 200) -> None:
        self.answers[request] = (status, value if isinstance(value, bytes) else json.dumps(value).encode())


class Answerer(BaseHTTPRequestHandler):
    """One connection of the gateway above."""

    server: Gateway

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.command, self.path, body))
        self.server.tokens.append(self.headers.get("Authorization"))
        status, said = self.server.answers.get(f"{self.command} {self.path}", (404, b'{"error": "not found"}'))
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


Chimera = Callable[..., Result]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def chimera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chimera:
    """Run the command in this process, with an empty environment and the test's own `.env`."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str, **names: str) -> Result:
        values = {"STATE_DIR": str(tmp_path / "state"), "OLLAMA_BIN": str(FAKE_OLLAMA)} | names
        return CliRunner().invoke(main, list(words), env=values, prog_name="chimera")

    return invoke


@pytest.fixture
def asks(chimera: Chimera, gateway: Gateway) -> Chimera:
    """The same, with a gateway that answers."""

    def invoke(*words: str, **names: str) -> Result:
        return chimera(*words, GATEWAY_PORT=str(gateway.server_port), **names)

    return invoke


# -- .env ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n\n", {}),
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("A=\n", {"A": ""}),
        ("export A=1", {"A": "1"}),
        ("A='x # y'\nB=x # y\n", {"A": "x # y", "B": "x"}),
        ('A="a\\nb"\n', {"A": "a\nb"}),
        ("  A = 1  \n", {"A": "1"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("A=${HOME}\n", {"A": "${HOME}"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=x=y\n", {"A": "x=y"}),
    ],
)
def test_a_dotenv_is_read_as_everybodys_tools_do(tmp_path: Path, text: str, values: dict[str, str]) -> None:
    (tmp_path / ".env").write_text(text, encoding="utf-8", newline="")
    assert read_dotenv(tmp_path / ".env") == (values, ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A=1\nhunter2\n", "line 2: this is not NAME=VALUE"),
        ("\n\n  \nhunter2\n", "line 4: this is not NAME=VALUE"),
        ("A B=hunter2\n", "line 1: this is not NAME=VALUE"),
        ("1 = hunter2 3\n=hunter2", "line 2: this is not NAME=VALUE"),
        ("# c\nTOKEN='hunter2\n", "line 2: TOKEN: this is not NAME=VALUE"),
        ("NAME 8000\n", "line 1: this is not NAME=VALUE"),
    ],
)
def test_a_line_that_is_none_is_named_by_its_number_and_never_repeated(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / ".env"
    path.write_text(text, encoding="utf-8")
    assert fault in "\n".join(read_dotenv(path)[1])
    assert "hunter2" not in str(read_dotenv(path)[1])


def test_no_dotenv_is_no_fault_and_an_unreadable_one_is_a_line(tmp_path: Path) -> None:
    assert read_dotenv(tmp_path / "none") == ({}, ())
    assert read_dotenv(tmp_path)[1][0].startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert read_dotenv(tmp_path / "binary")[1][0].startswith(f"{tmp_path}/binary: cannot be read: ")


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


@pytest.mark.parametrize("said", [b"<html>", b"[]", b"\xff"])
@pytest.mark.parametrize("status", [200, 404])
def test_another_program_on_the_port_is_one_clear_line(
    asks: Chimera, gateway: Gateway, said: bytes, status: int
) -> None:
    gateway.says("GET /admin/instances", said, status)
    done = asks("status")
    assert done.exit_code == 1
    assert done.stderr.startswith("chimera: http://127.0.0.1:")
    assert done.stderr.endswith("is another program listening there?\n")
    assert done.stderr.count("\n") == 1


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


# -- talking to the gateway ------------------------------------------------------------------------------------------


def test_status_is_a_table_or_json(asks: Chimera) -> None:
    table = asks("status")
    assert table.exit_code == 0
    assert "1 of 1 ready" in table.stdout
    assert json.loads(asks("status", "--json").stdout) == FLEET | GPUS


def test_gpus_are_a_table_or_json(asks: Chimera) -> None:
    assert asks("gpus").stdout == "GPUs: none (NVML library not found)\n"
    assert json.loads(asks("gpus", "--json").stdout) == GPUS


def test_spawn_says_what_there_is_now(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("POST /admin/instances/spawn", {"instances": [WORKER | {"state": "STARTING"}]}, 202)
    done = asks("spawn", "--gpu", "0", "--count", "2", "--slots", "3")
    assert (done.exit_code, done.stdout) == (0, "w1  cpu  port 11500  STARTING\n")
    asked = {"gpu": "0", "count": 2, "slots": 3, "wait": False}
    assert gateway.asked == [("POST", "/admin/instances/spawn", asked)]
    waited = asks("spawn", "--wait")
    assert waited.exit_code == 1
    assert waited.stderr == "chimera: not every new worker is ready; see: chimera status\n"
    gateway.says("POST /admin/instances/spawn", {"instances": [WORKER]}, 202)
    assert asks("spawn", "--wait").exit_code == 0


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ([], {"ids": None, "gpu": None, "idle": False, "force": False}),
        (["w1", "w2", "--force"], {"ids": ["w1", "w2"], "gpu": None, "idle": False, "force": True}),
        (["--gpu", "cpu", "--idle"], {"ids": None, "gpu": "cpu", "idle": True, "force": False}),
    ],
)
def test_prune_asks_for_what_was_named(asks: Chimera, gateway: Gateway, words: list[str], body: object) -> None:
    gateway.says("POST /admin/instances/prune", {"pruned": ["w1", "w2"]}, 202)
    assert asks("prune", *words).stdout == "pruned w1 w2\n"
    assert gateway.asked[-1][2] == body
    gateway.says("POST /admin/instances/prune", {"pruned": []}, 202)
    assert asks("prune", *words).stdout == "nothing to prune\n"


@pytest.mark.parametrize("verb", ["drain", "cordon", "uncordon", "restart"])
def test_orders_name_their_worker(asks: Chimera, gateway: Gateway, verb: str) -> None:
    gateway.says(f"POST /admin/instances/w1/{verb}", WORKER, 202)
    gateway.says("GET /admin/instances/w1", WORKER | {"state": "CORDONED"})
    assert asks(verb, "w1").stdout == "w1  CORDONED\n"


def test_a_worker_that_is_no_name_is_asked_for_as_it_was_written(asks: Chimera, gateway: Gateway) -> None:
    asks("cordon", "../gpus")
    asks("logs", "a/b?c")
    assert [path for _, path, _ in gateway.asked] == [
        "/admin/instances/..%2Fgpus/cordon", "/admin/instances/a%2Fb%3Fc/logs?n=200&follow=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "chimera: interrupted\n"),
        (["spawn", "--wait"], "chimera: interrupted; what was asked for goes on, see: chimera status\n"),
    ],
)
def test_ctrl_c_is_one_line_that_says_what_goes_on(
    asks: Chimera, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("httpx.Client.request", interrupted)
    done = asks(*words)
    assert (done.exit_code, done.stderr) == (1, said)


def test_ctrl_c_of_a_start_says_that_chimera_goes_on(chimera: Chimera, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("supervisor.background.start", interrupted)
    done = chimera("start")
    assert done.exit_code == 1
    assert done.stderr.startswith("chimera: interrupted; Chimera goes on in the background")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_is_the_way_to_stop_following(asks: Chimera, monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> None:
    def interrupted(*_: object) -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    gateway.says("GET /admin/instances/w1/logs?n=200&follow=1", b"one\n")
    monkeypatch.setattr("httpx.Response.iter_lines", interrupted)
    done = asks("logs", "-f", "w1")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize(("verb", "verdict"), [("quarantine", "quarantined"), ("release", "well")])
def test_orders_name_their_gpu(asks: Chimera, gateway: Gateway, verb: str, verdict: str) -> None:
    row = {"index": 0, "uuid": "GPU-a", "verdict": verdict}
    gateway.says(f"POST /admin/gpus/0%3A1/{verb}", row, 202)
    assert asks(verb, "0:1").stdout == f"GPU 0 GPU-a  {verdict}\n"


def test_events_are_lines_for_people_or_for_programs(asks: Chimera, gateway: Gateway) -> None:
    event = {"at": "2001-02-03T04:05:06.789+00:00", "event": "worker_hung", "worker": "w1", "cause": "it is stopped"}
    gateway.says("GET /admin/events?follow=0", (json.dumps(event) + "\n").encode())
    (line,) = asks("events").stdout.splitlines()
    assert line.startswith("2001-02-03")
    assert line.split("  ")[1:] == ["worker hung", *[""] * 6, " worker=w1", "it is stopped"]
    assert json.loads(asks("events", "--json").stdout) == event


def test_logs_are_printed(asks: Chimera, gateway: Gateway) -> None:
    gateway.says("GET /admin/instances/w1/logs?n=5&follow=0", "one\nzwölf\n".encode())
    assert asks("logs", "w1", "-n", "5").stdout == "one\nzwölf\n"
    gateway.says("GET /admin/instances/w1/logs?n=200&follow=1", b"one\n")
    assert asks("logs", "w1", "-f").stdout == "one\n"


@pytest.mark.parametrize("words", [["logs", "w9"], ["drain", "w9"]])
def test_a_refusal_is_the_gateways_own_sentence(asks: Chimera, gateway: Gateway, words: list[str]) -> None:
    sentence = {"error": "there is no worker 'w9'; workers here: w1"}
    gateway.says("GET /admin/instances/w9/logs?n=200&follow=0", sentence, 404)
    gateway.says("POST /admin/instances/w9/drain", sentence, 404)
    done = asks(*words)
    assert (done.exit_code, done.stderr) == (1, "chimera: there is no worker 'w9'; workers here: w1\n")


def test_the_token_goes_along(asks: Chimera, gateway: Gateway) -> None:
    asks("gpus", ADMIN_TOKEN="hunter2")
    asks("gpus")
    assert gateway.tokens == ["Bearer hunter2", None]


def test_start_asks_until_the_gateway_answers(chimera: Chimera, gateway: Gateway) -> None:
    settings = cli.settings_from(Path("none"), {"GATEWAY_PORT": str(gateway.server_port), "HOME": "/h"})
    assert cli._fleet_of(settings)() == FLEET
    nobody = cli.settings_from(Path("none"), {"GATEWAY_PORT": str(free_port()), "HOME": "/h"})
    assert cli._fleet_of(nobody)() is None
    gateway.says("GET /admin/instances", {"error": "a token is needed"}, 401)
    with pytest.raises(click.ClickException, match="a token is needed"):
        cli._fleet_of(settings)()

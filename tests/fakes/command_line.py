"""The `chimera` command in this process, and a gateway that answers its calls as a test says.

The fixtures `gateway`, `chimera` and `asks` are for tests to import.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.config import NAMES
from tests.fakes.serving import FAKE_OLLAMA

# What the gateway says of its fleet.
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

"""A whole Chimera with fake workers as a service: what it tells the service manager, and how it takes new settings.

`test_systemd.py` shows the same in a real systemd, where one can be booted.
"""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.fakes.chimera import Chimera, wait_for
from tests.fakes.fake_ollama import write_control

GENERATE = {"model": "tiny", "prompt": "hello"}


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.words: list[tuple[str, str]] = []

    def hear(self) -> None:
        while data := self._sock.recv(65536):
            self.words += [
                (name, text) for name, _, text in (line.partition("=") for line in data.decode().split("\n"))
            ]

    def told(self, name: str) -> list[str]:
        return [text for there, text in list(self.words) if there == name]


@contextmanager
def managed(faked: Chimera, folder: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        manager = Manager(sock)
        thread = Thread(target=manager.hear)
        thread.start()
        faked.env |= {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "600000000"}
        try:
            yield manager
        finally:
            faked.clean_up()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(folder / "notify"))
            thread.join(30)


def settings(faked: Chimera, **names: object) -> None:
    faked.folder.mkdir(exist_ok=True)
    (faked.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in names.items()))


def test_the_service_manager_is_told_from_start_to_end(faked: Chimera, tmp_path: Path) -> None:
    with managed(faked, tmp_path) as manager:
        faked.start().ready(2)
        wait_for(lambda: manager.told("READY") == ["1"])
        wait_for(lambda: f"2 of 2 workers ready at {faked.url}" in manager.told("STATUS"))
        wait_for(lambda: len(manager.told("WATCHDOG")) > 3)
        assert "Ctrl-C" not in faked.out()  # there is nobody to welcome
        write_control(faked.folder / "control.json", tokens=40, token_s=0.1)
        got: dict[str, Any] = {}
        with faked.client.stream("POST", "/api/generate", json=GENERATE) as answer:
            lines = answer.iter_lines()
            next(lines)
            before = len(manager.told("EXTEND_TIMEOUT_USEC"))
            assert faked.process is not None
            faked.process.send_signal(signal.SIGTERM)
            wait_for(lambda: manager.told("STOPPING") == ["1"])
            wait_for(lambda: len(manager.told("EXTEND_TIMEOUT_USEC")) > before)
            got["last"] = list(lines)[-1]
        assert '"done":true' in got["last"].replace(" ", "")
        assert faked.process.wait(60) == 0
        assert "stopping: answers under way may end" in manager.told("STATUS")


def test_a_bad_configuration_is_in_the_status(faked: Chimera, tmp_path: Path) -> None:
    with managed(faked, tmp_path) as manager:
        faked.env["QUEUE_SIZE"] = "many"
        faked.start()
        assert faked.process is not None
        assert faked.process.wait(60) == 78
        wait_for(lambda: any(text.startswith("bad configuration: QUEUE_SIZE: ") for text in manager.told("STATUS")))
        assert manager.told("READY") == []


def test_new_settings_are_taken_as_a_difference_or_refused_whole(faked: Chimera) -> None:
    settings(faked, QUEUE_SIZE=9)
    faked.start().ready(2)
    pids = {row["pid"] for row in faked.instances()}
    settings(faked, QUEUE_SIZE=7, MAX_BODY_BYTES=2048, ADMIN_TOKEN="t0ken", LOG_DIR=f"{faked.folder}/elsewhere")
    done = faked.command("reload")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["in force: ADMIN_TOKEN, MAX_BODY_BYTES, QUEUE_SIZE",
         "not in force until Chimera is restarted (systemctl restart chimera): LOG_DIR"],
    )  # fmt: skip
    assert faked.client.get("/admin/instances").status_code == 401
    faked.client.headers["authorization"] = "Bearer t0ken"
    assert faked.queue()["size"] == 7
    assert faked.client.post("/api/generate", json=GENERATE | {"prompt": "x" * 3000}).status_code == 413
    settings(faked, QUEUE_SIZE="many", MAX_BODY_BYTES=4096, NONSENSE=1)
    bad = faked.command("reload")
    assert bad.returncode == 78
    assert [line.split(": ")[2] for line in bad.stderr.splitlines()] == ["NONSENSE", "QUEUE_SIZE"]
    assert faked.queue()["size"] == 7
    assert {row["pid"] for row in faked.instances()} == pids
    assert not (faked.folder / "elsewhere").exists()


def test_workers_are_renewed_added_and_removed_while_requests_flow(faked: Chimera) -> None:
    del faked.env["WORKERS"]
    settings(faked, WORKERS="cpu=2")
    faked.start().ready(2)
    before = {row["id"]: row["pid"] for row in faked.instances()}
    over, outcomes = Event(), []

    def ask() -> None:
        while not over.is_set():
            outcomes.append(faked.client.post("/api/generate", json=GENERATE | {"stream": False}).status_code)

    asking = Thread(target=ask)
    asking.start()
    try:
        settings(faked, WORKERS="cpu=3", WORKER_SLOTS=1, WORKER_ENV="NEW=1")
        done = faked.command("reload")
        assert done.stdout.splitlines() == [
            "the fleet is changed to fit: WORKERS",
            "workers restart one after the other, drained, for: WORKER_ENV, WORKER_SLOTS",
        ]

        def renewed() -> bool:
            rows = {row["id"]: row for row in faked.instances()}
            new = all(rows[name]["pid"] not in (None, pid) for name, pid in before.items() if name in rows)
            ready = all(row["state"] in ("IDLE", "BUSY") and row["slots"] == 1 for row in rows.values())
            return len(rows) == 3 and new and ready

        wait_for(renewed, 60)
        settings(faked, WORKERS="cpu=1", WORKER_SLOTS=1, WORKER_ENV="NEW=1")
        assert faked.command("reload").returncode == 0
        wait_for(lambda: len(faked.instances()) == 1, 60)
    finally:
        over.set()
        asking.join(60)
    assert outcomes
    assert set(outcomes) == {200}
    wait_for(lambda: [event for event in faked.events() if event["event"] == "workers_renewed"])


def test_other_required_models_are_brought_in_before_any_worker_restarts(faked: Chimera) -> None:
    del faked.env["REQUIRED_MODEL"]
    settings(faked, REQUIRED_MODEL="tiny")
    faked.start().ready(2)
    settings(faked, REQUIRED_MODEL="missing-model")
    assert faked.command("reload").returncode == 0
    wait_for(lambda: any(event["event"] == "model_missing" for event in faked.events()))
    settings(faked, REQUIRED_MODEL="tiny")
    assert faked.command("reload").returncode == 0
    wait_for(lambda: sum(row["state"] in ("IDLE", "BUSY") for row in faked.instances()) == 2)


def handed(port: int) -> tuple[str, str]:
    """Have Chimera's process begin as systemd begins it: with a listening socket as its descriptor 3."""
    return (
        "-c",
        f"import os, socket; sock = socket.create_server(('127.0.0.1', {port})); os.dup2(sock.fileno(), 3); "
        "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}; from supervisor.cli import main; main()",
    )


def test_a_handed_socket_is_served(faked: Chimera) -> None:
    faked.program = handed(faked.port)
    faked.start().ready(2)
    assert faked.client.post("/api/generate", json=GENERATE | {"stream": False}).status_code == 200
    assert faked.stop() == 0


def test_a_handed_socket_that_is_not_where_the_settings_say_is_refused(faked: Chimera) -> None:
    faked.program = handed(0)
    faked.start()
    assert faked.process is not None
    assert faked.process.wait(60) == 78
    assert f"bad configuration: GATEWAY_PORT: it is 127.0.0.1:{faked.port}, but chimera.socket listens" in faked.err()

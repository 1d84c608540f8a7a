"""A whole Chimera as its users start it: `chimera run` in a process of its own, on ports and folders of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from supervisor.command import MARK, instance_of

ROOT = Path(__file__).resolve().parents[2]
FAKE_OLLAMA = ROOT / "tests" / "fakes" / "fake_ollama.py"
READY_TIMEOUT_S = 60.0

Found = TypeVar("Found")


def own_ports_from() -> int:
    """Return where this process looks for ports; those of two that run tests side by side (gw0, gw1) do not meet."""
    side = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return 12_500 + int(side) % 2 * 6_500 + os.getpid() % 180 * 16


def free_ports(count: int, start: int | None = None) -> list[int]:
    """Return ports that nobody has now, one after the other, below those that the kernel gives to clients."""
    found: list[int] = []
    start = start or own_ports_from()
    for port in range(start, 32_000):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                found.clear()
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def wait_for(what: Callable[[], Found | None], timeout_s: float = 20.0) -> Found:
    """Return what a question finds as soon as it is neither None nor false; AssertionError when it never is."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        found = what()
        if found:
            return found
        pause.wait(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


@dataclass
class Chimera:
    """One Chimera: its settings, its process, and ways to ask it.

    `ports_from`: where its ports are looked for; two that start at once in one process need different ones.
    `program`: what Python runs as `chimera`.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    ports_from: int | None = None
    program: tuple[str, ...] = ("-m", "supervisor")
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        gateway, primary, *_ = free_ports(2 + 512, self.ports_from)
        self.port, self.primary_port = gateway, primary
        self.url = f"http://127.0.0.1:{gateway}"
        own = {
            "GATEWAY_PORT": str(gateway),
            "OLLAMA_PORT": str(primary),
            "WORKER_PORT_BASE": str(primary + 1),
            "STATE_DIR": str(self.folder / "state"),
            "OLLAMA_MODELS": str(self.folder / "models"),
            "OLLAMA_BIN": str(FAKE_OLLAMA),
            "FAKE_OLLAMA_CONTROL": str(self.folder / "control.json"),
            "LOG_FORMAT": "json",
            "DRAIN_TIMEOUT_S": "5",
            "STOP_TIMEOUT_S": "3",
        }
        self.env = own | self.env
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @property
    def state_dir(self) -> Path:
        """Where it keeps what outlives it."""
        return Path(self.env["STATE_DIR"])

    def environ(self) -> dict[str, str]:
        """Return the whole environment of its process."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("OLLAMA_", "CHIMERA_"))}
        return clean | self.env

    def start(self) -> "Chimera":
        """Start it; returns at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "out.txt").open("ab") as out, (self.folder / "err.txt").open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "run"],
                cwd=self.folder, env=self.environ(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        return self

    def ready(self, workers: int) -> "Chimera":
        """Wait until so many workers are ready."""

        def enough() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended:\n{self.err()}"
            return sum(row["state"] in ("IDLE", "BUSY") for row in self.instances()) >= workers

        wait_for(enough, READY_TIMEOUT_S)
        return self

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the `chimera` command with its settings."""
        return subprocess.run(
            [sys.executable, "-m", "supervisor", *words],
            cwd=self.folder, env=self.environ(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def instances(self) -> list[dict[str, Any]]:
        """Return the workers, none while nobody answers."""
        try:
            rows: list[dict[str, Any]] = self.client.get("/admin/instances").json()["instances"]
        except httpx.TransportError:
            return []
        return rows

    def instance(self, worker_id: str) -> dict[str, Any]:
        """Return one worker."""
        row: dict[str, Any] = self.client.get(f"/admin/instances/{worker_id}").raise_for_status().json()
        return row

    def queue(self) -> dict[str, Any]:
        """Return the queue."""
        queue: dict[str, Any] = self.client.get("/admin/instances").json()["queue"]
        return queue

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened, oldest first; nothing while nobody answers."""
        try:
            return [json.loads(line) for line in self.client.get("/admin/events").text.splitlines()]
        except httpx.TransportError:
            return []

    def gpus(self) -> list[dict[str, Any]]:
        """Return the GPUs."""
        rows: list[dict[str, Any]] = self.client.get("/admin/gpus").raise_for_status().json()["gpus"]
        return rows

    def out(self) -> str:
        """Return what it has printed."""
        return (self.folder / "out.txt").read_text()

    def err(self) -> str:
        """Return what it has logged."""
        return (self.folder / "err.txt").read_text()

    def marked(self) -> list[psutil.Process]:
        """Return the living processes of its workers and of its primary, runners included."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK, "").startswith(instance_of(self.state_dir) + "/"):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Ask it to end, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def clean_up(self) -> None:
        """Leave nothing behind, whatever a test did."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in self.marked():
            process.kill()
        self.client.close()


def ask_at_once(url: str, count: int, body: dict[str, Any]) -> list[httpx.Response]:
    """POST the same /api/generate so many times at the same moment; return the answers.

    The clients are made and connected before: making one takes longer than a short answer does.
    """
    together = threading.Barrier(count)

    def ask(_: int) -> httpx.Response:
        with httpx.Client(base_url=url, timeout=90, trust_env=False, verify=False) as client:
            client.get("/healthz")
            together.wait(30)
            return client.post("/api/generate", json=body)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def path_without_ollama() -> str:
    """Return PATH without the folders that have an `ollama` of the machine's own."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder) / "ollama").exists())


@contextmanager
def chimera(folder: Path, **env: str) -> Iterator[Chimera]:
    """Give a Chimera that is not yet started; afterwards nothing of it is left."""
    made = Chimera(folder, env)
    try:
        yield made
    finally:
        made.clean_up()

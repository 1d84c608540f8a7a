"""A throw-away Chimera on fakes to try things on, and the look at it after each batch: is everything as it was?"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from scripts.fuzz.requests import ADMIN_TOKEN
from scripts.soak import Cost, cost_of
from tests.fakes.chimera import Chimera, chimera
from tests.fakes.fake_ollama import add_model
from tests.fakes.nvml import FakeNvml, build_fake_nvml

MODEL = "tiny"
WORKERS = 2
# What Chimera may take to give everything back after a batch: its own watchdogs are shorter.
SETTLE_S = 45.0
POLL_S = 0.05
MIB = 1024**2
# What may be there beside the baseline: pooled connections to workers and to the primary, trio's idle threads, the
# allocator's rest.
SPARE_FDS, SPARE_THREADS, SPARE_BYTES = 48, 8, 16 * MIB

SETTINGS = {
    "ADMIN_TOKEN": ADMIN_TOKEN, "REQUIRED_MODEL": MODEL, "WORKER_SLOTS": "2", "QUEUE_SIZE": "32",
    "QUEUE_TIMEOUT_S": "6", "FIRST_BYTE_TIMEOUT_S": "8", "STALL_TIMEOUT_S": "6", "MAX_BODY_BYTES": "1MiB",
    "LOG_LEVEL": "info", "WORKERS": "gpu:0=1,gpu:1=1", "START_TIMEOUT_S": "60",
}  # fmt: skip


class Trouble(AssertionError):
    """Something is not as it was before; the text says what."""


class Stage:
    """The Chimera, and what it was like before."""

    def __init__(self, made: Chimera, nvml: FakeNvml) -> None:
        self.made = made
        self.nvml = nvml
        made.client.headers["Authorization"] = f"Bearer {ADMIN_TOKEN}"
        self._log_read = 0
        self._before: Cost | None = None

    @property
    def pid(self) -> int:
        """Chimera's own process."""
        assert self.made.process is not None
        return self.made.process.pid

    def baseline(self) -> None:
        """Remember what it costs now: after a warm-up, at rest."""
        self.settled()
        self._before = cost_of(self.pid)

    @property
    def growth_bytes(self) -> int:
        """How much memory it has more than at its baseline."""
        return cost_of(self.pid).anon_bytes - self._before.anon_bytes if self._before else 0

    def look(self) -> None:
        """See that it lives, that nothing is left of what was tried, and that it has said of no bug. Raises Trouble."""
        assert self.made.process is not None
        if self.made.process.poll() is not None:
            raise Trouble(f"Chimera ended with {self.made.process.returncode}: {self.made.err()[-2000:]}")
        self.settled()
        if said := self.said_of_bugs():
            raise Trouble(f"its log says: {said}")
        if self._before is not None:
            self._until(self._nothing_grown)

    def _nothing_grown(self) -> str | None:
        before, after = self._before, cost_of(self.pid)
        assert before is not None
        spare = {"fds": SPARE_FDS, "threads": SPARE_THREADS, "anon_bytes": SPARE_BYTES, "zombies": 0}
        grown = [name for name, more in spare.items() if getattr(after, name) > getattr(before, name) + more]
        return f"grown: {', '.join(grown)}: {before} became {after}" if grown else None

    def settled(self) -> None:
        """Wait until no lease, no ticket and no connection of a client is left. Raises Trouble."""
        self._until(self._left)

    def _left(self) -> str | None:
        try:
            fleet = self._admin("GET", "/admin/instances")
        except (httpx.HTTPError, ValueError) as error:
            return f"the admin API does not answer: {error!r}"
        busy = {row["id"]: row["inflight"] for row in fleet["instances"] if row["inflight"]}
        if busy or fleet["queue"]["depth"] or fleet["queue"]["bytes"]:
            return f"leases: {busy}, queue: {fleet['queue']}"
        theirs = self.connections()
        return f"connections left: {theirs}" if theirs else None

    def connections(self) -> list[str]:
        """The connections to its port but our own one for questions."""
        asked = psutil.Process().net_connections("tcp")
        own = {one.laddr.port for one in asked if one.status != "LISTEN" and one.raddr.port == self.made.port}
        there = [one for one in psutil.Process(self.pid).net_connections("tcp") if one.status != "LISTEN"]
        theirs = [one for one in there if one.laddr.port == self.made.port and one.raddr.port not in own]
        return [f"{one.raddr.port} {one.status}" for one in theirs]

    def _until(self, fault: Callable[[], str | None]) -> None:
        ends, pause = time.monotonic() + SETTLE_S, threading.Event()
        while (said := fault()) is not None:
            if time.monotonic() > ends:
                raise Trouble(f"after {SETTLE_S:g} s: {said}")
            pause.wait(POLL_S)

    def said_of_bugs(self) -> str | None:
        """Return what the log has said since the last look that no log should say."""
        with (self.made.folder / "err.txt").open("rb") as log:
            log.seek(self._log_read)
            lines = log.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._log_read += sum(map(len, whole))
        bad = [line for line in whole if _is_bug(line)]
        return b"".join(bad[:3]).decode("utf-8", "replace")[:3000] if bad else None

    def _admin(self, method: str, path: str, **body: Any) -> Any:
        answer = self.made.client.request(method, path, json=body or None)
        answer.raise_for_status()
        return answer.json()

    def refill(self) -> None:
        """Have the fleet again that it began with, whatever was done to it: each GPU well, a worker ready on each."""
        add_model(Path(self.made.env["OLLAMA_MODELS"]), MODEL)
        for row in self._admin("GET", "/admin/gpus")["gpus"]:
            if row["verdict"] != "well":
                self._admin("POST", f"/admin/gpus/{row['uuid']}/release")
        rows = self.made.instances()
        ready = [row["id"] for row in rows if row["state"] in ("IDLE", "BUSY")]
        surplus = [row["id"] for row in rows if row["id"] not in ready[:WORKERS]]
        if surplus:
            self._admin("POST", "/admin/instances/prune", ids=surplus, force=True)
        if len(ready) < WORKERS:
            self._admin("POST", "/admin/instances/spawn", count=WORKERS - len(ready), wait=True)
        self._until(lambda: None if self._full() else f"the fleet does not come back: {self.made.instances()}")

    def _full(self) -> bool:
        return sum(row["state"] in ("IDLE", "BUSY") for row in self.made.instances()) >= WORKERS


def _is_bug(line: bytes) -> bool:
    if b"Traceback" in line or b"bug in Chimera" in line:
        return True
    try:
        said = json.loads(line)
    except ValueError:
        return True  # a line that no logger wrote
    return said.get("level") == "critical" or "exception" in said


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Give a running Chimera with two fake workers on two fake GPUs; afterwards nothing of it is left."""
    (folder / "models").mkdir(parents=True)
    add_model(folder / "models", MODEL)
    nvml = FakeNvml(build_fake_nvml(folder), folder / "nvml.state")
    nvml.write()
    with chimera(folder / "chimera", OLLAMA_MODELS=str(folder / "models"), **SETTINGS, **nvml.environ()) as made:
        stage = Stage(made, nvml)
        made.start().ready(WORKERS)
        yield stage

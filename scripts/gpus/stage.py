"""One Chimera on the machine's own GPUs, with CUDA programs for runners: started, looked at, waited for."""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from scripts.faults.load import wait_until
from scripts.gpus.judge import READY, Report, newest, read_reports, share
from scripts.gpus.launcher import FILE
from scripts.gpus.row import MIB, Row, Seen
from supervisor.gpu import GpuReader, GpuReading
from supervisor.placement import CPU, wanted_fleet
from tests.fakes.chimera import ROOT, Chimera
from tests.fakes.fake_ollama import add_model

Json = dict[str, Any]

# All waits together end by then, whatever goes wrong: the run must end by itself in a few minutes.
TOTAL_S = 200.0
SOON_S = 10.0
ANSWER_S = 10.0


class Stuck(Exception):
    """The checks cannot go on: what the next ones are about did not come about."""


def read_gpus() -> GpuReading:
    """Ask NVML once, by the product's own reader."""

    async def ask() -> GpuReading:
        reader = GpuReader()
        try:
            return await reader.read()
        finally:
            await reader.close()

    return trio.run(ask)


class Stage:
    """A Chimera, not yet started, and the rows so far. `mib`: what each program allocates."""

    def __init__(self, folder: Path, reading: GpuReading, mib: int) -> None:
        self.rows: list[Row] = []
        self.each_bytes = mib * MIB
        self.placements = [str(place) for place in wanted_fleet(None, reading.gpus, 0)[0]]
        self.before = {gpu.uuid: gpu.memory_used_bytes for gpu in reading.gpus}
        self._reports, self._events = folder / "programs.jsonl", folder / "xids"
        self._deadline = time.monotonic() + TOTAL_S
        env = {
            "WORKERS": "auto",
            "REQUIRED_MODEL": "tiny",
            "FAKE_OLLAMA_RUNNER": str(ROOT / "tests" / "fakes" / "cuda_runner.py"),
            "CUDA_RUNNER_REPORT": str(self._reports),
            "CUDA_RUNNER_MIB": str(mib),
            FILE: str(self._events),
            # the fake Ollama is run by `python3`: by this one, not by whatever else is first on PATH
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        self.chimera = Chimera(folder, env, program=(str(ROOT / "scripts" / "gpus" / "launcher.py"),))
        self.chimera.client.timeout = ANSWER_S
        add_model(Path(self.chimera.env["OLLAMA_MODELS"]), "tiny")

    # -- waiting -------------------------------------------------------------------------------------------------

    def left_s(self) -> float:
        """What is left of the whole run's time."""
        return max(0.0, self._deadline - time.monotonic())

    def allow(self, seconds: float) -> None:
        """Let the waits that follow have so much time, also when the run's own is spent."""
        self._deadline = max(self._deadline, time.monotonic() + seconds)

    def wait(self, what: Callable[[], Any], within_s: float) -> bool:
        """Wait for something without a row of its own; returns whether it came about."""
        return bool(wait_until(what, min(within_s, self.left_s()), 0.1))

    def see(self, what: str, expected: str, look: Callable[[], Seen], within_s: float = SOON_S) -> bool:
        """Add a row: look until what is seen is as expected, at most `within_s`. Returns whether it is."""
        began, seen = time.monotonic(), Seen("", good=False)

        def good() -> bool:
            nonlocal seen
            seen = look()
            return seen.good

        self.wait(good, within_s)
        self.rows.append(Row(what, expected, seen.text, seen.good, time.monotonic() - began))
        return seen.good

    # -- doing ---------------------------------------------------------------------------------------------------

    def spawn(self, gpu: str) -> Json:
        """Have one more worker; returns its row. Stuck when it is not ready in time."""
        answer = self.chimera.client.post("/admin/instances/spawn", json={"gpu": gpu}).raise_for_status()
        name = str(answer.json()["instances"][0]["id"])
        if not self.wait(lambda: self.chimera.instance(name)["state"] in READY, 30.0):
            raise Stuck(f"{name}, spawned on {gpu}, is {self.chimera.instance(name)['state']}")
        return self.chimera.instance(name)

    def inject(self, uuid: str, code: int) -> None:
        """Have Chimera hear of an Xid."""
        with self._events.open("a", encoding="utf-8") as file:
            file.write(f"{uuid} {code}\n")

    # -- looking -------------------------------------------------------------------------------------------------

    def workers(self, uuids: Collection[str] | None = None) -> list[Json]:
        """The workers on GPUs; on those of `uuids` only, if they are given."""
        rows = [row for row in self.chimera.instances() if row["placement"] != CPU]
        return [row for row in rows if uuids is None or row["placement"] in uuids]

    def programs(self, but: Collection[int] = ()) -> dict[str, Report]:
        """Each worker's newest program, by the worker's id."""
        text = self._reports.read_text(encoding="utf-8") if self._reports.exists() else ""
        return newest(read_reports(text), but)

    def reported(self, workers: Iterable[Json], within_s: float = 30.0) -> None:
        """Wait until each worker's program has said what it sees: a CUDA context can take seconds."""
        ids = {row["id"] for row in workers}
        self.wait(lambda: ids <= self.programs().keys(), within_s)

    def used(self) -> dict[str, int]:
        """Memory in use on each GPU, as Chimera tells it."""
        return {gpu["uuid"]: gpu["memory_used_bytes"] for gpu in self.chimera.gpus()}

    def living(self, pids: Collection[int]) -> set[int]:
        """Those of the processes that live and are this Chimera's."""
        return {process.pid for process in self.chimera.marked()} & set(pids)

    def struck_by(self, uuid: str) -> tuple[str, set[str]]:
        """The GPU that reports an Xid of `uuid` (a MIG device's is its GPU's), and all placements that it concerns."""
        gpus = self.chimera.gpus()
        source = next(share(gpu) for gpu in gpus if gpu["uuid"] == uuid)
        return source, {gpu["uuid"] for gpu in gpus if share(gpu) == source}


@contextmanager
def staged(folder: Path, reading: GpuReading, mib: int) -> Iterator[Stage]:
    """Give a stage; afterwards nothing of its Chimera is left."""
    stage = Stage(folder, reading, mib)
    try:
        yield stage
    finally:
        stage.chimera.clean_up()

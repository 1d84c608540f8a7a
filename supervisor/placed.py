"""Whether a worker computes where it was placed: what Ollama, its log and NVML say of it (ollama#14258). Pure.

Ollama falls back to the CPU without a word, and a runner may end up on a GPU that is not its own. A worker so found is
restarted once; when that does not help it is shown, avoided, and left as it is.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from supervisor.gpu_reading import GpuReading

# A load's process shows up in NVML some moments after the load has been answered.
PLACED_AFTER_S = 10.0


@dataclass(slots=True)
class Placed:
    """What is known of one worker; outlives its processes.

    `restarts` counts those for this cause since it was last proven; `fault` is set while it is left as it is, from
    `since` on (monotonic seconds).
    """

    restarts: int = 0
    fault: str | None = None
    since: float = 0.0

    def forgive(self) -> None:
        """Begin anew: it has been seen to compute where it should, or the operator says so."""
        self.restarts, self.fault = 0, None

    def leave(self, fault: str, now: float) -> bool:
        """Leave it as it is from now on; return whether that is news."""
        if self.fault is not None:
            return False
        self.fault, self.since = fault, now
        return True


class LoadedModel(Protocol):
    """What /api/ps says of one model, as far as it matters here."""

    @property
    def name(self) -> str:
        """Its full name."""
        ...

    @property
    def size_bytes(self) -> int:
        """All its memory."""
        ...

    @property
    def size_vram_bytes(self) -> int:
        """The part of it on the GPU."""
        ...


@dataclass(frozen=True, slots=True)
class PinnedGpu:
    """What NVML says of the GPU that a worker is placed on: its memory in use by anybody, and who computes there.

    `process_pids` is None where the driver does not tell.
    """

    memory_used_bytes: int
    process_pids: frozenset[int] | None

    def shows(self, pids: Collection[int]) -> bool:
        """Say whether one of these processes computes there for sure."""
        return self.process_pids is not None and not self.process_pids.isdisjoint(pids)


def on_gpus(reading: GpuReading, placement: str) -> tuple[PinnedGpu | None, frozenset[int]]:
    """Return the GPU of a placement, if the reading can be relied on, and the processes of all other GPUs."""
    if reading.fault is not None or reading.stuck_s:
        return None, frozenset()
    own: PinnedGpu | None = None
    foreign: set[int] = set()
    for gpu in reading.gpus:
        pids = None if gpu.processes is None else frozenset(process.pid for process in gpu.processes)
        if gpu.uuid == placement:
            own = PinnedGpu(gpu.memory_used_bytes, pids) if gpu.fault is None else None
        elif pids and not gpu.mig_devices:  # a split GPU lists what its parts compute
            foreign |= pids
    return own, frozenset(foreign)


def vram_bytes(reading: GpuReading, placement: str, pids: Collection[int]) -> int | None:
    """Return the memory that these processes have on the GPU of a placement, None where nobody tells."""
    for gpu in reading.gpus:
        if gpu.uuid == placement and gpu.processes is not None:
            return sum(process.memory_bytes or 0 for process in gpu.processes if process.pid in pids)
    return None


def misplaced(
    models: Collection[LoadedModel],
    pids: Collection[int],
    gpu: PinnedGpu | None,
    foreign: Collection[int],
    loaded_for_s: float,
) -> str | None:
    """Say why a GPU worker does not compute on its GPU, or None while nothing says so.

    `pids` are its processes, `gpu` its GPU as NVML sees it now (None: not to be relied on), `foreign` the
    processes on all other GPUs, `loaded_for_s` how long the models have been loaded. Three signs, none of which is
    enough alone (ollama#14258): a loaded model with no byte on a GPU; no process of the worker on its GPU while
    the GPU's memory cannot hold what the worker says it put there; a process of it on another GPU.
    """
    strayed = set(pids) & set(foreign)
    if strayed:
        return f"its process {min(strayed)} computes on a GPU that is not its own"
    for model in models:
        if model.size_bytes > 0 and model.size_vram_bytes == 0:
            return f"{model.name} is in the host's memory, not on the GPU (size_vram is 0)"
    if not models or gpu is None or gpu.process_pids is None or loaded_for_s < PLACED_AFTER_S:
        return None
    claimed = sum(model.size_vram_bytes for model in models)
    if not gpu.shows(pids) and gpu.memory_used_bytes < claimed:
        return "NVML shows no process of it on its GPU, and less memory in use there than it claims"
    return None


_LIBRARY = re.compile(r"\blibrary=\"?(\w+)")


def computes_on_cpu(log: str) -> bool:
    """Say whether Ollama's own log says that it found no GPU to compute on.

    At its start it writes a line `inference compute` for each device that it will use; with none but `library=cpu`
    it falls back without another word (ollama#14258). No such line: nothing is said.
    """
    # in two steps: one pattern for both takes time with the square of a line's length
    found = (_LIBRARY.search(line.partition("inference compute")[2]) for line in log.split("\n"))
    libraries = [library[1] for library in found if library is not None]
    return bool(libraries) and all(library == "cpu" for library in libraries)

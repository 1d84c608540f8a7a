"""Which GPU the next worker gets. Pure: takes what NVML said and what runs, returns placements."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NewType, Protocol, TypeVar

from supervisor.errors import NoRoom, UnknownGpu

# Where a worker computes: "cpu", or a GPU's (or MIG instance's) UUID as NVML and CUDA write it.
Placement = NewType("Placement", str)
CPU = Placement("cpu")


class GpuFacts(Protocol):
    """What placement needs to know of a GPU."""

    @property
    def index(self) -> int:
        """NVML's index: good for people today, not for pinning (it changes between boots)."""
        ...

    @property
    def uuid(self) -> str:
        """The identity that everything else goes by."""
        ...

    @property
    def name(self) -> str:
        """The card's name."""
        ...

    @property
    def memory_total_bytes(self) -> int:
        """Memory it has."""
        ...

    @property
    def memory_used_bytes(self) -> int:
        """Memory in use by anybody."""
        ...

    @property
    def mig_of(self) -> str | None:
        """For a MIG device the UUID of its GPU; its index is that GPU's."""
        ...

    @property
    def mig_devices(self) -> bool:
        """Whether it is split into MIG devices, so that only they compute."""
        ...

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None while it answers."""
        ...


Found = TypeVar("Found", bound=GpuFacts)


def find_gpu(wanted: str | int, gpus: Sequence[Found]) -> Found:
    """Return the GPU or MIG device that `wanted` names.

    An index is a whole GPU, INDEX:N the GPU's MIG device number N (from 0). Else it is a UUID, or a beginning of
    exactly one. Raises UnknownGpu, which lists the GPUs that exist.
    """
    text = str(wanted).strip()
    index, colon, number = text.partition(":")
    if index.isdecimal() and (not colon or number.isdecimal()):
        hits = [gpu for gpu in gpus if gpu.index == int(index) and (gpu.mig_of is not None) == bool(colon)]
        if colon:
            hits = hits[int(number) : int(number) + 1]
        elif len(hits) > 1:  # one that is gone keeps its place, though the driver counts anew
            hits = [gpu for gpu in hits if gpu.fault is None]
    else:
        hits = [gpu for gpu in gpus if text and gpu.uuid.lower() == text.lower()] or [
            gpu for gpu in gpus if text and gpu.uuid.lower().startswith(text.lower())
        ]
    if len(hits) == 1:
        return hits[0]
    there = ", ".join(f"{_number(gpu, gpus)} ({gpu.uuid}, {gpu.name})" for gpu in gpus) or "none; only cpu"
    problem = f"{text!r} is the beginning of {len(hits)} GPUs" if hits else f"there is no GPU {text!r}"
    raise UnknownGpu(f"{problem}; GPUs here: {there}")


def _number(gpu: GpuFacts, gpus: Sequence[GpuFacts]) -> str:
    """The number by which find_gpu knows it: INDEX, or INDEX:N."""
    if gpu.mig_of is None:
        return str(gpu.index)
    devices = [other.uuid for other in gpus if other.mig_of is not None and other.index == gpu.index]
    return f"{gpu.index}:{devices.index(gpu.uuid)}"


def place(
    wanted: str | int | None,
    count: int,
    gpus: Sequence[GpuFacts],
    placed: Iterable[Placement],
    quarantined: frozenset[str] = frozenset(),
) -> list[Placement]:
    """Return where `count` new workers go.

    `wanted` None spreads them: each goes to the GPU with the fewest workers, then the one with the most free
    memory; to the CPU when the machine has no GPU. A faulty GPU is the last choice. MIG devices count as GPUs, and
    a GPU that is split into them is none. `placed` are the placements of the workers there are.

    Raises UnknownGpu, and NoRoom when every GPU that would do is quarantined or has never told its UUID.
    """
    if wanted is not None and str(wanted).strip().lower() == "cpu":
        return [CPU] * count
    if wanted is not None:
        return [_named(find_gpu(wanted, gpus), gpus, quarantined)] * count
    if not gpus:
        return [CPU] * count
    well = [gpu for gpu in gpus if _whole(gpu) and not _quarantined(gpu, quarantined)]
    if not well:
        raise NoRoom("every GPU is quarantined or cannot be used; release one first, or ask for cpu")
    return _spread(count, well, Counter(placed))


def _named(gpu: GpuFacts, gpus: Sequence[GpuFacts], quarantined: frozenset[str]) -> Placement:
    """Return the placement on a GPU that was named. Raises NoRoom, which says why no worker can go there."""
    if not gpu.uuid:
        raise NoRoom(_unusable(gpu))
    if gpu.mig_devices:
        devices = [f"{_number(part, gpus)} ({part.uuid})" for part in gpus if part.mig_of == gpu.uuid]
        raise NoRoom(
            f"GPU {gpu.index} is split by MIG and cannot be used as a whole; name one of its MIG devices: "
            + (", ".join(devices) or "there is none yet (nvidia-smi mig -cgi … -C makes them)")
        )
    if _quarantined(gpu, quarantined):
        raise NoRoom(f"GPU {_number(gpu, gpus)} ({gpu.uuid}) is quarantined; release it first, or name another")
    return Placement(gpu.uuid)


def _spread(count: int, gpus: Sequence[GpuFacts], load: Counter[Placement]) -> list[Placement]:
    """Return where so many workers go one after the other; `load` counts those that each GPU has, and is changed."""
    chosen: list[Placement] = []
    for _ in range(count):
        best = min(
            gpus,
            key=lambda gpu: (
                gpu.fault is not None,
                load[Placement(gpu.uuid)],
                gpu.memory_used_bytes - gpu.memory_total_bytes,
                gpu.index,
            ),
        )
        chosen.append(Placement(best.uuid))
        load[Placement(best.uuid)] += 1
    return chosen


def wanted_fleet(
    workers: Sequence[tuple[str, int]] | None, gpus: Sequence[GpuFacts], cpu_workers: int
) -> tuple[list[Placement], list[str]]:
    """Return the placements that the WORKERS setting asks for, and a line for each part that cannot be had.

    None is `auto`: one worker per GPU or MIG device, or `cpu_workers` on the CPU of a machine that has none. A GPU
    that is missing does not keep the others from working: its line is for the log.
    """
    if workers is None:
        silent = [f"WORKERS: {_unusable(gpu)}" for gpu in gpus if not gpu.uuid]
        return ([Placement(gpu.uuid) for gpu in gpus if _whole(gpu)] if gpus else [CPU] * cpu_workers), silent
    placements: list[Placement] = []
    faults: list[str] = []
    for wanted, count in workers:
        try:
            placements += place(wanted, count, gpus, placements)
        except (UnknownGpu, NoRoom) as error:
            faults.append(f"WORKERS: {error}")
    return placements, faults


def _whole(gpu: GpuFacts) -> bool:
    """Whether a worker can be pinned to it: it has a UUID and is not split into MIG devices."""
    return bool(gpu.uuid) and not gpu.mig_devices


def _quarantined(gpu: GpuFacts, quarantined: frozenset[str]) -> bool:
    return gpu.uuid in quarantined or gpu.mig_of in quarantined


def _unusable(gpu: GpuFacts) -> str:
    """Say why a GPU without a UUID cannot have a worker: there is nothing to pin it by."""
    return f"GPU {gpu.index} cannot be used: {gpu.fault or 'it does not tell its UUID'}"

"""What is known of the machine's GPUs at one moment, as values. Pure."""

from dataclasses import dataclass, replace
from typing import Final, Literal

NO_LIBRARY: Final = "NVML library not found"
NO_DEVICES: Final = "the NVIDIA driver lists no GPU"

# What the driver says a GPU needs, by number. Source: nvml.h, nvmlDeviceGpuRecoveryAction_t; 0 is none.
RECOVERY_ACTIONS: Final = {
    1: "GPU reset",
    2: "node reboot",
    3: "drain P2P",
    4: "drain and reset",
    5: "recover IMEX domain",
    6: "bus reset",
    7: "system reboot",
}
# Those that say that the GPU is not to be computed on as it is.
RESETS: Final = frozenset(RECOVERY_ACTIONS[code] for code in (1, 2, 4, 6, 7))


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. `memory_bytes` is None where the driver does not tell."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG device of a GPU. `fault` is None while it answers, else one sentence on what is wrong.

    A GPU that has been seen keeps its place while it is faulty: index, UUID, name, total memory and what it is in
    MIG are the last known, memory in use is 0, all else is unknown. The UUID of one that never answered is "".

    Total memory 0 on a GPU without fault: it has no memory of its own (it shares the host's). Memory in use
    counts what the driver keeps for itself. None means that the driver does not tell: for `processes` too.

    - `slowdown`: why the hardware has slowed its clocks down (heat, power), in words; not for the power limit that
      a busy GPU meets in ordinary work. None where it has not.
    - `remap_pending`: memory rows wait for the next reset to be replaced by spare ones.
    - `recovery_action`: what the driver itself says this GPU needs (NVML's field 230), in words; None for nothing.
    - `ecc_uncorrected`: uncorrected memory errors since the last reset.
    - `mig_of`: for a MIG device the UUID of the GPU it is a part of; its `index` is that GPU's.
    - `mig_devices`: the GPU is split: only its MIG devices compute (CUDA shows no program the whole).

    The last four of a GPU may be some seconds old.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    processes: tuple[GpuProcess, ...] | None
    fault: str | None
    slowdown: str | None = None
    remap_pending: bool = False
    recovery_action: str | None = None
    ecc_uncorrected: int | None = None
    mig_of: str | None = None
    mig_devices: bool = False

    def dark(self, fault: str) -> "Gpu":
        """Return the same GPU as one that does not answer."""
        return replace(
            self, memory_used_bytes=0, utilisation_percent=None, temperature_c=None, power_w=None, processes=None,
            slowdown=None, remap_pending=False, recovery_action=None, ecc_uncorrected=None, fault=fault,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuReading:
    """All GPUs at one moment, in order of index, each followed by its MIG devices.

    `fault`: why there are none, or none to rely on; else None. While NVML is stuck, `gpus` is as in the last
    answer and `stuck_s` says how long it has owed the next one.
    """

    gpus: tuple[Gpu, ...]
    driver_version: str | None
    fault: str | None
    stuck_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """Something that the driver reported about a GPU at once, between readings.

    `kind`: an Xid (`xid` is its code), an uncorrected ECC error, a GPU that is lost or has become unavailable, or
    a changed recovery action (the next readings tell which). `uuid` is "" where NVML did not say which GPU.
    """

    uuid: str
    kind: Literal["xid", "ecc", "lost", "unavailable", "recovery"]
    xid: int | None = None


def with_absent(known: tuple[Gpu, ...], answering: list[Gpu], silent: dict[int, str]) -> tuple[Gpu, ...]:
    """Return the GPUs that answer, and in their places those that were known and do not, as faulty.

    `silent`: index -> fault of those of which the driver does not even tell which they are. A MIG device that is
    gone from a GPU that answers was taken away by its owner: that is no fault, it is known no longer.
    """
    gpus = {gpu.uuid: gpu for gpu in answering}
    unnamed = dict(silent)
    for gpu in known:
        if gpu.uuid in gpus:
            continue
        if gpu.mig_of is None:
            gpus[gpu.uuid] = gpu.dark(unnamed.pop(gpu.index, "the driver no longer lists the GPU"))
        elif parent_fault := gpus[gpu.mig_of].fault:
            gpus[gpu.uuid] = gpu.dark(parent_fault)
    strangers = [Gpu(i, "", "unknown GPU", 0, 0, None, None, None, None, why) for i, why in unnamed.items()]
    rows = sorted((*gpus.values(), *strangers), key=lambda gpu: (gpu.index, gpu.fault is not None))
    # a faulty MIG device keeps its place among its like, by which an operator may have named it
    places = {gpu.uuid: place for place, gpu in enumerate(known)}
    parts = sorted((gpu for gpu in rows if gpu.mig_of is not None), key=lambda gpu: places.get(gpu.uuid, len(places)))
    wholes = [gpu for gpu in rows if gpu.mig_of is None]
    return tuple(row for gpu in wholes for row in (gpu, *(part for part in parts if part.mig_of == gpu.uuid)))

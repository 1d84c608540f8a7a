"""NVML asked about every GPU of the machine. All of it blocks: supervisor/gpu.py keeps it in one worker thread.

An NVMLError never leaves here. Trouble of all of NVML becomes a reading's fault, trouble of one GPU that GPU's;
a question that this driver or card cannot answer is no fault, its value is unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pynvml
import structlog

from supervisor.gpu_reading import NO_DEVICES, NO_LIBRARY, RECOVERY_ACTIONS, Gpu, GpuProcess, GpuReading, with_absent

log = structlog.get_logger("gpu")

# What changes by the day rather than by the second is asked this often.
EXTRAS_EVERY_S: Final = 10.0
# Before NVML is opened anew, others who have it open are given this long to let it go.
LET_GO_S: Final = 2.0

# What NVML's commonest refusals mean for the person who reads them; any other is passed on in NVML's words.
_ADVICE: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NO_LIBRARY,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: load it or reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to ask the NVIDIA driver: check /dev/nvidiactl",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver and its library are of different versions: reboot or restart chimera"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: the driver cannot reach it",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset",
}
# Answers to a question about one value that say nothing about the GPU's health.
_NO_ANSWER: Final = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NoPermission)
# To a question that few cards know, any answer but these says nothing about the GPU's health.
_GRAVE: Final = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)

# The reasons for low clocks that somebody must look into. Not among them: idle, the software power cap (a busy GPU's
# ordinary state), application clocks, sync boost, display. Source: nvml.h, nvmlClocksEventReasons.
_SLOWDOWNS: Final = {
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "too hot",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
}


@dataclass(frozen=True, slots=True)
class _Extras:
    """What of a GPU changes seldom."""

    remap_pending: bool
    recovery_action: str | None
    ecc_uncorrected: int | None
    split: bool


@dataclass(slots=True)
class Nvml:
    """NVML and what must be remembered of it. Used by one thread at a time.

    `retry_s`: how often a missing library is looked for again, and NVML opened anew while a GPU is faulty (an open
    NVML need not notice that a GPU has come back). `letting_go`: it is about to be opened anew, which has an
    effect only if nobody else in this process holds it open (nvmlInit is counted): let go until this is False.
    """

    retry_s: float
    letting_go: bool = False
    _is_open: bool = False
    _opened_at: float = 0.0
    _let_go_since: float = 0.0
    _next_search_at: float = 0.0
    _extras_at: float = 0.0
    _driver_version: str | None = None
    _known: dict[str, Gpu] = field(default_factory=dict)
    _extras: dict[str, _Extras] = field(default_factory=dict)

    def read(self, now: float) -> GpuReading:
        """Return the GPUs as they are; `now` is the caller's monotonic clock, in seconds."""
        if now < self._next_search_at:
            return self._all_dark(NO_LIBRARY)
        self._renew(now)
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open, self._opened_at = True, now
                self._driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            if now - self._extras_at >= EXTRAS_EVERY_S:
                self._extras, self._extras_at = {}, now
            gpus = self._read_gpus()
        except pynvml.NVMLError as error:
            if isinstance(error, pynvml.NVMLError_LibraryNotFound):
                self._next_search_at = now + self.retry_s
            self.close()  # whatever it was, the next reading starts from nothing
            return self._all_dark(sentence(error))
        self._known = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
        for gpu in gpus:
            if gpu.fault is not None:  # when it is back it is asked everything anew: it may have been reset
                self._extras.pop(gpu.uuid, None)
        return GpuReading(gpus, self._driver_version, None if gpus else NO_DEVICES)

    def close(self) -> None:
        """Shut NVML down, if it is open; the next reading opens it."""
        self.letting_go, self._extras = False, {}
        if not self._is_open:
            return
        self._is_open = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:  # nothing is left to be done about it
            log.debug("NVML did not shut down", error=str(error))

    def _renew(self, now: float) -> None:
        """While a GPU is faulty, close NVML now and then, when others have had the time to do so too."""
        faulty = any(gpu.fault is not None for gpu in self._known.values())
        if not (self._is_open and faulty and now - self._opened_at >= self.retry_s):
            self.letting_go = False
        elif not self.letting_go:
            self.letting_go, self._let_go_since = True, now
        elif now - self._let_go_since >= LET_GO_S:
            self.close()

    def _all_dark(self, fault: str) -> GpuReading:
        self._known = {uuid: gpu.dark(fault) for uuid, gpu in self._known.items()}
        return GpuReading(tuple(self._known.values()), self._driver_version, fault)

    def _read_gpus(self) -> tuple[Gpu, ...]:
        answering: list[Gpu] = []
        silent: dict[int, str] = {}  # index -> fault, where NVML does not even tell which GPU it is
        for index in range(int(pynvml.nvmlDeviceGetCount())):
            try:
                # A handle may dangle once its GPU has been away: ask for it each time.
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle))
            except pynvml.NVMLError as error:
                silent[index] = sentence(error)
                continue
            gpu = self._read_gpu(index, handle, uuid, name)
            answering.append(gpu)
            if gpu.mig_devices and gpu.fault is None:
                answering += self._read_mig_devices(gpu, handle)
        return with_absent(tuple(self._known.values()), answering, silent)

    def _read_gpu(self, index: int, handle: Any, uuid: str, name: str) -> Gpu:
        try:
            gpu = _measured(Gpu(index, uuid, name, 0, 0, None, None, None, None, None), handle)
            load = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
            milliwatt = _optional(pynvml.nvmlDeviceGetPowerUsage, handle)
            extras = self._extras.get(uuid)
            if extras is None:
                extras = self._extras[uuid] = _read_extras(handle)
            return replace(
                gpu,
                utilisation_percent=None if load is None else int(load.gpu),
                temperature_c=_optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
                power_w=None if milliwatt is None else milliwatt / 1000,
                slowdown=_slowdown(handle),
                remap_pending=extras.remap_pending,
                recovery_action=extras.recovery_action,
                ecc_uncorrected=extras.ecc_uncorrected,
                mig_devices=extras.split,
            )
        except pynvml.NVMLError as error:
            last = self._known.get(uuid) or Gpu(index, uuid, name, 0, 0, None, None, None, None, None)
            return replace(last, index=index).dark(sentence(error))

    def _read_mig_devices(self, parent: Gpu, parent_handle: Any) -> list[Gpu]:
        devices: dict[str, Gpu] = {}
        silent: str | None = None  # why NVML does not even tell which device stands in some place
        for number in range(_extra(pynvml.nvmlDeviceGetMaxMigDeviceCount, parent_handle) or 0):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent_handle, number)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
                name = str(_optional(pynvml.nvmlDeviceGetName, handle) or f"MIG device of {parent.name}")
            except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
                continue  # the place is empty
            except pynvml.NVMLError as error:
                silent = sentence(error)
                continue
            blank = Gpu(parent.index, uuid, name, 0, 0, None, None, None, None, None, mig_of=parent.uuid)
            try:
                devices[uuid] = _measured(blank, handle)
            except pynvml.NVMLError as error:
                devices[uuid] = self._known.get(uuid, blank).dark(sentence(error))
        if silent is not None:
            missed = [gpu for gpu in self._known.values() if gpu.mig_of == parent.uuid and gpu.uuid not in devices]
            devices |= {gpu.uuid: gpu.dark(silent) for gpu in missed}
        return list(devices.values())


def persistence_modes() -> dict[int, bool]:
    """Return by index whether a GPU's driver stays loaded while nobody uses it, where it tells. NVML must be open.

    Raises NVMLError when it cannot even count them.
    """
    modes: dict[int, bool] = {}
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            modes[index] = bool(pynvml.nvmlDeviceGetPersistenceMode(pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError:
            continue  # what is wrong with a GPU, a reading says
    return modes


def _measured(gpu: Gpu, handle: Any) -> Gpu:
    """Return the GPU with its memory and processes. Raises NVMLError."""
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    # The name without _v3 turns a missing symbol into an exception that is no NVMLError.
    processes = _optional(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    return replace(
        gpu,
        memory_total_bytes=0 if memory is None else int(memory.total),
        memory_used_bytes=0 if memory is None else int(memory.used),
        processes=None if processes is None else tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in processes),
    )


def _slowdown(handle: Any) -> str | None:
    reasons = _extra(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # the same question's name before driver 535
        reasons = _extra(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    return ", ".join(words for bit, words in _SLOWDOWNS.items() if reasons & bit) or None


def _read_extras(handle: Any) -> _Extras:
    """Ask what changes seldom. Raises NVMLError."""
    rows = _extra(pynvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    fields = _extra(pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    action = fields[0].value.uiVal if fields and fields[0].nvmlReturn == pynvml.NVML_SUCCESS else None
    mode = _extra(pynvml.nvmlDeviceGetMigMode, handle)  # current, pending
    return _Extras(
        remap_pending=bool(rows and rows[2]),
        recovery_action=RECOVERY_ACTIONS.get(action, f"recovery action {action}") if action else None,
        ecc_uncorrected=_extra(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        split=bool(mode and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE),
    )


def _optional(question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or None where this GPU or driver has none to give; raises NVMLError for the rest."""
    try:
        return question(*arguments)
    except _NO_ANSWER:
        return None


def _extra(question: Callable[..., Any], *arguments: Any) -> Any:
    """The same for a question that not every card knows: only a lost GPU, or one that needs a reset, raises."""
    try:
        return question(*arguments)
    except _GRAVE:
        raise
    except pynvml.NVMLError:
        return None


def sentence(error: pynvml.NVMLError) -> str:
    """Return what an NVML error means for the person who reads it."""
    return _ADVICE.get(error.value, f"NVML: {error} (code {error.value})")

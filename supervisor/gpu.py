"""The machine's GPUs as NVML sees them, read once a second. Every NVML call blocks and a sick driver can
hold one for ever, so all of them run in one worker thread that the event loop never waits long for.

A GPU's identity is its UUID: NVML's indices change between boots and need not equal CUDA's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pynvml
import structlog
import trio

log = structlog.get_logger("gpu")

NO_LIBRARY: Final = "NVML library not found"
NO_DEVICES: Final = "the NVIDIA driver lists no GPU"

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


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. `memory_bytes` is None where the driver does not tell."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `fault` is None while it answers, else one sentence on what is wrong with it.

    A GPU that has been seen keeps its place while it is faulty: index, UUID, name and total memory are the
    last known, memory in use is 0, all else None or empty. The UUID of one that never answered is "".

    Total memory 0 on a GPU without fault: it has no memory of its own (it shares the host's). Memory in use
    counts what the driver keeps for itself. `processes` is also empty where the driver does not tell.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    processes: tuple[GpuProcess, ...]
    fault: str | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """All GPUs at one moment, in order of index. `fault`: why there are none, or none to rely on; else None.

    While NVML is stuck, `gpus` is as in the last answer and `stuck_s` says how long it has owed the next one.
    """

    gpus: tuple[Gpu, ...]
    driver_version: str | None
    fault: str | None
    stuck_s: float = 0.0


class GpuReader:
    """Reads the GPUs; an NVMLError never leaves it, it becomes a fault. One task at a time reads.

    `timeout_s`: how long a reading may take. `retry_s`: how often a missing library is looked for again, and
    NVML opened anew while a GPU is faulty (an open NVML need not notice that a GPU has come back).
    """

    def __init__(self, *, timeout_s: float = 5.0, retry_s: float = 30.0) -> None:
        self._nvml = _Nvml(retry_s)
        self._timeout_s = timeout_s
        self._asked_at = 0.0
        self._last = GpuReading((), None, None)
        # An abandoned thread keeps its token until it has really returned: so there is never a second one.
        self._limiter = trio.CapacityLimiter(1)

    async def read(self) -> GpuReading:
        """Return the GPUs as they are now.

        If NVML does not answer within `timeout_s`: the last reading, with a fault that says since when. Then,
        until the stuck call has returned, the same again at once. Cancellation abandons the thread.
        """
        if self._stuck():
            await trio.lowlevel.checkpoint()
            return self._overdue()
        now = trio.current_time()
        if not self._limiter.borrowed_tokens:
            self._asked_at = now
        with trio.move_on_after(self._timeout_s):
            self._last = await trio.to_thread.run_sync(
                self._nvml.read, now, thread_name="nvml", abandon_on_cancel=True, limiter=self._limiter
            )
            return self._last
        return self._overdue()

    async def close(self) -> None:
        """Shut NVML down; the next reading opens it again. Takes at most `timeout_s`, cancelled or not.

        A stuck NVML is left as it is: its thread does not keep the process from ending.
        """
        if self._stuck():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(self._timeout_s, shield=True):
            await trio.to_thread.run_sync(
                self._nvml.close, thread_name="nvml", abandon_on_cancel=True, limiter=self._limiter
            )

    def _stuck(self) -> bool:
        return self._limiter.borrowed_tokens > 0 and trio.current_time() - self._asked_at >= self._timeout_s

    def _overdue(self) -> GpuReading:
        stuck_s = trio.current_time() - self._asked_at
        return replace(self._last, fault=f"NVML has not answered for {stuck_s:.0f} s", stuck_s=stuck_s)


async def watch_gpus(
    reader: GpuReader,
    publish: Callable[[GpuReading], None],
    *,
    interval_s: float = 1.0,
    task_status: trio.TaskStatus[GpuReading] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Publish a reading every `interval_s`, the first before this task counts as started; log each change.

    Ends only by cancellation, which leaves NVML open: close the reader.
    """
    reading = await reader.read()
    _log_changes(GpuReading((), None, None), reading)
    publish(reading)
    task_status.started(reading)
    while True:
        await trio.sleep(interval_s)
        before, reading = reading, await reader.read()
        _log_changes(before, reading)
        publish(reading)


def _log_changes(before: GpuReading, now: GpuReading) -> None:
    if now.stuck_s:
        if not before.stuck_s:  # the sentence itself changes with each second
            log.warning(now.fault)
        return
    if now.fault != before.fault and now.fault is not None:
        expected = now.fault in (NO_LIBRARY, NO_DEVICES)
        tell = log.info if expected and not now.gpus else log.warning
        tell(f"no GPU: {now.fault}; workers run on the CPU" if not now.gpus else now.fault)
    if now.fault is not None:
        return
    known = {gpu.uuid: gpu for gpu in before.gpus}
    if before.fault is not None or known.keys() != {gpu.uuid for gpu in now.gpus}:
        names = [f"{gpu.index}: {gpu.name} {gpu.uuid}".rstrip() for gpu in now.gpus]
        log.info("GPUs found", gpus=names, driver=now.driver_version)
    for gpu in now.gpus:
        old_fault = known[gpu.uuid].fault if gpu.uuid in known else None
        if gpu.fault is not None and gpu.fault != old_fault:
            log.warning(f"GPU {gpu.index}: {gpu.fault}", uuid=gpu.uuid, name=gpu.name)
        elif gpu.fault is None and old_fault is not None and before.fault is None:
            log.info(f"GPU {gpu.index} answers again", uuid=gpu.uuid, name=gpu.name)


@dataclass(slots=True)
class _Nvml:
    """NVML and what must be remembered of it. All of it blocks; used by one thread at a time."""

    retry_s: float
    is_open: bool = False
    opened_at: float = 0.0
    next_search_at: float = 0.0
    driver_version: str | None = None
    known: dict[str, Gpu] = field(default_factory=dict)

    def read(self, now: float) -> GpuReading:
        if now < self.next_search_at:
            return self._all_dark(NO_LIBRARY)
        faulty = any(gpu.fault is not None for gpu in self.known.values())
        if self.is_open and faulty and now - self.opened_at >= self.retry_s:
            self.close()
        try:
            if not self.is_open:
                pynvml.nvmlInit()
                self.is_open, self.opened_at = True, now
                self.driver_version = str(pynvml.nvmlSystemGetDriverVersion())
            gpus = self._read_gpus()
        except pynvml.NVMLError as error:
            if isinstance(error, pynvml.NVMLError_LibraryNotFound):
                self.next_search_at = now + self.retry_s
            self.close()  # whatever it was, the next reading starts from nothing
            return self._all_dark(_sentence(error))
        self.known = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
        return GpuReading(gpus, self.driver_version, None if gpus else NO_DEVICES)

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:  # nothing is left to be done about it
            log.debug("NVML did not shut down", error=str(error))

    def _all_dark(self, fault: str) -> GpuReading:
        self.known = {uuid: _dark(gpu, fault) for uuid, gpu in self.known.items()}
        return GpuReading(tuple(self.known.values()), self.driver_version, fault)

    def _read_gpus(self) -> tuple[Gpu, ...]:
        answering: list[Gpu] = []
        silent: dict[int, str] = {}  # index -> fault, where NVML does not even tell which GPU it is
        for index in range(int(pynvml.nvmlDeviceGetCount())):
            try:
                # A handle may dangle once its GPU has been away: ask for it each time.
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle))
            except pynvml.NVMLError as error:
                silent[index] = _sentence(error)
                continue
            answering.append(self._read_gpu(index, handle, uuid, name))
        return _with_absent(tuple(self.known.values()), answering, silent)

    def _read_gpu(self, index: int, handle: Any, uuid: str, name: str) -> Gpu:
        try:
            memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
            load = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
            milliwatt = _optional(pynvml.nvmlDeviceGetPowerUsage, handle)
            # The name without _v3 turns a missing symbol into an exception that is no NVMLError.
            processes = _optional(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or ()
            return Gpu(
                index=index,
                uuid=uuid,
                name=name,
                memory_total_bytes=0 if memory is None else int(memory.total),
                memory_used_bytes=0 if memory is None else int(memory.used),
                utilisation_percent=None if load is None else int(load.gpu),
                temperature_c=_optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
                power_w=None if milliwatt is None else milliwatt / 1000,
                processes=tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in processes),
                fault=None,
            )
        except pynvml.NVMLError as error:
            last = self.known.get(uuid) or Gpu(index, uuid, name, 0, 0, None, None, None, (), None)
            return _dark(replace(last, index=index), _sentence(error))


def _with_absent(known: tuple[Gpu, ...], answering: list[Gpu], silent: dict[int, str]) -> tuple[Gpu, ...]:
    """The GPUs that answer, and in their places those that do not."""
    gpus = {gpu.uuid: gpu for gpu in answering}
    unnamed = dict(silent)
    for gpu in known:
        if gpu.uuid not in gpus:
            gpus[gpu.uuid] = _dark(gpu, unnamed.pop(gpu.index, "the driver no longer lists the GPU"))
    strangers = [Gpu(i, "", "unknown GPU", 0, 0, None, None, None, (), why) for i, why in unnamed.items()]
    return tuple(sorted((*gpus.values(), *strangers), key=lambda gpu: (gpu.index, gpu.fault is not None)))


def _dark(gpu: Gpu, fault: str) -> Gpu:
    return Gpu(gpu.index, gpu.uuid, gpu.name, gpu.memory_total_bytes, 0, None, None, None, processes=(), fault=fault)


def _optional(question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or None where this GPU or driver has none to give; raises NVMLError for the rest."""
    try:
        return question(*arguments)
    except _NO_ANSWER:
        return None


def _sentence(error: pynvml.NVMLError) -> str:
    return _ADVICE.get(error.value, f"NVML: {error} (code {error.value})")

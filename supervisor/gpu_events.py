"""The events of the GPUs as the driver reports them at once: Xids, uncorrected ECC errors, lost GPUs.

NVML hands events to whoever waits on an event set, and only those that happen after a GPU was registered. Waiting
blocks, so one worker thread does it, at most a second at a time; a stuck NVML costs that thread and nothing else.
"""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pynvml
import structlog
import trio

from supervisor.gpu_reading import GpuEvent
from supervisor.nvml import sentence

__all__ = ["GpuEvent", "watch_events"]

log = structlog.get_logger("gpu")

# One call's wait: an event ends it at once; a cancelled task's thread lingers so long.
WAIT_MS: Final = 1000
# NVML may end a wait early, with nothing: then it is not asked more often than this.
PACE_S: Final = 0.05
# How often a GPU that has come, gone or come back is looked for.
LIST_EVERY_S: Final = 10.0
# After trouble with NVML the set is made anew: soon, and ever later while it does not help, up to `retry_s`.
FIRST_RETRY_S: Final = 1.0
# How long the start waits for the GPUs to be registered, and the end for NVML to be shut down.
PATIENCE_S: Final = 5.0

# Source: nvml.h, nvmlEventType*. Single bit errors are corrected and therefore not wanted.
_KINDS: Final[dict[int, Any]] = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc",
    pynvml.nvmlEventTypeGpuUnavailableError: "unavailable",
    pynvml.nvmlEventTypeGpuRecoveryAction: "recovery",
}
_WANTED: Final = sum(_KINDS)


async def watch_events(
    publish: Callable[[GpuEvent], None],
    *,
    retry_s: float = 30.0,
    letting_go: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Publish each event of each GPU. Counts as started when the GPUs there are have been registered.

    That takes at most five seconds, however NVML behaves. Without a driver, or while NVML fails, it is tried again
    every `retry_s` seconds. `letting_go`: while this is true NVML is not held open (GpuReader.letting_go); what
    happens in those two seconds is not heard. Ends only by cancellation, which lets NVML go: at once, or within
    a second in the thread that waits.
    """
    events = _Events()
    limiter = trio.CapacityLimiter(1)  # an abandoned thread keeps its token: there is never a second one

    async def in_thread(call: Callable[[float], list[GpuEvent]]) -> list[GpuEvent]:
        return await trio.to_thread.run_sync(
            events.run, call, trio.current_time(), thread_name="nvml-events", abandon_on_cancel=True, limiter=limiter
        )

    try:
        with trio.move_on_after(PATIENCE_S):
            await in_thread(events.look)
        task_status.started()
        pause_s = FIRST_RETRY_S
        while True:
            if letting_go():
                await in_thread(events.close)
                await trio.sleep(FIRST_RETRY_S)
                continue
            found = await in_thread(events.wait)
            for event in found:
                publish(event)
            if events.problem is None:
                pause_s = FIRST_RETRY_S
                if not found:
                    await trio.sleep(PACE_S)
            else:
                await trio.sleep(retry_s if events.no_library else min(pause_s, retry_s))
                pause_s = min(2 * pause_s, retry_s)
    finally:
        if not events.end():
            with trio.move_on_after(PATIENCE_S, shield=True):
                await in_thread(events.close)


@dataclass(slots=True)
class _Events:
    """One event set, and NVML held open for it. All but `end` blocks, and is used by one thread at a time."""

    problem: str | None = None
    no_library: bool = False
    _is_open: bool = False
    _set: Any = None
    _listed_at: float = 0.0
    _handles: dict[str, Any] = field(default_factory=dict)
    _uuids: dict[int | None, str] = field(default_factory=dict)

    _lock: threading.Lock = field(default_factory=threading.Lock)  # held for an instant, never during a call of NVML
    _busy: bool = False
    _ending: bool = False

    def run(self, call: Callable[[float], list[GpuEvent]], now: float) -> list[GpuEvent]:
        """Make one call; when the end has come meanwhile, close."""
        with self._lock:
            self._busy = True
        try:
            return [] if self._ending else call(now)
        finally:
            with self._lock:
                self._busy = False
            if self._ending:
                self.close(now)

    def end(self) -> bool:
        """Let the thread that is in a call close by itself, at that call's end; return whether there is one."""
        with self._lock:
            self._ending = True
            return self._busy

    def look(self, now: float) -> list[GpuEvent]:
        """Register the GPUs, if they are others than before. Afterwards `problem` is why none is watched, or None."""
        self.problem, self.no_library = None, False
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            if self._set is None or now - self._listed_at >= LIST_EVERY_S:
                self._listed_at = now
                self._register(_list_gpus())
            if not self._uuids:  # NVML is not held open meanwhile: open, it need not notice that a GPU comes back
                self.problem = "no GPU has events to watch"
                self.close()
        except pynvml.NVMLError as error:
            self._fail(error)
        return []

    def wait(self, now: float) -> list[GpuEvent]:
        """Return what happens within a second; an event, or trouble, ends the wait."""
        self.look(now)
        if self.problem is not None:
            return []
        try:
            data = pynvml.nvmlEventSetWait_v2(self._set, WAIT_MS)
        except pynvml.NVMLError_Timeout:
            return []
        except pynvml.NVMLError as error:
            return self._lost_or_failed(error, now)
        return self._understood(data)

    def close(self, _now: float = 0.0) -> list[GpuEvent]:
        """Let NVML go."""
        self._forget_set()
        if self._is_open:
            self._is_open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:  # nothing is left to be done about it
                log.debug("NVML did not shut down", error=str(error))
        return []

    def _fail(self, error: pynvml.NVMLError) -> None:
        self.problem = sentence(error)
        self.no_library = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        log.debug("GPU events cannot be watched", cause=self.problem)
        self.close()

    def _lost_or_failed(self, error: pynvml.NVMLError, now: float) -> list[GpuEvent]:
        """Waiting has failed. Where a GPU is lost (it is not said which) the others go on without it."""
        lost: list[str] = []
        if isinstance(error, pynvml.NVMLError_GpuIsLost):
            lost = [uuid for uuid, handle in self._handles.items() if _is_lost(handle)]
        if lost:
            self._forget_set()
            self.look(now)
        else:
            self._fail(error)
        return [GpuEvent(uuid, "lost") for uuid in lost]

    def _register(self, gpus: dict[str, Any]) -> None:
        """Make the set anew if the GPUs have changed. Raises NVMLError."""
        if self._set is not None and gpus.keys() == self._handles.keys():
            return
        self._forget_set()
        self._set = pynvml.nvmlEventSetCreate()
        for uuid, handle in gpus.items():
            try:
                types = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & _WANTED
                if types:
                    pynvml.nvmlDeviceRegisterEvents(handle, types, self._set)
            except pynvml.NVMLError as error:  # one GPU's trouble is not to hide the events of the others
                log.debug("a GPU's events cannot be watched", uuid=uuid, cause=sentence(error))
                continue
            self._uuids[_address(handle)] = uuid
        self._handles = gpus

    def _forget_set(self) -> None:
        if self._set is not None:
            try:
                pynvml.nvmlEventSetFree(self._set)
            except pynvml.NVMLError as error:
                log.debug("an event set was not freed", error=str(error))
        self._set, self._handles, self._uuids = None, {}, {}

    def _understood(self, data: Any) -> list[GpuEvent]:
        kind = _KINDS.get(int(data.eventType))
        if kind is None:
            return []
        # a GPU that has just fallen off the bus cannot tell its UUID any more
        uuid = self._uuids.get(_address(data.device), "")
        return [GpuEvent(uuid, kind, int(data.eventData) if kind == "xid" else None)]


def _list_gpus() -> dict[str, Any]:
    """Return the handles of the GPUs that answer, by UUID. Raises NVMLError where NVML as a whole does not."""
    gpus: dict[str, Any] = {}
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if not _is_lost(handle):
                gpus[str(pynvml.nvmlDeviceGetUUID(handle))] = handle
        except pynvml.NVMLError as error:
            log.debug("a GPU's events cannot be watched", index=index, cause=sentence(error))
    return gpus


def _is_lost(handle: Any) -> bool:
    """Ask the GPU itself: the driver may know the name of a lost one by heart."""
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_GpuIsLost:
        return True
    except pynvml.NVMLError:
        return False
    return False


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value

"""The machine's GPUs, read once a second. Every NVML call blocks and a sick driver can hold one for ever, so all of
them run in one worker thread that the event loop never waits long for.

A GPU's identity is its UUID: NVML's indices change between boots and need not equal CUDA's.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from supervisor.gpu_reading import NO_DEVICES, NO_LIBRARY, Gpu, GpuProcess, GpuReading
from supervisor.nvml import Nvml

__all__ = ["NO_DEVICES", "NO_LIBRARY", "Gpu", "GpuProcess", "GpuReader", "GpuReading", "watch_gpus"]

log = structlog.get_logger("gpu")


class GpuReader:
    """Reads the GPUs; an NVMLError never leaves it, it becomes a fault. One task at a time reads.

    `timeout_s`: how long a reading may take. `retry_s`: how often a missing library is looked for again, and
    NVML opened anew while a GPU is faulty (an open NVML need not notice that a GPU has come back).
    """

    def __init__(self, *, timeout_s: float = 5.0, retry_s: float = 30.0) -> None:
        self._nvml = Nvml(retry_s)
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

    def letting_go(self) -> bool:
        """Whether NVML is about to be opened anew: who else holds it open is to let it go while this is True."""
        return self._nvml.letting_go

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

"""Chimera, run as its users run it, with one thing added: Xids from a file, beside those of the driver.

    python launcher.py run      with GPU_EVENTS naming the file

A line `UUID XID` that is appended to the file is published like an event of NVML's. A real GPU reports an Xid only when
it breaks; Chimera itself has no such door, so it is opened from outside, where the events are asked for.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

# Run as a file, Python looks for modules only beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from supervisor import supervision
from supervisor.cli import main
from supervisor.gpu_events import GpuEvent, watch_events

FILE = "GPU_EVENTS"
POLL_S = 0.1

log = structlog.get_logger("launcher")


def events_in(text: str) -> list[GpuEvent]:
    """Return the Xids that whole lines of `text` name. ValueError for a line that is not `UUID XID`."""
    found: list[GpuEvent] = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        uuid, code = line.split()
        found.append(GpuEvent(uuid, "xid", int(code)))
    return found


async def follow(path: trio.Path, publish: Callable[[GpuEvent], None]) -> None:
    """Publish each Xid once that stands in the file. Ends only by cancellation."""
    told = 0
    while True:
        events = events_in(await path.read_text(encoding="utf-8")) if await path.exists() else []
        for event in events[told:]:
            log.info("an Xid is injected", gpu=event.uuid, code=event.xid)
            publish(event)
        told = len(events)
        await trio.sleep(POLL_S)


async def watch_both(
    publish: Callable[[GpuEvent], None],
    *,
    path: trio.Path,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Do what watch_events does, and follow the file beside it. Cancellation ends both."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(watch_events, publish, **options))
        nursery.start_soon(follow, path, publish)
        task_status.started()


if __name__ == "__main__":
    vars(supervision)["watch_events"] = partial(watch_both, path=trio.Path(os.environ[FILE]))
    main()

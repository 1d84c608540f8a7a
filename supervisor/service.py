"""Chimera as a service: what systemd is told of it while it starts, serves and goes down. `Service.run` is the task.

READY=1 is said when the gateway answers and a worker is ready, or when it is known, and shown in STATUS=, why none is.
The watchdog is fed by this task, which runs in the one loop that answers every request and looks after every worker:
a loop that hangs feeds nobody. In the same way systemd's limits for start and stop are drawn out only while it turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import trio

from supervisor.beat import beat
from supervisor.comeback import Comeback
from supervisor.notify import WATCHDOG_SHARE, Notifier, now_usec, one_line
from supervisor.restart import HEALTHY_AFTER_S

Row = Mapping[str, Any]

BEAT_S = 1.0
# How long systemd waits from each beat on, while Chimera starts or stops (EXTEND_TIMEOUT_USEC).
EXTENSION_S = 20.0
# What going down may take beyond DRAIN_TIMEOUT_S and STOP_TIMEOUT_S: then systemd's own limit counts.
STOP_GRACE_S = 30.0

_READY = ("IDLE", "BUSY")
_ON_THE_WAY = ("STARTING", "WARMING")


@dataclass(frozen=True, slots=True)
class Outlook:
    """How the fleet stands, for STATUS=; `settled`: a worker is ready, or the text says why none is."""

    settled: bool
    text: str


def outlook(rows: Sequence[Row], primary: Row, waiting: int, url: str) -> Outlook:
    """Return how the fleet stands. `rows` and `primary` are the admin API's, `waiting` counts tickets. Pure."""
    ready = sum(row["state"] in _READY for row in rows)
    if ready:
        queue = f"; {waiting} request{'' if waiting == 1 else 's'} waiting" if waiting else ""
        problem = next((f"; {row['id']}: {row['problem']}" for row in rows if row["problem"]), "")
        return Outlook(True, f"{ready} of {len(rows)} workers ready at {url}{queue}{problem}")
    if primary.get("trouble"):
        return Outlook(True, f"no worker is ready at {url}: {primary.get('store') or primary.get('problem')}")
    if not rows:
        return Outlook(True, f"no worker is wanted at {url}; add one with: chimera spawn")
    if any(row["state"] in _ON_THE_WAY and not row["problem"] for row in rows):
        doing = f": {primary['store']}" if primary.get("store") else ""
        return Outlook(False, f"starting {len(rows)} worker{'' if len(rows) == 1 else 's'}{doing}")
    causes = "; ".join(f"{row['id']}: {row['problem'] or row['state']}" for row in rows)
    return Outlook(True, f"no worker is ready at {url}: {causes}")


class _Phase(Enum):
    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


class Service:
    """What systemd is told. All calls are plain; `run` does the telling."""

    def __init__(self, notifier: Notifier, comeback: Comeback) -> None:
        self._notifier = notifier
        self._comeback = comeback
        self._phase = _Phase.STARTING
        self._look: Callable[[], Outlook] | None = None
        self._said = ""
        self._fixed = ""
        self._note = ""
        self._owed: dict[str, str | int] = {}
        self._settle_at: float | None = None
        self._stop_by = 0.0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell systemd how things stand, at each beat. Never returns; where nobody listens it only keeps the count."""
        every_s = BEAT_S
        while self._notifier.watchdog_s and every_s > self._notifier.watchdog_s / WATCHDOG_SHARE:
            every_s /= 2  # exact: the multiples of a beat are moments that its clock has
        task_status.started()
        while True:
            self._tell()
            await beat(every_s)

    # -- what there is to tell -----------------------------------------------------------------------------------

    def status(self, text: str) -> None:
        """Show a text as it is, until the fleet can be looked at or something else is shown."""
        self._fixed = text
        self._tell()

    def serves(self, look: Callable[[], Outlook]) -> None:
        """The gateway answers; how the fleet stands is looked at from now on."""
        self._look, self._fixed = look, ""
        self._tell()

    def note(self, text: str) -> None:
        """Show something beside the fleet's state, such as workers that restart for new settings; "" ends that."""
        self._note = text

    def reloading(self) -> None:
        """New settings are being read."""
        self._notifier.say(RELOADING=1, MONOTONIC_USEC=now_usec())

    def reloaded(self) -> None:
        """The new settings are in force, or refused."""
        self._owe(READY=1)

    def stops(self, text: str, within_s: float) -> None:
        """Chimera goes down, which may take so long: systemd's limit is drawn out until then, while the loop turns."""
        self._phase, self._fixed = _Phase.STOPPING, text
        self._stop_by = trio.current_time() + within_s + STOP_GRACE_S
        self._comeback.settled()
        self._owe(STOPPING=1)

    # -- the telling ---------------------------------------------------------------------------------------------

    def _owe(self, **words: str | int) -> None:
        """Say what must not be lost: again at the next beat if it is not taken now."""
        self._pay()
        if self._owed or not self._notifier.say(**words):
            self._owed = self._owed | words
        self._tell()

    def _pay(self) -> None:
        if self._owed and self._notifier.say(**self._owed):
            self._owed = {}

    def _tell(self) -> None:
        self._pay()
        now = trio.current_time()
        words: dict[str, str | int] = {"WATCHDOG": 1}
        settled = False
        text = self._fixed
        if self._look is not None and self._phase is not _Phase.STOPPING:
            seen = self._look()
            settled, text = seen.settled, seen.text
        text = one_line(f"{text}; {self._note}" if self._note else text)
        if text != self._said:
            words["STATUS"] = text
        if self._phase is _Phase.STARTING and settled:
            words["READY"] = 1
        elif self._phase is _Phase.STARTING or (self._phase is _Phase.STOPPING and now < self._stop_by):
            words["EXTEND_TIMEOUT_USEC"] = round(EXTENSION_S * 1e6)
        if self._notifier.say(**words):
            self._said = text
            if "READY" in words:
                self._phase, self._settle_at = _Phase.SERVING, now + HEALTHY_AFTER_S
        if self._settle_at is not None and now >= self._settle_at:
            self._settle_at = None
            self._comeback.settled()

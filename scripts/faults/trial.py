"""One Chimera under one fault: the whole course, and the promises that scenarios hold it to.

A verb that does not see what was promised notes it in the row and goes on, so that a table is always whole.
Moments of events come from Chimera's own event log; the harness runs on the same machine's clock.
"""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import psutil

from scripts.faults.load import wait_until
from scripts.faults.machine import alive, resident_bytes, started_boot_s
from scripts.faults.row import MIB, Row, count, first_good, judge, seconds
from scripts.faults.scenario import HEAL_S, LAST_BYTE_S
from scripts.faults.stage import EVENT_CUT_S, Json, Stage, Stuck

# What a scenario may meet when Chimera does not do what it should; anything else is a bug of the harness.
CANNOT_GO_ON = (
    Stuck, AssertionError, OSError, LookupError, ValueError, subprocess.SubprocessError, psutil.Error, httpx.HTTPError,
)  # fmt: skip


class Trial(Stage):
    """A scenario under way."""

    # -- the whole course ----------------------------------------------------------------------------------------

    def carry_out(self) -> Row:
        """Set up, play, take down; return the row. Nothing of it is left, whatever happens."""
        try:
            with self.stack:
                if self.scenario.gpus:
                    self.stack.enter_context(self.driver.reaping())
                if self.scenario.begins:
                    self.begin()
                self.scenario.play(self)
                self._take_down()
        except (
            Stuck,
            AssertionError,
            OSError,
            LookupError,
            subprocess.SubprocessError,
            psutil.Error,
            ValueError,
        ) as error:
            self.row.broken.append(f"it could not go on: {error if isinstance(error, Stuck) else repr(error)}")
        finally:
            try:
                self.load.end()
            finally:
                self.chimera.clean_up()
        return self.row

    def _take_down(self) -> None:
        self.load.end()
        outcomes = self.load.outcomes
        count(self.row, outcomes)
        wait_until(lambda: not self.strays(), 3.0)
        self.row.left += len(self.strays())
        still = resident_bytes(self.victims)
        if self.chimera.process is not None and (status := self.chimera.stop()) != 0:
            self.row.broken.append(f"Chimera ended with status {status}")
        self.row.left += len([process for process in self.chimera.marked() if alive(process)])
        if self.scenario.gpus:
            self.driver.reap()
            still = self.driver.taken_mib() * MIB
        self.row.returned_bytes = max(0, self.row.held_bytes - still)
        failed = [f"{outcome}\n" for outcome in outcomes if outcome.why]
        (self.folder / "failed.txt").write_text("".join(failed), encoding="utf-8")  # for --keep
        lost = [outcome.why or "" for outcome in outcomes if outcome.fate.value == "lost"]
        judge(self.row, cuts=self.scenario.cuts, why_lost=lost)

    # -- promises ------------------------------------------------------------------------------------------------

    def detect(self, *names: str, within_s: float = 15.0, not_before_s: float = 0.0, **fields: object) -> Json | None:
        """Wait for the first of these events, and note how long it took. `within_s` is a promise."""
        found = wait_until(lambda: self.events(*names, **fields), max(15.0, within_s * 2))
        if not found:
            self.broken(f"not detected: no event {' or '.join(names)}")
            return None
        self.row.detect_s, event = found[0]
        early_s = LAST_BYTE_S if event["event"] == "worker_stalled" else 0.0
        self._in_time(found[0][0], within_s, not_before_s - early_s)
        return dict(event)

    def detect_state(self, what: str, seen: Callable[[], Any], within_s: float = 15.0) -> Any:
        """The same for what shows in a row or a process instead of an event."""
        found = wait_until(seen, within_s)
        if not found:
            self.broken(f"not within {within_s:g} s: {what}")
            return None
        self.row.detect_s = time.monotonic() - self.moment.monotonic
        return found

    def _in_time(self, after_s: float, within_s: float, not_before_s: float) -> None:
        if after_s > within_s:
            self.broken(f"noticed after {seconds(after_s)} s, later than {within_s:g} s")
        if after_s < not_before_s - EVENT_CUT_S:
            self.broken(f"noticed after {seconds(after_s)} s, before its time of {not_before_s:g} s was over")

    def expect(self, what: str, seen: Callable[[], Any], within_s: float = HEAL_S) -> Any:
        """Wait for what was promised; note it as broken when it does not come."""
        found = wait_until(seen, within_s)
        if not found:
            self.broken(f"not within {within_s:g} s: {what}")
        return found

    def told(self, what: str, row: Json) -> None:
        """Hold a row of the admin API to saying what is wrong, since when, what was tried and what happens next."""
        trouble = row.get("trouble") or {}
        missing = [name for name in ("what", "since", "tried", "next") if not trouble.get(name)]
        if missing:
            self.broken(f"the row of {what} does not say: {', '.join(missing)}")

    def replaced(self, worker: str, *, within_s: float | None = None) -> None:
        """Wait for the worker's next process, and note when it started."""
        since = self.moment.boot

        def started() -> float | None:
            pid = next((row["pid"] for row in self.chimera.instances() if row["id"] == worker), None)
            at = started_boot_s(pid) if pid else None
            return at - since if at and at > since - 0.01 else None

        after_s = self.expect(f"a new process for {worker}", started)
        if after_s:
            self.note(f"replacement started after {seconds(after_s)} s")
            if within_s is not None and after_s > within_s:
                self.broken(f"its replacement started later than {within_s:g} s")

    def good_again(
        self, worker: str | None = None, *, ready: int | None = None, within_s: float = HEAL_S, from_s: float = 0.0
    ) -> None:
        """Wait until the fleet, and the worker that had the fault, answer well; note both times.

        `from_s`: only what was asked so long after the injection counts for the worker, which answered until then.
        """
        since, outcomes = self.moment.monotonic, self.load.outcomes
        if self.expect("a good answer", lambda: first_good(outcomes, since), within_s):
            self.row.good_s = (first_good(outcomes, since) or since) - since
        if worker:
            by_worker = partial(first_good, outcomes, since + from_s, worker)
            at = self.expect(f"a good answer of {worker}", by_worker, within_s)
            self.row.good_worker_s = at - since if at else None
        wanted = self.scenario.workers if ready is None else ready
        self.expect(f"{wanted} workers ready", lambda: self.ready_count() >= wanted, within_s)

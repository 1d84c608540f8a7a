"""What the operator asked for, on disk: the wanted fleet and the quarantined GPUs outlive a restart of Chimera."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from supervisor.config import MOST_SLOTS
from supervisor.config_values import MOST_WORKERS
from supervisor.events import EventLog
from supervisor.house import WorkerSpec
from supervisor.state_file import StateFile

log = structlog.get_logger("wanted")

VERSION = 1
MOST_NUMBERS = 10**9


class _Saved(msgspec.Struct):
    """The file's form. `workers_setting` is WORKERS as it was then: a changed setting is a newer wish."""

    workers_setting: str
    next_number: int
    workers: list[WorkerSpec]
    version: int = VERSION


class WantedFile:
    """`fleet.json` in the state directory. Written whole and atomically, by the fleet alone."""

    def __init__(self, state_dir: Path, workers_setting: str, events: EventLog) -> None:
        self._file = StateFile(
            state_dir / "fleet.json", _Saved, events, version=VERSION, check=_sensible,
            instead="the fleet is what WORKERS says; chimera spawn and chimera prune change it",
        )  # fmt: skip
        self.workers_setting = workers_setting

    @property
    def there(self) -> bool:
        """Whether a fleet is saved."""
        return self._file.path.exists()

    def forget(self, workers_setting: str) -> None:
        """WORKERS, now this, counts from here on: what was saved is older. A disk that keeps it is said."""
        self.workers_setting = workers_setting
        try:
            self._file.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("the saved fleet cannot be removed", path=str(self._file.path), cause=str(error))

    def load(self) -> tuple[list[WorkerSpec], int] | None:
        """Return the saved workers and the next worker's number; None when there is nothing that still holds.

        A file that cannot be read is set aside and said, never overwritten and never fatal.
        """
        saved = self._file.load()
        if saved is None:
            return None
        if saved.workers_setting != self.workers_setting:
            log.info("WORKERS has changed since the fleet was saved; WORKERS counts", saved=saved.workers_setting)
            return None
        return list(saved.workers), saved.next_number

    def save(self, workers: Sequence[WorkerSpec], next_number: int) -> None:
        """Write the fleet. Raises OSError when the disk does not take it; the old file is then still whole."""
        self._file.save(_Saved(self.workers_setting, next_number, list(workers)))


def _sensible(saved: _Saved) -> None:
    """Raise ValueError for a fleet that none of ours was: an id becomes the name of a log file, a place a variable."""
    if not 0 <= saved.next_number < MOST_NUMBERS or len(saved.workers) > MOST_WORKERS:
        raise ValueError(f"{len(saved.workers)} workers, and the last number given is {saved.next_number}")
    if len({spec.id for spec in saved.workers}) < len(saved.workers):
        raise ValueError("two workers have the same id")
    for spec in saved.workers:
        if not re.fullmatch(r"w[1-9][0-9]{0,8}", spec.id):
            raise ValueError(f"{spec.id[:40]!r} is no worker's id")
        if not re.fullmatch(r"[!-~]{1,200}", spec.placement) or not 1 <= spec.slots <= MOST_SLOTS:
            raise ValueError(f"{spec.id} has {spec.slots} slots on {spec.placement[:40]!r}")
        if int(spec.id[1:]) > saved.next_number:
            raise ValueError(f"{spec.id} is there, but the last number given is {saved.next_number}")


class QuarantineFile:
    """`quarantined.json` in the state directory: the GPUs that the operator took out of use. The ward writes it."""

    def __init__(self, state_dir: Path, events: EventLog) -> None:
        self._file: StateFile[list[str]] = StateFile(
            state_dir / "quarantined.json", list[str], events,
            instead="no GPU is quarantined by order; give the orders again: chimera quarantine GPU",
        )  # fmt: skip

    def load(self) -> frozenset[str]:
        """Return the UUIDs; none when there is no file. One that cannot be read is set aside and said."""
        return frozenset(self._file.load() or ())

    def save(self, uuids: frozenset[str]) -> None:
        """Write them. A disk that does not take it is said: the order holds, but not over a restart."""
        try:
            self._file.save(sorted(uuids))
        except OSError as error:
            log.error("the operator's quarantines cannot be saved; a restart will not know them", cause=str(error))

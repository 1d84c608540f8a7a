"""What the operator asked for, on disk: the wanted fleet and the quarantined GPUs outlive a restart of Chimera."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from supervisor.house import WorkerSpec

log = structlog.get_logger("wanted")

# What a file of ours may be that a fault of the disk, or somebody, has changed.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError)


class _Saved(msgspec.Struct):
    """The file's form. `workers_setting` is WORKERS as it was then: a changed setting is a newer wish."""

    workers_setting: str
    next_number: int
    workers: list[WorkerSpec]


class WantedFile:
    """`fleet.json` in the state directory. Written whole and atomically, by the fleet alone."""

    def __init__(self, state_dir: Path, workers_setting: str) -> None:
        self._path = state_dir / "fleet.json"
        self.workers_setting = workers_setting

    @property
    def there(self) -> bool:
        """Whether a fleet is saved."""
        return self._path.exists()

    def forget(self, workers_setting: str) -> None:
        """WORKERS, now this, counts from here on: what was saved is older. A disk that keeps it is said."""
        self.workers_setting = workers_setting
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.error("the saved fleet cannot be removed", path=str(self._path), cause=str(error))

    def load(self) -> tuple[list[WorkerSpec], int] | None:
        """Return the saved workers and the next worker's number; None when there is nothing that still holds.

        A file that cannot be read is set aside and said, never overwritten and never fatal.
        """
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            aside = self._path.with_name(f"fleet.json.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            self._path.replace(aside)
            log.warning("the saved fleet cannot be read; starting from WORKERS", cause=str(error), kept_as=str(aside))
            return None
        if saved.workers_setting != self.workers_setting:
            log.info("WORKERS has changed since the fleet was saved; WORKERS counts", saved=saved.workers_setting)
            return None
        return list(saved.workers), saved.next_number

    def save(self, workers: Sequence[WorkerSpec], next_number: int) -> None:
        """Write the fleet. Raises OSError when the disk does not take it; the old file is then still whole."""
        write_whole(self._path, _Saved(self.workers_setting, next_number, list(workers)))


class QuarantineFile:
    """`quarantined.json` in the state directory: the GPUs that the operator took out of use. The ward writes it."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "quarantined.json"

    def load(self) -> frozenset[str]:
        """Return the UUIDs; none when there is no file. One that cannot be read is said, and left as it is."""
        try:
            return frozenset(msgspec.json.decode(self._path.read_bytes(), type=list[str]))
        except FileNotFoundError:
            return frozenset()
        except _UNREADABLE as error:
            log.warning("the operator's quarantines cannot be read", path=str(self._path), cause=str(error))
            return frozenset()

    def save(self, uuids: frozenset[str]) -> None:
        """Write them. A disk that does not take it is said: the order holds, but not over a restart."""
        try:
            write_whole(self._path, sorted(uuids))
        except OSError as error:
            log.error("the operator's quarantines cannot be saved; a restart will not know them", cause=str(error))


def write_whole(path: Path, value: object) -> None:
    """Write a value as JSON, in one step. Raises OSError when the disk does not take it; the old file is then whole."""
    trial = path.with_suffix(".tmp")
    try:
        with trial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=1))
            file.flush()
            os.fsync(file.fileno())
        trial.replace(path)
    except OSError:
        trial.unlink(missing_ok=True)
        raise

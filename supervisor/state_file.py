"""The files in STATE_DIR: written in one step, and read so that none can cost a start, nor be lost without a word.

A power cut, a full disk, a failing one, another version or somebody's editor may leave anything there. What cannot be
read is set aside under another name, said as an event (which is a line in the log too), and begun anew.
"""

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from supervisor.events import EventLog

# Of each file, how many that were set aside are kept; the oldest go.
KEPT = 5
# No file of ours comes near; a larger one is none of ours, and is not read into memory.
MOST_BYTES = 4 * 1024 * 1024

_CORRUPT = ".corrupt-"

Form = TypeVar("Form")


class Unreadable(Exception):
    """A file cannot be used; the text says why, in one line."""


class _Stamp(msgspec.Struct):
    version: int = 1


class StateFile(Generic[Form]):
    """One file of JSON in the form `form`, of the version `version`; one writer, which STATE_DIR's lock sees to.

    `check` raises ValueError for a value that the form allows and that makes no sense. `instead` says, for people, what
    counts when the file cannot be read.
    """

    def __init__(
        self, path: Path, form: type[Form], events: EventLog, *, instead: str, version: int = 1,
        check: Callable[[Form], object] = lambda _: None,
    ) -> None:  # fmt: skip
        self.path = path
        self._form = form
        self._events = events
        self._instead = instead
        self._version = version
        self._check = check

    def load(self) -> Form | None:
        """Return what the file has, None when there is none. One that cannot be read is set aside and said."""
        try:
            return self._decoded()
        except FileNotFoundError:
            return None
        except (Unreadable, OSError) as fault:
            self._give_up(_cause(fault))
            return None

    def save(self, value: Form) -> None:
        """Write a value. Raises OSError when the disk does not take it; the file is then whole, the old or the new."""
        write_json(self.path, value)

    def _decoded(self) -> Form:
        data = read_bounded(self.path)
        try:
            stamp = msgspec.json.decode(data, type=_Stamp)
        except (ValueError, RecursionError):  # in a form without a version, or in none: told below
            stamp = _Stamp()
        if stamp.version > self._version:
            raise Unreadable(f"a newer Chimera wrote it: version {stamp.version}, and {self._version} is known here")
        try:
            value = msgspec.json.decode(data, type=self._form)
            self._check(value)
        except RecursionError as error:
            raise Unreadable("it is nested too deep") from error
        except ValueError as error:  # msgspec's own are, and Unicode's
            raise Unreadable(str(error) or "its values make no sense") from error
        return value

    def _give_up(self, cause: str) -> None:
        try:
            kept_as = set_aside(self.path)
        except OSError as error:
            self._events.record(
                "state_file_unreadable", level="error", file=str(self.path), cause=cause, instead=self._instead,
                set_aside=f"failed: {error.strerror}; the next change overwrites it",
            )  # fmt: skip
        else:
            self._events.record(
                "state_file_set_aside", level="error", file=str(self.path), cause=cause, kept_as=str(kept_as),
                instead=self._instead,
            )  # fmt: skip


def _cause(fault: Exception) -> str:
    return (fault.strerror if isinstance(fault, OSError) else None) or str(fault)


def read_bounded(path: Path) -> bytes:
    """Return what is in a file. Raises Unreadable for what is no file, or too large, OSError for what the disk says."""
    # O_NONBLOCK: a named pipe in the file's place would be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("it is not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MOST_BYTES:
        raise Unreadable(f"it is larger than {MOST_BYTES} bytes")
    return data


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, as `write_whole` does."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=1))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that whoever reads it, after a power cut too, finds all of the old one or all of the new.

    The mode of an old one is kept. Raises OSError when the disk does not take it.
    """
    trial = path.with_name(f"{path.name}.new")
    try:
        with os.fdopen(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(trial, path)  # noqa: PTH105 - one name for what tests let fail
        sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Have the disk keep what was renamed in a directory: without that a power cut may undo it (fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, companions: tuple[str, ...] = ()) -> Path:
    """Rename a file, or whatever is there, to NAME.corrupt-TIME; return its new path. Blocks.

    `companions` are endings of files that belong to it and go with it (SQLite's -wal). Of all that were ever set
    aside the newest KEPT stay; a folder that has something in it always does. Raises OSError when it stays where
    it is.
    """
    aside = _free_name(path, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    path.rename(aside)
    for ending in companions:
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    _drop_oldest(path, aside, companions)
    with suppress(OSError):  # it has its new name; whether the disk knows yet costs no start
        sync_directory(path.parent)
    return aside


def _asides(path: Path) -> list[Path]:
    """Return what was set aside of a file, oldest first."""
    name = re.compile(re.escape(f"{path.name}{_CORRUPT}") + r"\d{8}T\d{6}Z(-\d\d)?")
    return sorted(there for there in path.parent.iterdir() if name.fullmatch(there.name))


def _free_name(path: Path, stamp: str) -> Path:
    """Return a name that nothing has, in the order of time also within a second."""
    first = path.with_name(f"{path.name}{_CORRUPT}{stamp}")
    same = [there.name for there in _asides(path) if there.name.startswith(first.name)]
    if not same:
        return first
    number = int(same[-1].removeprefix(first.name).removeprefix("-") or 0) + 1
    return first.with_name(f"{first.name}-{number:02}")


def _drop_oldest(path: Path, newest: Path, companions: tuple[str, ...]) -> None:
    older = [there for there in _asides(path) if there != newest]  # whatever the clock said then
    for old in older[: 1 - KEPT]:
        for name in (old, *(old.with_name(old.name + ending) for ending in companions)):
            with suppress(OSError):
                name.rmdir() if name.is_dir() and not name.is_symlink() else name.unlink(missing_ok=True)

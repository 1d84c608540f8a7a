"""Copies of a SQLite database, next to it: what a damaged one is put back from. Everything here blocks.

A copy is made by SQLite's own backup (a file that is copied while somebody writes it is none), checked, and only then
given its name; so each that has a name is whole. A copy has what it was made of: a key that was revoked later is good
in it. So none may outlive a revocation, which a copy has before the database has it (`Copies.make`, `ahead`).
"""

import filecmp
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

# How many are kept: the newest may be of a moment in which something was wrong that no check sees.
KEPT = 3

_MARK = ".copy-"


class Copies:
    """The copies of the database at `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def newest_first(self) -> list[Path]:
        """Return those that there are."""
        name = re.compile(re.escape(f"{self._place.name}{_MARK}") + r"\d{6,}")
        try:
            there = [path for path in self._place.parent.iterdir() if name.fullmatch(path.name)]
        except OSError:  # nobody's folder: opening the database says what is wrong with it
            return []
        return sorted(there, key=_number, reverse=True)

    def make(self, source: sqlite3.Connection, *, ahead: Callable[[Path], None] | None = None) -> None:
        """Copy the database if it has changed; `source` is a connection to it without a transaction.

        `ahead` writes into the copy what the database is to have next; then no older copy stays, also when there is
        no new one. Raises OSError and sqlite3.Error when the disk does not take it or the database is damaged, and
        what `ahead` raises.
        """
        older = self.newest_first()
        alone = ahead is not None
        going = older if alone else []
        try:
            _write(source, self._trial, ahead)
            if older and filecmp.cmp(self._trial, older[0], shallow=False):  # else starts alone would crowd others out
                self._trial.unlink()
                going = going[1:]
            else:
                number = _number(older[0]) + 1 if older else 1  # not the time: clocks are put back
                _rename(self._trial, self._place.with_name(f"{self._place.name}{_MARK}{number:06}"))
                going = older if alone else older[KEPT - 1 :]
        finally:
            for old in going:
                old.unlink(missing_ok=True)
            if alone and going:
                _sync(self._place.parent)  # before the database has it, none of them comes back after a power cut

    def put_back(self, copy: Path) -> bool:
        """Put a copy in the database's place, in which there is none; False: it is damaged itself.

        The copy stays. Raises OSError when the disk does not take it.
        """
        if copy.stat().st_size == 0:  # which SQLite takes for a new database
            return False
        try:
            with closing(_reading(copy)) as source:
                _write(source, self._trial)
        except sqlite3.Error:
            return False
        _rename(self._trial, self._place)
        return True

    @property
    def _trial(self) -> Path:
        return self._place.with_name(f"{self._place.name}.copying")


def _number(copy: Path) -> int:
    return int(copy.name.rpartition("-")[2])


def made_at(copy: Path) -> str:
    """Return when a copy was made, for people. Raises OSError."""
    return datetime.fromtimestamp(copy.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _reading(copy: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _write(source: sqlite3.Connection, trial: Path, ahead: Callable[[Path], None] | None = None) -> None:
    """Copy a database into a file of its own, and check it. What fails (OSError, sqlite3.Error) leaves no file.

    `ahead` then writes more into it.
    """
    try:
        for left in (
            trial,
            trial.with_name(f"{trial.name}-journal"),
        ):  # by one that was killed: it would be rolled back
            left.unlink(missing_ok=True)
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))  # its owner's alone
        with closing(sqlite3.connect(trial, isolation_level=None)) as target:
            source.backup(target)
            found = target.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed: {found}")
            target.execute("PRAGMA journal_mode=DELETE")  # one file, with no other beside it
        if ahead is not None:
            ahead(trial)
        _sync(trial)
    except BaseException:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
        raise


def _rename(trial: Path, to: Path) -> None:
    trial.replace(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

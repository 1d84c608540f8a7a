"""Copies of the database: each that has a name is whole, and none outlives what it must not."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway import copies as module
from gateway.copies import KEPT, Copies, made_at


@pytest.fixture
def source(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database in WAL mode, as Chimera's is."""
    with closing(sqlite3.connect(tmp_path / "it.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE rows (number)")
        yield connection


def add(source: sqlite3.Connection, number: int) -> None:
    source.execute("INSERT INTO rows VALUES (?)", [number])


def rows(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM rows")]


def nothing(_path: Path) -> None:
    """Write nothing ahead."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "copy" in path.name or "copying" in path.name)


def test_a_copy_has_what_is_written_and_is_one_file_for_its_owner_alone(
    tmp_path: Path, source: sqlite3.Connection
) -> None:
    add(source, 1)  # it is in the -wal as yet
    Copies(tmp_path / "it.db").make(source)
    (copy,) = Copies(tmp_path / "it.db").newest_first()
    assert rows(copy) == [1]
    assert names(tmp_path) == ["it.db.copy-000001"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_the_newest_are_kept_whatever_the_clock_says(tmp_path: Path, source: sqlite3.Connection) -> None:
    copies = Copies(tmp_path / "it.db")
    for number in range(12):
        add(source, number)
        copies.make(source)
        os.utime(copies.newest_first()[0], (1_000_000 - number, 1_000_000 - number))
    assert [rows(copy)[-1] for copy in copies.newest_first()] == [11, 10, 9]
    assert len(copies.newest_first()) == KEPT
    assert made_at(copies.newest_first()[0]) == "1970-01-12T13:46:29+00:00"


def test_no_other_file_is_taken_for_a_copy(tmp_path: Path, source: sqlite3.Connection) -> None:
    others = [
        "it.db.copy-of-mine",
        "it.db.copy-1",
        "other.db.copy-000001",
        "xit.db.copy-000009",
        "it.db.copy-000001-wal",
    ]
    for name in others:
        (tmp_path / name).touch()
    copies = Copies(tmp_path / "it.db")
    for number in range(5):
        add(source, number)
        copies.make(source, ahead=nothing)
    assert [copy.name for copy in copies.newest_first()] == ["it.db.copy-000005"]
    assert {path.name for path in tmp_path.iterdir()} >= set(others)


def test_of_a_database_that_has_not_changed_no_copy_is_made_but_older_ones_go(
    tmp_path: Path, source: sqlite3.Connection
) -> None:
    copies = Copies(tmp_path / "it.db")
    for number in range(2):
        add(source, number)
        for _ in range(3):
            copies.make(source)
    assert names(tmp_path) == ["it.db.copy-000001", "it.db.copy-000002"]
    copies.make(source, ahead=nothing)
    assert names(tmp_path) == ["it.db.copy-000002"]


def test_a_copy_may_have_what_the_database_is_to_have_next(tmp_path: Path, source: sqlite3.Connection) -> None:
    def ahead(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            add(connection, 2)

    copies = Copies(tmp_path / "it.db")
    add(source, 1)
    copies.make(source)
    copies.make(source, ahead=ahead)
    assert [rows(copy) for copy in copies.newest_first()] == [[1, 2]]
    assert rows(tmp_path / "it.db") == [1]


def test_what_cannot_be_written_ahead_leaves_no_copy_at_all(tmp_path: Path, source: sqlite3.Connection) -> None:
    def fails(_path: Path) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    Copies(tmp_path / "it.db").make(source)
    with pytest.raises(sqlite3.OperationalError):
        Copies(tmp_path / "it.db").make(source, ahead=fails)
    assert names(tmp_path) == []


def test_a_folder_with_signs_in_its_name_is_one(tmp_path: Path, source: sqlite3.Connection) -> None:
    place = tmp_path / "a [1]* ?#%41" / "it (2).db"
    place.parent.mkdir()
    Copies(place).make(source)
    (copy,) = Copies(place).newest_first()
    assert Copies(place).put_back(copy)
    assert rows(place) == []


def test_where_no_copy_can_be_made_the_older_ones_stay_but_for_one_that_was_to_be_alone(
    tmp_path: Path, source: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    copies = Copies(tmp_path / "it.db")
    for number in range(KEPT):
        add(source, number)
        copies.make(source)
    there = names(tmp_path)
    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        copies.make(source)
    assert names(tmp_path) == there
    with pytest.raises(OSError, match="No space"):
        copies.make(source, ahead=nothing)
    assert names(tmp_path) == []


def test_a_damaged_database_makes_no_copy(tmp_path: Path, source: sqlite3.Connection) -> None:
    add(source, 1)
    source.close()
    place = tmp_path / "it.db"
    content = bytearray(place.read_bytes())
    content[4096:] = b"\xaa" * (len(content) - 4096)
    place.write_bytes(content)
    with closing(sqlite3.connect(place)) as damaged, pytest.raises(sqlite3.DatabaseError, match="malformed"):
        Copies(place).make(damaged)
    assert names(tmp_path) == []


def test_a_copy_is_put_back_and_stays(tmp_path: Path, source: sqlite3.Connection) -> None:
    add(source, 1)
    copies = Copies(tmp_path / "it.db")
    copies.make(source)
    source.close()
    (tmp_path / "it.db").unlink()
    (copy,) = copies.newest_first()
    assert copies.put_back(copy)
    assert rows(tmp_path / "it.db") == [1]
    assert copies.newest_first() == [copy]


@pytest.mark.parametrize("content", [b"", b"noise" * 999, b"SQLite format 3\0" + b"\1" * 900])
def test_a_copy_that_is_damaged_itself_is_not_put_back(tmp_path: Path, content: bytes) -> None:
    copy = tmp_path / "it.db.copy-000001"
    copy.write_bytes(content)
    assert Copies(tmp_path / "it.db").put_back(copy) is False
    assert names(tmp_path) == ["it.db.copy-000001"]

"""A look at the database tells how it stands, and leaves everything as it is."""

import sqlite3
from pathlib import Path

import pytest

from gateway.database import DatabaseFault, open_database
from gateway.database_look import look_at


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert look_at(None, tmp_path) == f"{tmp_path}/chimera.db: it will be made"
    assert list(tmp_path.iterdir()) == []


def test_a_look_tells_which_version_the_tables_are_of_and_leaves_all_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys of 100%.db"
    url = f"sqlite:///{path}"
    open_database(url, tmp_path)
    before = path.read_bytes()
    path.chmod(0o400)
    assert look_at(url, tmp_path) == f"{path}: up to date (0001)"
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == (before, [path])


def changed(folder: Path, change: str) -> None:
    open_database(None, folder)
    with sqlite3.connect(folder / "chimera.db") as connection:
        connection.execute(change)
    connection.close()


def test_a_look_at_an_older_one_says_that_a_start_brings_it_up_to_date(tmp_path: Path) -> None:
    changed(tmp_path, "DROP TABLE alembic_version")
    assert look_at(None, tmp_path) == f"{tmp_path}/chimera.db: nothing is in it; the next start brings it up to date"


def test_a_look_at_one_of_another_version_is_one_line(tmp_path: Path) -> None:
    changed(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseFault, match=r"another version of Chimera \(9999\)"):
        look_at(None, tmp_path)


def test_what_is_in_the_log_of_one_that_is_in_use_is_not_looked_at(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "chimera.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        assert look_at(None, tmp_path) == f"{tmp_path}/chimera.db: in use"
    connection.close()


def test_a_look_at_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "chimera.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(DatabaseFault, match=rf"^the database {tmp_path}/chimera.db \(DATABASE_URL\) .*; it is damaged"):
        look_at(None, tmp_path)

"""The database at start: made, checked, brought up to date, or refused in one line."""

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from gateway import database as module
from gateway.database import Database, DatabaseFault, open_database, url_of

SECRET = "hunter2-do-not-tell"


def refused(written: str | None, state_dir: Path) -> str:
    with pytest.raises(DatabaseFault) as fault:
        open_database(written, state_dir)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_it_is_made_where_it_is_not_for_its_owner_alone(tmp_path: Path) -> None:
    with open_database(None, tmp_path).transaction() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["chimera.db", "chimera.db-shm", "chimera.db-wal"]
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_file_that_others_could_write_is_its_owners_alone_from_now_on(tmp_path: Path) -> None:
    open_database(None, tmp_path)
    (tmp_path / "chimera.db").chmod(0o666)
    open_database(None, tmp_path)
    assert (tmp_path / "chimera.db").stat().st_mode & 0o777 == 0o600


def test_it_may_be_another_file(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/my keys.db", Path("/nowhere"))
    assert (tmp_path / "my keys.db").is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"this is no database" * 100, "file is not a database; it is damaged"), (b"SQLite format 3\0" * 300, "damaged")],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "chimera.db").write_bytes(content)
    assert said in refused(None, tmp_path)
    assert str(tmp_path / "chimera.db") in refused(None, tmp_path)
    assert (tmp_path / "chimera.db").read_bytes() == content, "nothing is done to what somebody may want to save"


def test_a_page_that_was_overwritten_is_found_at_start(tmp_path: Path) -> None:
    with open_database(None, tmp_path).transaction() as connection:
        page_bytes = connection.execute(text("PRAGMA page_size")).scalar_one()
    path = tmp_path / "chimera.db"
    content = bytearray(path.read_bytes())
    content[page_bytes * 2 : page_bytes * 4] = b"\xaa" * page_bytes * 2
    path.write_bytes(content)
    assert "it is damaged: put a copy of it back" in refused(None, tmp_path)


@pytest.mark.parametrize(
    ("path", "said"), [("", "Is a directory"), ("/none/x.db", "No such file or directory"), ("/f/x.db", "Not a dir")]
)
def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "f").touch()
    line = refused(f"sqlite:///{tmp_path}{path}", tmp_path)
    assert said in line
    assert line.endswith("; the file and its folder must be there for Chimera to write")


def test_a_file_that_cannot_be_written_is_found_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_database(None, tmp_path)

    def prepare_readonly(connection: sqlite3.Connection, record: object) -> None:
        module_prepare(connection, record)
        connection.execute("PRAGMA query_only=ON")  # as on a read-only file system, which tests cannot make

    module_prepare = module._prepare_sqlite
    monkeypatch.setattr(module, "_prepare_sqlite", prepare_readonly)
    database = Database(url_of(None, tmp_path))
    with pytest.raises(DatabaseFault) as fault, database.transaction() as connection:
        connection.execute(text("DELETE FROM api_keys"))
    assert "readonly database; the file and its folder must be there" in str(fault.value)


def test_a_file_that_another_program_holds_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0)
    open_database(None, tmp_path)
    other = sqlite3.connect(tmp_path / "chimera.db")
    other.execute("BEGIN IMMEDIATE")
    assert refused(None, tmp_path).endswith("database is locked; another program holds it")
    other.rollback()
    other.close()


def test_a_newer_chimeras_database_is_left_alone(tmp_path: Path) -> None:
    with open_database(None, tmp_path).transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "is of another version of Chimera (Can't locate revision identified by '9999')" in refused(None, tmp_path)


def test_a_step_that_breaks_off_leaves_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = command.upgrade

    def broken(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", broken)
    with pytest.raises(KeyboardInterrupt):
        open_database(None, tmp_path)
    monkeypatch.undo()
    with Database(url_of(None, tmp_path)).transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar() == 0
    open_database(None, tmp_path)


@pytest.mark.parametrize(
    "written",
    ["sqlite:///relative.db", "sqlite://", f"mysql://me:{SECRET}@h/d", f"postgresql+asyncpg://me:{SECRET}@h/d",
     f"postgresql://me:{SECRET}@h:port/d", SECRET, f"//me:{SECRET}@h"],
)  # fmt: skip
def test_a_url_that_is_none_is_one_line_without_its_secrets(tmp_path: Path, written: str) -> None:
    line = refused(written, tmp_path)
    assert line.startswith("DATABASE_URL: ")
    assert SECRET not in line


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_driver_that_is_not_installed_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    line = refused(f"{scheme}://me:{SECRET}@127.0.0.1/chimera?password={SECRET}", tmp_path)
    assert "chimera[postgres]" in line
    assert "pip install 'psycopg[binary]'" in line
    assert SECRET not in line


def test_what_a_statement_had_in_it_is_in_no_fault(tmp_path: Path) -> None:
    database = open_database(None, tmp_path)
    with pytest.raises(DatabaseFault) as fault, database.transaction() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": SECRET})
    assert "no such table: nowhere" in str(fault.value)
    assert SECRET not in str(fault.value) + repr(fault.value.__cause__) + str(fault.value.__cause__)


def test_no_connection_is_kept(tmp_path: Path) -> None:
    database = open_database(None, tmp_path)
    for _ in range(100):  # more than any pool would have
        with database.transaction():
            pass
    held = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(_target(link))]
    assert held == []


def _target(link: Path) -> Path:
    try:
        return link.readlink()
    except FileNotFoundError:  # the listing's own
        return link

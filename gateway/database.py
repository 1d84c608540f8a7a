"""The database: opened, checked and brought up to date at start. Everything here blocks: worker threads only.

SQLite, or PostgreSQL with the driver of `chimera[postgres]`. Each transaction has a connection of its own: they are
few (a change by an operator, one a minute besides), none is on a request's way, and so there is no pool that requests
could exhaust, as they did elsewhere (gpustack#1332).
"""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, Executable, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from gateway.copies import Copies

log = structlog.get_logger("gateway")

# How long a lock of another process, a connection or a statement may take; then the database counts as away.
TIMEOUT_S = 5
FILE_NAME = "chimera.db"
_DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
# What SQLite says of a file whose bytes are not what was written.
_DAMAGE = re.compile(
    "not a database|not a file|malformed|no such (table|column)|already exists|[Uu]nsupported|[Cc]ould not decode"
)
# What SQLite says and what there is to do about it; the first that fits.
_HINTS = (
    (_DAMAGE, "it is damaged: put a copy of it back, or move it away to begin without keys"),
    (re.compile("locked"), "another program holds it"),
    (re.compile("full"), "free some space"),
    (re.compile(""), "the file and its folder must be there for Chimera to write"),
)


class DatabaseFault(Exception):
    """The database cannot be used. The text is one line: which, what is wrong, what to do; never a password."""


class Damaged(DatabaseFault):
    """The database's file is not what was written: the disk, a power cut or somebody changed it. `what` is wrong."""

    def __init__(self, text: str, what: str) -> None:
        super().__init__(text)
        self.what = what


def url_of(written: str | None, state_dir: Path) -> URL:
    """Return DATABASE_URL as SQLAlchemy has it; a SQLite file in `state_dir` where nobody set it.

    Raises DatabaseFault for one that is none.
    """
    if written is None:
        return URL.create("sqlite", database=str(state_dir / FILE_NAME))
    try:
        url = make_url(written)
    except (ArgumentError, ValueError):
        raise DatabaseFault("DATABASE_URL: this is not a database's URL") from None  # its text may hold a password
    if url.drivername not in {*_DRIVERS, *_DRIVERS.values()}:
        raise DatabaseFault(
            f"DATABASE_URL: write sqlite:////PATH or postgresql://…; there is no way to {url.drivername} here"
        )
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() == "sqlite" and not (url.database or "").startswith("/"):
        raise DatabaseFault("DATABASE_URL: write sqlite:////ABSOLUTE/PATH, with four slashes")
    return url


class Database:
    """A database that was opened. `place` is what people are told of where it is."""

    def __init__(self, url: URL, *, looks_only: bool = False) -> None:
        """`path`: the file of a SQLite database, else None. Nothing is connected yet.

        `looks_only`: nothing of a SQLite database is ever written, no file beside it made.
        Raises DatabaseFault when there is no driver for it.
        """
        self._sqlite = url.get_backend_name() == "sqlite"
        self.place = url.database or "" if self._sqlite else f"PostgreSQL at {url.host or 'localhost'}/{url.database}"
        self.path = Path(self.place) if self._sqlite else None
        looking = {"creator": partial(_look_into, self.place)} if self._sqlite and looks_only else {}
        try:
            self._engine: Engine = create_engine(
                url, poolclass=NullPool, hide_parameters=True, connect_args=self._connect_args(), **looking
            )
        except ImportError as error:
            raise DatabaseFault(
                f"DATABASE_URL: PostgreSQL needs a driver that is not installed ({error.name}): install "
                "chimera[postgres], here with: .venv/bin/python -m pip install 'psycopg[binary]'"
            ) from None
        if self._sqlite and not looks_only:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def _connect_args(self) -> Mapping[str, Any]:
        if self._sqlite:
            return {"timeout": TIMEOUT_S}
        # libpq: the server may be gone without a word; statements wait for locks
        return {
            "connect_timeout": TIMEOUT_S, "tcp_user_timeout": TIMEOUT_S * 1000,
            "options": f"-c statement_timeout={TIMEOUT_S * 1000}",
        }  # fmt: skip

    def open(self) -> None:
        """Make it where it is not yet, check it, and bring its tables up to date. Raises DatabaseFault.

        A SQLite file is its owner's alone (0600): whoever may write it can give himself a key. It is copied before
        its tables change.
        """
        if self.path is not None:
            try:
                self._make(self.path)
            except IsADirectoryError as error:
                raise Damaged(str(self._fault("Is a directory")), "it is a directory") from error
            except OSError as error:
                raise self._fault(error.strerror or str(error)) from error
        config = Config()
        config.set_main_option("script_location", "gateway:migrations")
        try:
            with self.transaction() as connection:
                if self._sqlite:
                    found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
                    if found != "ok":
                        raise self._fault(_one_line(f"malformed: {found}"))
                revision = MigrationContext.configure(connection).get_current_revision()
            if revision not in (None, ScriptDirectory.from_config(config).get_current_head()):
                self.copy()
            with self.transaction() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseFault(
                f"the database {self.place} (DATABASE_URL) is of another version of Chimera ({_one_line(error)}); "
                "use that version, or another database"
            ) from error

    def _make(self, path: Path) -> None:
        """Make the file. Before any connection: closing it gives up this process's locks on it (fcntl(2))."""
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._fault("it is not a file")
            os.fchmod(descriptor, 0o600)
            head, size_bytes = os.pread(descriptor, 20, 0), os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if found := _wrong_head(head):
            raise self._fault(found)
        whole = size_bytes % _page_bytes(head) == 0 if head else True
        if not whole and not any(path.with_name(path.name + ending).exists() for ending in ("-wal", "-journal")):
            raise self._fault("malformed: it was cut short")  # SQLite takes nought for what is missing of a page

    def copy(self, *, ahead: Executable | None = None) -> None:
        """Copy it, as `Copies.make` does. A copy that cannot be made is logged, and keeps nobody from anything.

        `ahead` is a statement that the copy has before the database itself. A PostgreSQL is its own operator's to copy.
        """
        if self.path is None:
            return
        try:
            connection = self._engine.raw_connection()
            try:
                source = connection.driver_connection
                assert isinstance(source, sqlite3.Connection)  # noqa: S101 - for the type checker: the driver's
                Copies(self.path).make(source, ahead=partial(_carry_out, ahead) if ahead is not None else None)
            finally:
                connection.close()
        except (OSError, sqlite3.Error, SQLAlchemyError, UnicodeDecodeError) as error:
            log.warning("the database cannot be copied now", path=self.place, cause=_one_line(error))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection for the block, in one transaction. Raises DatabaseFault for whatever the database says."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._fault(_one_line(error.orig or error)) from error
        except SQLAlchemyError as error:
            raise self._fault(_one_line(error)) from error
        except UnicodeDecodeError as error:  # of the driver's own, whose words repeat what it could not read
            raise self._fault("Could not decode a text in it as UTF-8") from error

    def _fault(self, said: str) -> DatabaseFault:
        hint = f"; {next(hint for sign, hint in _HINTS if sign.search(said))}" if self._sqlite else ""
        line = f"the database {self.place} (DATABASE_URL) cannot be used: {said}{hint}"
        return Damaged(line, said) if self._sqlite and _DAMAGE.search(said) else DatabaseFault(line)


def open_database(written: str | None, state_dir: Path) -> Database:
    """Return the database of DATABASE_URL, ready to be used. Raises DatabaseFault."""
    database = Database(url_of(written, state_dir))
    database.open()
    return database


def _carry_out(statement: Executable, path: Path) -> None:
    """Carry out a statement in another SQLite file. Raises SQLAlchemyError."""
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool, hide_parameters=True)
    with engine.begin() as connection:
        connection.execute(statement)


def _look_into(path: str) -> sqlite3.Connection:
    """Open a SQLite file without locks, and without making the files of its write-ahead log: they would be root's.

    sqlite.org/uri.html: immutable.
    """
    return sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)


def _wrong_head(head: bytes) -> str | None:
    """Return what is wrong with the first 20 bytes of a SQLite file (sqlite.org/fileformat.html, 1.3); none are new.

    SQLite only reads a file of a version above 2, which would look like the disk's doing.
    """
    sound = head[:16] == b"SQLite format 3\0" and len(head) == 20 and set(head[18:]) <= {1, 2}
    return None if sound or not head else "file is not a database"


def _page_bytes(head: bytes) -> int:
    return {1: 65536, 0: 1}.get(size_bytes := int.from_bytes(head[16:18], "big"), size_bytes)


def _prepare_sqlite(connection: Any, _: object) -> None:
    """WAL: readers and the one writer do not wait for each other, and a power cut leaves it whole."""
    connection.isolation_level = None  # else sqlite3 begins transactions where it pleases, and none for CREATE TABLE
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Begin by asking for the one writer's place: what cannot be written is found out at start, not at a change."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _one_line(said: object) -> str:
    return " ".join(str(said).split())

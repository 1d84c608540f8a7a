"""The database: opened, checked and brought up to date at start. Everything here blocks: worker threads only.

SQLite, or PostgreSQL with the driver of `chimera[postgres]`. Each transaction has a connection of its own: they are
few (a change by an operator, one a minute besides), none is on a request's way, and so there is no pool that requests
could exhaust, as they did elsewhere (gpustack#1332).
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

# How long a lock of another process, a connection or a statement may take; then the database counts as away.
TIMEOUT_S = 5
FILE_NAME = "chimera.db"
_DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
# What SQLite says and what there is to do about it; the first that fits.
_HINTS = (
    (
        re.compile("not a database|malformed"),
        "it is damaged: put a copy of it back, or move it away to begin without keys",
    ),
    (re.compile("locked"), "another program holds it"),
    (re.compile("full"), "free some space"),
    (re.compile(""), "the file and its folder must be there for Chimera to write"),
)


class DatabaseFault(Exception):
    """The database cannot be used. The text is one line: which, what is wrong, what to do; never a password."""


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

    def __init__(self, url: URL) -> None:
        """Raises DatabaseFault when there is no driver for it. Nothing is connected yet."""
        self._sqlite = url.get_backend_name() == "sqlite"
        self.place = url.database or "" if self._sqlite else f"PostgreSQL at {url.host or 'localhost'}/{url.database}"
        try:
            self._engine: Engine = create_engine(
                url, poolclass=NullPool, hide_parameters=True, connect_args=self._connect_args()
            )
        except ImportError as error:
            raise DatabaseFault(
                f"DATABASE_URL: PostgreSQL needs a driver that is not installed ({error.name}): install "
                "chimera[postgres], here with: .venv/bin/python -m pip install 'psycopg[binary]'"
            ) from None
        if self._sqlite:
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

        A SQLite file is its owner's alone (0600): whoever may write it can give himself a key.
        """
        if self._sqlite:
            try:  # before any connection: closing a file gives up the locks that this process has on it (fcntl(2))
                os.close(os.open(self.place, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
                Path(self.place).chmod(0o600)
            except OSError as error:
                raise self._fault(error.strerror or str(error)) from error
        try:
            with self.transaction() as connection:
                if self._sqlite:
                    found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
                    if found != "ok":
                        raise self._fault(_one_line(f"malformed: {found}"))
                config = Config()
                config.set_main_option("script_location", "gateway:migrations")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseFault(
                f"the database {self.place} (DATABASE_URL) is of another version of Chimera ({_one_line(error)}); "
                "use that version, or another database"
            ) from error

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

    def _fault(self, said: str) -> DatabaseFault:
        hint = f"; {next(hint for sign, hint in _HINTS if sign.search(said))}" if self._sqlite else ""
        return DatabaseFault(f"the database {self.place} (DATABASE_URL) cannot be used: {said}{hint}")


def open_database(written: str | None, state_dir: Path) -> Database:
    """Return the database of DATABASE_URL, ready to be used. Raises DatabaseFault."""
    database = Database(url_of(written, state_dir))
    database.open()
    return database


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

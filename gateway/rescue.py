"""The keys at start, whatever became of their SQLite file: a damaged one is set aside, and the newest copy put back.

Nothing here lets anybody in: without a copy no key is known, and where one is required (API_KEYS_REQUIRED) every
request that needs one is refused until the operator has made keys anew. A file that is whole, and that cannot be used
for another reason (a lock, its owner, a newer Chimera's tables), is left where it is. Everything here blocks.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.copies import Copies, made_at
from gateway.database import Damaged, Database, DatabaseFault, url_of
from gateway.key_store import KeyStore
from gateway.keys import Key

# What SQLite keeps beside a database: without its own they would be taken for the next one's.
COMPANIONS = ("-wal", "-shm", "-journal")

SetAside = Callable[[Path, tuple[str, ...]], Path]


@dataclass(frozen=True, slots=True)
class Happened:
    """What became of the file, as an event and its fields."""

    event: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """The store, the keys in it, and what happened to the file; None: nothing that anybody must know."""

    store: KeyStore
    keys: list[Key]
    happened: Happened | None = None


def open_keys(written: str | None, state_dir: Path, set_aside: SetAside) -> Opened:
    """Return the keys of DATABASE_URL. `set_aside` renames a file and its companions, and returns its new path.

    Raises DatabaseFault for a database that cannot be used. A file that is no database is one of ours where nobody
    chose another, or where copies of it are: else it might be anything, and stays where it is.
    """
    database = Database(url_of(written, state_dir))
    copies = Copies(database.path) if database.path is not None else None
    there = copies.newest_first() if copies is not None else []
    try:
        if database.path is not None and there:
            _refuse_emptied(database.path)
        gone = _gone(database.path, there) if database.path is not None else None
        return replace(_load(database), happened=gone)
    except Damaged as fault:
        if copies is None or database.path is None or (written is not None and not there):
            raise
        return _rescued(database, database.path, copies, set_aside, fault)


def _load(database: Database) -> Opened:
    database.open()
    store = KeyStore(database)
    keys = store.load()
    database.copy()
    return Opened(store, keys)


def _refuse_emptied(path: Path) -> None:
    """SQLite takes an empty file for a new database; where copies are, it was one."""
    with suppress(OSError):
        if path.is_file() and path.stat().st_size == 0:
            raise Damaged(f"the database {path} is empty", "it is empty, and was not")


def _gone(path: Path, there: list[Path]) -> Happened | None:
    """Say that there is no file where copies are. Not put back: whoever removes it may want its keys gone."""
    if not there or os.path.lexists(path):
        return None
    return Happened("keys_gone", {
        "database": str(path), "cause": "the file is not there; a new one is begun, and no key is known",
        "advice": f"to have the keys back: stop Chimera, copy {there[0]} to {path}, start it",
    })  # fmt: skip


def _rescued(database: Database, path: Path, copies: Copies, set_aside: SetAside, fault: Damaged) -> Opened:
    try:
        kept_as = set_aside(path, COMPANIONS)
        said = {"database": str(path), "cause": fault.what, "kept_as": str(kept_as)}
        for copy in copies.newest_first():
            if not copies.put_back(copy):
                continue
            said["copied_at"] = made_at(copy)  # a start makes copies too: this one may be the oldest by now
            try:
                opened = _load(database)
            except Damaged:  # whole for SQLite, and yet no keys of ours
                _remove(path)
                continue
            return replace(opened, happened=_put_back(said, copy, len(opened.keys)))
    except OSError as error:
        raise DatabaseFault(f"{fault}; and it could not be put back: {error.strerror}") from error
    said.pop("copied_at", None)
    return replace(_load(database), happened=_begun_anew(said))


def _put_back(said: dict[str, str], copy: Path, keys: int) -> Happened:
    advice = "what was changed after that is lost: look at what there is (chimera keys)"
    return Happened("keys_put_back", said | {
        "put_back": str(copy), "keys": keys, "advice": advice,
    })  # fmt: skip


def _begun_anew(said: dict[str, str]) -> Happened:
    advice = (
        "there is no whole copy, so no key is known, and with API_KEYS_REQUIRED every request that needs one is "
        "refused: make keys anew (chimera keys create NAME), or stop Chimera and put a copy of your own back"
    )
    return Happened("keys_lost", said | {"advice": advice})


def _remove(path: Path) -> None:
    for ending in ("", *COMPANIONS):
        path.with_name(path.name + ending).unlink(missing_ok=True)

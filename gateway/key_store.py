"""The keys in the database. Everything here blocks: worker threads only. Raises DatabaseFault."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

import msgspec
from sqlalchemy import Row, insert, select, update

from gateway.database import Damaged, Database, DatabaseFault
from gateway.keys import Key
from gateway.limits import Limits
from gateway.tables import api_keys


class _Row(msgspec.Struct):
    """What a row must be made of: SQLite takes anything in any column."""

    id: int
    name: str
    digest: bytes
    prefix: str
    concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    priority: int
    models: bool
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyStore:
    """Reads and writes keys; each call is one transaction. A database that was changed is copied (`gateway.copies`).

    Where rights are taken away the copy has it first, and no older one stays: whenever Chimera is killed, a database
    that is put back gives no right again that was taken.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> list[Key]:
        """Return the keys that are not revoked, oldest first. Raises Damaged for one that makes no sense."""
        with self._database.transaction() as connection:
            asked = select(api_keys).where(api_keys.c.revoked_at.is_(None)).order_by(api_keys.c.id)
            try:
                rows = connection.execute(asked).all()  # all: a cursor that is left would keep the file open
                return [_key(row) for row in rows]
            except (ValueError, TypeError) as error:
                what = "a key in it makes no sense"
                raise Damaged(f"the database {self._database.place} is damaged: {what}", what) from error

    def add(self, key: Key) -> Key:
        """Write a new key; return it with the id that it got."""
        values = {
            "name": key.name, "digest": key.digest, "prefix": key.prefix, "priority": key.priority,
            "models": key.models, "created_at": key.created_at, **asdict(key.limits),
        }  # fmt: skip
        with self._database.transaction() as connection:
            made = _key(connection.execute(insert(api_keys).values(values).returning(api_keys)).one())
        self._database.copy()
        return made

    def change(self, key: Key) -> None:
        """Write what may change of a key: its name, limits, priority and rights."""
        values = {"name": key.name, "priority": key.priority, "models": key.models, **asdict(key.limits)}
        self._update(key.id, values)

    def revoke(self, key_id: str, at: datetime) -> None:
        """Write that a key counts no more."""
        self._update(key_id, {"revoked_at": at})

    def used(self, moments: Mapping[str, datetime]) -> None:
        """Write when keys were last used, by id, all in one transaction."""
        with self._database.transaction() as connection:
            for key_id, moment in moments.items():
                row = api_keys.c.id == _number(key_id)
                connection.execute(update(api_keys).where(row).values(last_used_at=moment))

    def _update(self, key_id: str, values: Mapping[str, object]) -> None:
        statement = update(api_keys).where(api_keys.c.id == _number(key_id)).values(values)
        self._database.copy(ahead=statement)
        try:
            with self._database.transaction() as connection:
                connection.execute(statement)
        except DatabaseFault:
            self._database.copy()  # what the copy had ahead has not come about
            raise


def _number(key_id: str) -> int:
    return int(key_id.removeprefix("k"))


def _key(row: Row[tuple[object, ...]]) -> Key:
    it = msgspec.convert(row, _Row, from_attributes=True)
    return Key(
        id=f"k{it.id}",
        name=it.name,
        prefix=it.prefix,
        limits=Limits(it.concurrency, it.requests_per_minute, it.tokens_per_minute),
        priority=it.priority,
        models=it.models,
        created_at=it.created_at,
        digest=it.digest,
        last_used_at=it.last_used_at,
    )

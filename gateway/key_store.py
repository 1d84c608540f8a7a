"""The keys in the database. Everything here blocks: worker threads only. Raises DatabaseFault."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Row, insert, select, update

from gateway.database import Database
from gateway.keys import Key
from gateway.limits import Limits
from gateway.tables import api_keys


class KeyStore:
    """Reads and writes keys; each call is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> list[Key]:
        """Return the keys that are not revoked, oldest first."""
        with self._database.transaction() as connection:
            asked = select(api_keys).where(api_keys.c.revoked_at.is_(None)).order_by(api_keys.c.id)
            return [_key(row) for row in connection.execute(asked)]

    def add(self, key: Key) -> Key:
        """Write a new key; return it with the id that it got."""
        values = {
            "name": key.name, "digest": key.digest, "prefix": key.prefix, "priority": key.priority,
            "models": key.models, "created_at": key.created_at, **asdict(key.limits),
        }  # fmt: skip
        with self._database.transaction() as connection:
            return _key(connection.execute(insert(api_keys).values(values).returning(api_keys)).one())

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
        with self._database.transaction() as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == _number(key_id)).values(values))


def _number(key_id: str) -> int:
    return int(key_id.removeprefix("k"))


def _key(row: Row[tuple[object, ...]]) -> Key:
    fields = row._mapping  # noqa: SLF001 - public in spite of its name: a column might be called "mapping"
    return Key(
        id=f"k{fields['id']}",
        name=fields["name"],
        prefix=fields["prefix"],
        limits=Limits(fields["concurrency"], fields["requests_per_minute"], fields["tokens_per_minute"]),
        priority=fields["priority"],
        models=fields["models"],
        created_at=fields["created_at"],
        digest=bytes(fields["digest"]),
        last_used_at=fields["last_used_at"],
    )

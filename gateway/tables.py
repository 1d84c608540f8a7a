"""The database's tables as this version has them. `migrations/` brings an older database here; a test compares both."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Column, DateTime, Dialect, Integer, LargeBinary, MetaData, String, Table
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets the zone, PostgreSQL tells its own: it comes back in UTC from both."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what was stored, in UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


# Names that each database would otherwise make up in its own way, and that a later migration has to name.
_NAMES = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
}

metadata = MetaData(naming_convention=_NAMES)

_NOTHING: dict[str, Any] = {"nullable": True}

# A revoked key stays: whatever will be told of what it did has to name it. Its number is never another's.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the key (gateway.keys)
    Column("prefix", String(32), nullable=False),  # what people are shown of it
    Column("concurrency", Integer, **_NOTHING),
    Column("requests_per_minute", Integer, **_NOTHING),
    Column("tokens_per_minute", Integer, **_NOTHING),
    Column("priority", Integer, nullable=False),
    Column("models", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("last_used_at", Moment, **_NOTHING),
    Column("revoked_at", Moment, **_NOTHING),
    sqlite_autoincrement=True,
)

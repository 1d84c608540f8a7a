"""The tables, and that migrations lead to exactly them."""

from datetime import UTC, datetime
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select

from gateway.database import Database, open_database
from gateway.keys import Key
from gateway.tables import api_keys, metadata


def difference(database: Database) -> list[object]:
    with database.transaction() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_migrations_lead_to_the_tables_as_they_are(tmp_path: Path) -> None:
    assert difference(open_database(None, tmp_path)) == []


def test_what_is_kept_of_a_key_has_no_column_for_what_it_says() -> None:
    kept = {column.name for column in api_keys.columns}
    assert kept - {"concurrency", "requests_per_minute", "tokens_per_minute", "revoked_at"} == {
        name for name in Key.__slots__ if name != "limits"
    }


def test_a_moment_comes_back_with_its_zone(tmp_path: Path) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    database = open_database(None, tmp_path)
    with database.transaction() as connection:
        connection.execute(
            insert(api_keys).values(name="n", digest=b"d", prefix="p", priority=0, models=False, created_at=at)
        )
        row = connection.execute(select(api_keys.c.created_at, api_keys.c.revoked_at)).one()
    assert tuple(row) == (at, None)

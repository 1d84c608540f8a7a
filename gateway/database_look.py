"""A look at the database, for `chimera doctor`: which version its tables are of. Nothing is changed, nor made."""

from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from gateway.database import Database, DatabaseFault, url_of

_MIGRATIONS = Path(__file__).with_name("migrations")


def look_at(written: str | None, state_dir: Path) -> str:
    """Say how the database of DATABASE_URL stands, in words. Raises DatabaseFault. Blocks."""
    database = Database(url_of(written, state_dir), looks_only=True)
    if database.path is not None and not database.path.exists():
        return f"{database.place}: it will be made"
    scripts = ScriptDirectory(str(_MIGRATIONS))
    with database.transaction() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return f"{database.place}: up to date ({current})"
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseFault(
            f"the database {database.place} (DATABASE_URL) is of another version of Chimera ({current}); "
            "use that version, or another database"
        )
    if database.path is not None and database.path.with_name(f"{database.path.name}-wal").exists():
        return f"{database.place}: in use"  # what it has is in the write-ahead log, which is not looked at
    return f"{database.place}: {current or 'nothing'} is in it; the next start brings it up to date"

"""What brings a database to this version's tables (Alembic). One file in `versions` for each step, never changed."""

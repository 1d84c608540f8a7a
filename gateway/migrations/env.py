"""Alembic's entry: runs the steps on the connection that gateway.database hands over."""

from alembic import context

from gateway.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # rewrites a table for what SQLite's ALTER TABLE cannot do
    transactional_ddl=True,  # gateway.database sees to it for SQLite too: a start that is killed leaves no half a step
)
with context.begin_transaction():
    context.run_migrations()

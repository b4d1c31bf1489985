"""Runs migrations in the transaction that the caller has begun; executed by Alembic, never imported."""

from alembic import context

from tensorkeep.catalog import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    render_as_batch=True,
)
context.run_migrations()

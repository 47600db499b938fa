"""Alembic's entry: runs migrations on the connection that `open_store` holds, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()

"""Alembic's environment: it migrates within the connection and transaction that `ledger.schema` hands it."""

from alembic import context

from carehook.ledger.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()

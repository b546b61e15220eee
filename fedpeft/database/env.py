"""What Alembic runs; it joins the transaction of the connection that it is handed."""

from alembic import context

_kind = context.config.attributes["kind"]
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=_kind.metadata,
    version_table=_kind.version_table,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

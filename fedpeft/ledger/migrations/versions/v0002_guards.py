"""Triggers: rows are only added, and an entry only at the end of the chain."""

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = ("ledger_entries", "ledger_datasets", "ledger_secret")


def upgrade() -> None:
    """Makes the triggers."""
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
    else:
        _sqlite()


def _sqlite() -> None:
    for table in _TABLES:
        for action in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    # REPLACE deletes without the trigger above; it cannot pass this one.
    op.execute(
        "CREATE TRIGGER ledger_entries_in_order BEFORE INSERT ON ledger_entries "
        "WHEN NEW.position <> (SELECT COALESCE(MAX(position), 0) + 1 FROM ledger_entries) "
        "OR NEW.previous <> COALESCE((SELECT hash FROM ledger_entries "
        "ORDER BY position DESC LIMIT 1), NEW.previous) "
        "BEGIN SELECT RAISE(ABORT, 'an entry can only follow the last one'); END"
    )


def _postgresql() -> None:
    op.execute(
        "CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(
        "CREATE FUNCTION ledger_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "DECLARE last record; BEGIN "
        "SELECT position, hash INTO last FROM ledger_entries ORDER BY position DESC LIMIT 1; "
        "IF NEW.position <> COALESCE(last.position, 0) + 1 "
        "OR NEW.previous <> COALESCE(last.hash, NEW.previous) THEN "
        "RAISE EXCEPTION 'an entry can only follow the last one'; END IF; RETURN NEW; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()"
        )
        op.execute(f"REVOKE UPDATE, DELETE, TRUNCATE ON {table} FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER ledger_entries_in_order BEFORE INSERT ON ledger_entries "
        "FOR EACH ROW EXECUTE FUNCTION ledger_in_order()"
    )

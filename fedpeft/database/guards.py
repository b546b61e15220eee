"""Triggers that a migration makes: rows are only added, and to a chain only at its end.

They keep accidents away. Who may alter tables can drop them, which `schema.missing_guards` shows.
Migrations that were released call these functions: to change one, add another.
"""

from collections.abc import Sequence

from alembic import op


def append_only(prefix: str, tables: Sequence[str]) -> None:
    """Refuses to change or delete rows; `TABLE_no_update`, `TABLE_no_delete`."""
    if op.get_bind().dialect.name == "sqlite":
        for table in tables:
            for action in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{action} BEFORE {action} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        f"CREATE FUNCTION {prefix}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in tables:
        op.execute(
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {prefix}_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {prefix}_append_only()"
        )
        op.execute(f"REVOKE UPDATE, DELETE, TRUNCATE ON {table} FROM PUBLIC")


def in_order(prefix: str, table: str) -> None:
    """Refuses an entry that does not follow the last one; the trigger is `TABLE_in_order`."""
    if op.get_bind().dialect.name == "sqlite":
        # REPLACE deletes without the triggers above; it cannot pass this one.
        op.execute(
            f"CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} "  # noqa: S608
            f"WHEN NEW.position <> (SELECT COALESCE(MAX(position), 0) + 1 FROM {table}) "
            f"OR NEW.previous <> COALESCE((SELECT hash FROM {table} "
            "ORDER BY position DESC LIMIT 1), NEW.previous) "
            "BEGIN SELECT RAISE(ABORT, 'an entry can only follow the last one'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {prefix}_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ "  # noqa: S608
        "DECLARE last record; BEGIN "
        f"SELECT position, hash INTO last FROM {table} ORDER BY position DESC LIMIT 1; "
        "IF NEW.position <> COALESCE(last.position, 0) + 1 "
        "OR NEW.previous <> COALESCE(last.hash, NEW.previous) THEN "
        "RAISE EXCEPTION 'an entry can only follow the last one'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {prefix}_in_order()"
    )

"""Adapter manifests, statuses and aliases, replicas that serve them, and removal requests."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the tables and columns."""
    op.add_column(
        "server_adapters",
        sa.Column("status", sa.Text, nullable=False, server_default="published"),
    )
    op.add_column("server_adapters", sa.Column("manifest_json", sa.Text))
    op.add_column("server_adapters", sa.Column("withdrawn_by", sa.Text))
    op.add_column("server_runs", sa.Column("start_from", sa.Text))
    op.create_table(
        "server_aliases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.Text, nullable=False),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["server_adapters.run_id", "server_adapters.round"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "server_replicas",
        sa.Column("replica_id", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("fingerprint_json", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("operated_by", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("replica_id", "alias"),
    )
    op.create_table(
        "server_removals",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("num_records", sa.BigInteger, nullable=False),
        sa.Column("records_digest", sa.Text, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("void_guarantee", sa.Integer, nullable=False),
        sa.Column("private_job", sa.Integer, nullable=False),
        sa.Column("deadline", sa.Text),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Text, nullable=False),
        sa.Column("job_public_key", sa.LargeBinary),
        sa.Column("job_private_key", sa.LargeBinary),
        sa.Column("sealed", sa.Text),
        sa.Column("num_attempts", sa.BigInteger, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("result_artifact", sa.Text),
        sa.Column("result", sa.Text),
        sa.Column("successor", sa.Text),
        sa.Column("receipt_json", sa.Text),
        sa.PrimaryKeyConstraint("request_id"),
        sa.UniqueConstraint("position"),
        sa.UniqueConstraint("requested_by", "idempotency_key"),
    )
    op.create_index("ix_server_removals_state", "server_removals", ["state"])
    op.create_index("ix_server_removals_client_id", "server_removals", ["client_id"])
    op.create_table(
        "server_removal_events",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["server_removals.request_id"]),
        sa.PrimaryKeyConstraint("request_id", "position"),
    )

"""The tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "server_audit",
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.Text, nullable=False),
        sa.Column("clock", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("hash"),
        sa.UniqueConstraint("previous"),
    )
    op.create_table(
        "server_certificates",
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("certificate_serial", sa.Text, nullable=False),
        sa.Column("enrolled_at", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.Text),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("client_id", "certificate_serial"),
    )
    op.create_table(
        "server_clients",
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("certificate_serial", sa.Text, nullable=False),
        sa.Column("node_public_key", sa.LargeBinary, nullable=False),
        sa.Column("protocol", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("enrolled_at", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.Text),
        sa.Column("last_seen", sa.Text),
        sa.PrimaryKeyConstraint("client_id"),
        sa.UniqueConstraint("node_public_key"),
    )
    op.create_table(
        "server_invitations",
        sa.Column("token_digest", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("used_at", sa.Text),
        sa.PrimaryKeyConstraint("token_digest"),
    )
    op.create_table(
        "server_nonces",
        sa.Column("certificate_serial", sa.Text, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("certificate_serial", "nonce"),
    )
    op.create_index("ix_server_nonces_expires_at", "server_nonces", ["expires_at"])
    op.create_table(
        "server_runs",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("config_json", sa.Text, nullable=False),
        sa.Column("clients", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("num_rounds", sa.BigInteger, nullable=False),
        sa.Column("submitted_at", sa.Text, nullable=False),
        sa.Column("submitted_by", sa.Text, nullable=False),
        sa.Column("held_out", sa.Text),
        sa.Column("held_out_suffix", sa.Text, nullable=False),
        sa.Column("submitter", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("position"),
        sa.UniqueConstraint("submitter", "idempotency_key"),
    )
    op.create_table(
        "server_adapters",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("base_digest", sa.Text, nullable=False),
        sa.Column("artifact", sa.Text, nullable=False),
        sa.Column("epsilon", sa.Text, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("export", sa.Text),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round"),
        sa.UniqueConstraint("position"),
    )
    op.create_index("ix_server_adapters_digest", "server_adapters", ["digest"])
    op.create_table(
        "server_budgets",
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("epsilon_spent", sa.Double, nullable=False),
        sa.Column("epsilon_budget", sa.Double, nullable=False),
        sa.Column("delta", sa.Double, nullable=False),
        sa.Column("ledger_head", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("standing", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index(
        "ix_server_budgets_newest", "server_budgets", ["client_id", "dataset", "position"]
    )
    op.create_table(
        "server_events",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("round", sa.Integer),
        sa.Column("client_id", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "server_participants",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("num_examples", sa.BigInteger, nullable=False),
        sa.Column("noise_multiplier", sa.Double),
        sa.Column("expected_batch_size", sa.Double, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("num_rounds_planned", sa.BigInteger, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "client_id"),
    )
    op.create_index("ix_server_participants_dataset", "server_participants", ["dataset"])
    op.create_table(
        "server_plans",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("terms_json", sa.Text, nullable=False),
        sa.Column("cohorts", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "server_rounds",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("missing", sa.Text, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("diagnostics", sa.Text, nullable=False),
        sa.Column("update_norms", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("uplink_bytes", sa.BigInteger, nullable=False),
        sa.Column("downlink_bytes", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round"),
    )
    op.create_table(
        "server_updates",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("plan_digest", sa.Text, nullable=False),
        sa.Column("update_digest", sa.Text, nullable=False),
        sa.Column("artifact", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.Text, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["server_runs.run_id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "client_id"),
    )
    op.create_table(
        "server_adapter_participants",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["server_adapters.run_id", "server_adapters.round"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "client_id"),
    )
    op.create_index(
        "ix_server_adapter_participants_client_id", "server_adapter_participants", ["client_id"]
    )
    op.create_table(
        "server_participation",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["server_rounds.run_id", "server_rounds.round"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "client_id"),
    )

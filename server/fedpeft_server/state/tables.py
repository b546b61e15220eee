"""The tables as the newest schema has them; `migrations` makes them. See docs/server-state.md."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from fedpeft_server.state.columns import Json, UtcTime

METADATA = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _number(name: str, type_: type[Any] = BigInteger) -> Column[Any]:
    return Column(name, type_, nullable=False)


def _position() -> Column[int]:
    return Column("position", BigInteger, primary_key=True, autoincrement=False)


def _run_key() -> Column[str]:
    return Column("run_id", Text, ForeignKey("server_runs.run_id"), primary_key=True)


def _round_key() -> Column[int]:
    return Column("round", Integer, primary_key=True, autoincrement=False)


def _client_key() -> Column[str]:
    return Column("client_id", Text, primary_key=True)


INVITATIONS = Table(
    "server_invitations",
    METADATA,
    Column("token_digest", Text, primary_key=True),
    _text("client_id"),
    Column("expires_at", UtcTime, nullable=False),
    _text("created_by"),
    Column("used_at", UtcTime),
)

CLIENTS = Table(
    "server_clients",
    METADATA,
    _client_key(),
    _text("certificate_serial"),
    Column("node_public_key", LargeBinary, nullable=False, unique=True),
    _number("protocol"),
    _text("version"),
    Column("enrolled_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("last_seen", UtcTime),
)

CERTIFICATES = Table(
    "server_certificates",
    METADATA,
    _client_key(),
    Column("certificate_serial", Text, primary_key=True),
    Column("enrolled_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("reason", Text),
)

NONCES = Table(
    "server_nonces",
    METADATA,
    Column("certificate_serial", Text, primary_key=True),
    Column("nonce", LargeBinary, primary_key=True),
    Column("expires_at", UtcTime, nullable=False, index=True),
)

RUNS = Table(
    "server_runs",
    METADATA,
    Column("run_id", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, unique=True),
    _text("name"),
    _text("config_json"),
    _text("clients"),
    _text("status"),
    _text("reason"),
    _number("num_rounds"),
    Column("submitted_at", UtcTime, nullable=False),
    _text("submitted_by"),
    Column("held_out", Text),
    _text("held_out_suffix"),
    Column("start_from", Text),
    _text("submitter"),
    _text("idempotency_key"),
    UniqueConstraint("submitter", "idempotency_key"),
)

PLANS = Table(
    "server_plans",
    METADATA,
    _run_key(),
    _text("terms_json"),
    Column("cohorts", Json, nullable=False),
)

PARTICIPANTS = Table(
    "server_participants",
    METADATA,
    _run_key(),
    _client_key(),
    _number("position"),
    _number("num_examples"),
    Column("noise_multiplier", Double),
    _number("expected_batch_size", Double),
    _number("weight", Double),
    _number("num_rounds_planned"),
    Column("dataset", Text, nullable=False, index=True),
)

UPDATES = Table(
    "server_updates",
    METADATA,
    _run_key(),
    _round_key(),
    _client_key(),
    _number("position"),
    _text("plan_digest"),
    _text("update_digest"),
    _text("artifact"),
    _number("size_bytes"),
    Column("received_at", UtcTime, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)

ROUNDS = Table(
    "server_rounds",
    METADATA,
    _run_key(),
    _round_key(),
    Column("missing", Json, nullable=False),
    _number("seconds", Double),
    Column("metrics", Json, nullable=False),
    Column("diagnostics", Json, nullable=False),
    Column("update_norms", Json, nullable=False),
    _text("adapter"),
    _number("uplink_bytes"),
    _number("downlink_bytes"),
    Column("finished_at", UtcTime, nullable=False),
)

PARTICIPATION = Table(
    "server_participation",
    METADATA,
    Column("run_id", Text, primary_key=True),
    _round_key(),
    _client_key(),
    _number("position"),
    ForeignKeyConstraint(["run_id", "round"], ["server_rounds.run_id", "server_rounds.round"]),
)

ADAPTERS = Table(
    "server_adapters",
    METADATA,
    _run_key(),
    _round_key(),
    Column("position", BigInteger, nullable=False, unique=True),
    Column("digest", Text, nullable=False, index=True),
    Column("parent", Text),
    _text("base_model"),
    _text("base_digest"),
    _text("artifact"),
    Column("epsilon", Json, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("export", Json),
    Column("status", Text, nullable=False, server_default="published"),
    Column("manifest_json", Text),
    Column("withdrawn_by", Text),
)

ADAPTER_PARTICIPANTS = Table(
    "server_adapter_participants",
    METADATA,
    Column("run_id", Text, primary_key=True),
    _round_key(),
    Column("client_id", Text, primary_key=True, index=True),
    _number("position"),
    ForeignKeyConstraint(["run_id", "round"], ["server_adapters.run_id", "server_adapters.round"]),
)

ALIASES = Table(
    "server_aliases",
    METADATA,
    Column("name", Text, primary_key=True),
    _text("digest"),
    _text("run_id"),
    _number("round", Integer),
    _number("generation"),
    Column("changed_at", UtcTime, nullable=False),
    _text("changed_by"),
    ForeignKeyConstraint(["run_id", "round"], ["server_adapters.run_id", "server_adapters.round"]),
)

REPLICAS = Table(
    "server_replicas",
    METADATA,
    Column("replica_id", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    _text("adapter"),
    _text("fingerprint_json"),
    _text("problem"),
    _text("operated_by"),
    Column("reported_at", UtcTime, nullable=False),
)

BUDGETS = Table(
    "server_budgets",
    METADATA,
    _position(),
    _text("client_id"),
    _text("dataset"),
    _number("epsilon_spent", Double),
    _number("epsilon_budget", Double),
    _number("delta", Double),
    _text("ledger_head"),
    Column("reported_at", UtcTime, nullable=False),
    Column("run_id", Text, ForeignKey("server_runs.run_id"), nullable=False),
    _number("round", Integer),
    # Position of the statement that stands after this one: itself, or a higher one before it.
    _number("standing"),
    Index("ix_server_budgets_newest", "client_id", "dataset", "position"),
)

EVENTS = Table(
    "server_events",
    METADATA,
    _run_key(),
    _position(),
    Column("at", UtcTime, nullable=False),
    _text("kind"),
    Column("round", Integer),
    Column("client_id", Text),
    Column("body", Json, nullable=False),
)

AUDIT = Table(
    "server_audit",
    METADATA,
    _position(),
    _text("kind"),
    _text("recorded_at"),
    Column("clock", Text),
    _text("body"),
    # Unique: of two entries that were decided on the same state, the database takes one.
    Column("previous", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),
)

REMOVALS = Table(
    "server_removals",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, unique=True),
    Column("state", Text, nullable=False, index=True),
    _text("reason"),
    Column("client_id", Text, nullable=False, index=True),
    _text("adapter"),
    _text("run_id"),
    _number("round", Integer),
    _text("place"),
    _text("method"),
    _number("num_records"),
    _text("records_digest"),
    Column("settings", Json, nullable=False),
    _number("void_guarantee", Integer),
    _number("private_job", Integer),
    Column("deadline", UtcTime),
    Column("plan", Json, nullable=False),
    _text("requested_by"),
    _text("idempotency_key"),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    # Both are gone when the job has ended: what was sealed to the key can be read no more.
    Column("job_public_key", LargeBinary),
    Column("job_private_key", LargeBinary),
    Column("sealed", Text),
    _number("num_attempts"),
    _number("progress", Double),
    # Of the job, before it is published.
    Column("result_artifact", Text),
    Column("result", Json),
    Column("successor", Text),
    Column("receipt_json", Text),
    UniqueConstraint("requested_by", "idempotency_key"),
)

REMOVAL_EVENTS = Table(
    "server_removal_events",
    METADATA,
    Column("request_id", Text, ForeignKey("server_removals.request_id"), primary_key=True),
    _position(),
    Column("at", UtcTime, nullable=False),
    _text("kind"),
    Column("body", Json, nullable=False),
)

VERSION_TABLE = "server_version"

REVISIONS = ("0001", "0002", "0003")
"""Every schema there has been, oldest first; a test holds it to what `migrations` has."""

GUARDS = frozenset(
    {
        "server_audit_no_update",
        "server_audit_no_delete",
        "server_audit_in_order",
        "server_budgets_no_update",
        "server_budgets_no_delete",
    }
)
"""Triggers that keep a client of the database from changing what was written."""

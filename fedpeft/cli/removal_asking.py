"""Asking for a removal so that it may be killed anywhere and asked for again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpeft.federated.tombstones import Tombstones
    from fedpeft.models.table import Table
    from fedpeft.remote import Connection
    from fedpeft.remote.removal_records import Removal, RemovalOrder
    from fedpeft.unlearning.records import JobRows


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Where a client's own rows are marked as removed.

    Attributes:
        tombstones: In its folder.
        rows: To be forgotten, in the columns that the client knows its rows by.
    """

    tombstones: "Tombstones"
    rows: "Table"

    def add(self, name: str) -> None:
        """Marks the rows, under one more name; again it changes nothing."""
        self.tombstones.add(name, self.rows.records())


def marks_in(folder: Path, forget: "Table") -> Marks:
    """Returns where rows are marked, by the columns that the client knows its rows by.

    Args:
        folder: Of the client.
        forget: Rows to be forgotten, in all columns of its file.

    Raises:
        ConfigError: If there is no client in the folder.
        DataError: If a column is missing.
    """
    from fedpeft.federated.tombstones import Tombstones
    from fedpeft.unlearning.chosen import in_columns
    from fedpeft_client.state_folder import StateFolder

    state = StateFolder(folder)
    membership = state.membership()
    columns = (membership.columns if membership else None) or list(forget.columns)
    return Marks(tombstones=Tombstones(state.tombstones), rows=in_columns(forget, columns))


def ask(
    connection: "Connection",
    order: "RemovalOrder",
    rows: "JobRows",
    *,
    salt: bytes,
    key: str | None,
    marks: Marks | None,
) -> "Removal":
    """Asks for a removal, or goes on with the open request for the same records.

    Args:
        connection: Of whoever asks.
        order: What is asked for.
        rows: To be sent where the job runs at the server.
        salt: Of whoever asks.
        key: Idempotency key; None: whichever open request is about these records.
        marks: Where the rows are marked as removed: before anything is begun, and after what
            cannot be done was refused.

    Raises:
        RemoteError: Whatever the server refuses.
    """
    from fedpeft.unlearning.records import records_digest

    plan = connection.plan_removal(order)
    digest = records_digest(salt, rows.forget)
    if marks is not None:
        marks.add(digest)
    removal = None if key else _open_request(connection, order, digest, plan.adapter)
    if removal is None:
        removal = connection.request_removal(order, records_digest=digest, idempotency_key=key)
    if marks is not None:
        marks.add(removal.request_id)
    return connection.upload_records(removal, rows) if removal.job_public_key else removal


def _open_request(
    connection: "Connection", order: "RemovalOrder", digest: str, adapter: str
) -> "Removal | None":
    """The caller's own request for the same, which is not asked for a second time."""
    for removal in connection.list_removals(order.client_id):
        asked = removal.order
        if (
            not removal.state.has_ended
            and removal.records_digest == digest
            and removal.requested_by == connection.caller
            and (asked.adapter, asked.method, asked.place, asked.private_job)
            == (adapter, order.method, order.place, order.private_job)
        ):
            return removal
    return None

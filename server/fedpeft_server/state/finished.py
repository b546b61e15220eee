"""Versions that no round made: of a removal, or from elsewhere; each is a run with one version."""

from dataclasses import replace

from sqlalchemy import Connection

from fedpeft_server.records import AdapterRecord, RunRecord
from fedpeft_server.state import adapters, audit, runs
from fedpeft_server.state.errors import WrongStateError
from fedpeft_server.state.store import Store
from fedpeft_server.state.tables import ADAPTERS


class Finished(Store):
    """Their part of the state."""

    def add_finished(
        self,
        run: RunRecord,
        adapter: AdapterRecord,
        manifest_json: str,
        idempotency_key: str,
        by: str,
    ) -> AdapterRecord:
        """Records a finished run and its one version; with the same key the first one stays.

        Returns:
            The version.

        Raises:
            WrongStateError: If these tensors are recorded already. What is known of them, whose
                updates are in them and that they were withdrawn, is not to be told anew.
        """
        with self._database.writing() as connection:
            first = runs.with_key(connection, by, idempotency_key)
            if first is None:
                known = adapters.read(connection, ADAPTERS.c.digest == adapter.digest)
                if known:
                    raise WrongStateError(
                        f"adapter {adapter.digest[:12]} is here already, of run "
                        f"{known[-1].run_id}, {known[-1].status}; use that one"
                    )
                add_finished(
                    connection, run, adapter, manifest_json, idempotency_key, by, parent=None
                )
                first = run
            made = adapters.newest(connection, first.run_id)
        assert made is not None
        return made


def add_finished(
    connection: Connection,
    run: RunRecord,
    adapter: AdapterRecord,
    manifest_json: str,
    idempotency_key: str,
    by: str,
    *,
    parent: AdapterRecord | None,
) -> None:
    """Records a finished run and its one exported version as part of a transaction."""
    assert adapter.export is not None
    runs.add(connection, run, idempotency_key, by)
    adapters.add(connection, replace(adapter, export=None), parent=parent)
    adapters.export(
        connection, adapter.run_id, adapter.round, adapter.export, manifest_json=manifest_json
    )
    audit.append(
        connection,
        actor=by,
        action="version",
        subject=adapter.digest,
        outcome="ok",
        detail={"run": run.run_id, "parent": adapter.parent or ""},
    )

"""Adapter versions and their lineage."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update

from fedpeft_server.records import AdapterRecord, ExportedFile
from fedpeft_server.state.errors import NotFoundError, StateError, WrongStateError
from fedpeft_server.state.lineage import add_clients, clients_by_round
from fedpeft_server.state.store import Store, columns, following, require_run, values
from fedpeft_server.state.tables import ADAPTER_PARTICIPANTS, ADAPTERS, PARTICIPANTS, PARTICIPATION

_PREFIX: Final = re.compile(r"[0-9a-f]{8,64}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Adapters(Store):
    """The adapters' part of the state."""

    def start_adapter(self, adapter: AdapterRecord) -> None:
        """Records the version that a run starts from; the same again changes nothing.

        Args:
            adapter: Of round 0. Where it has a parent, that version's participants are its own too.

        Raises:
            NotFoundError: If there is no such run, or no such parent.
            WrongStateError: If the run started from another, participants are left out, or the
                parent was withdrawn.
        """
        assert adapter.round == 0
        with self._database.writing() as connection:
            require_run(connection, adapter.run_id)
            first = version(connection, adapter.run_id, 0)
            if first is not None:
                if first.digest == adapter.digest:
                    return
                raise WrongStateError(
                    f"run {adapter.run_id} started from adapter {first.digest[:12]}, not from "
                    f"{adapter.digest[:12]}"
                )
            parent = None if adapter.parent is None else newest_of(connection, adapter.parent)
            if parent is not None and parent.status == "withdrawn":
                raise WrongStateError(
                    f"adapter {parent.digest[:12]} was withdrawn; nothing is trained from it"
                )
            add(connection, adapter, parent=parent)

    def adapters(self, run_id: str | None = None) -> list[AdapterRecord]:
        """Returns the versions of a run, or of all runs, oldest first."""
        where = [] if run_id is None else [ADAPTERS.c.run_id == run_id]
        with self._database.reading() as connection:
            return read(connection, *where)

    def adapter(self, digest_prefix: str) -> AdapterRecord:
        """Returns the version whose digest begins so; of several of one digest the newest.

        Raises:
            NotFoundError: If there is none, several digests begin so, or it is shorter than
                8 characters.
        """
        with self._database.reading() as connection:
            return newest_of(connection, digest_prefix)

    def cohort(self, adapter: AdapterRecord) -> dict[str, str]:
        """Returns the clients of the round that made a version → fingerprint of their rows.

        The fingerprint is empty where the run's clients were simulated.
        """
        same_client = and_(
            PARTICIPANTS.c.run_id == PARTICIPATION.c.run_id,
            PARTICIPANTS.c.client_id == PARTICIPATION.c.client_id,
        )
        query = (
            select(PARTICIPATION.c.client_id, PARTICIPANTS.c.dataset)
            .outerjoin(PARTICIPANTS, same_client)
            .where(PARTICIPATION.c.run_id == adapter.run_id, PARTICIPATION.c.round == adapter.round)
            .order_by(PARTICIPATION.c.position)
        )
        with self._database.reading() as connection:
            return {client: dataset or "" for client, dataset in connection.execute(query)}

    def newest_adapter(self, run_id: str) -> AdapterRecord | None:
        """Returns the version of the last finished round, None before the run has any."""
        with self._database.reading() as connection:
            return newest(connection, run_id)

    def set_export(
        self,
        digest: str,
        files: Mapping[str, ExportedFile],
        *,
        run_id: str,
        manifest_json: str | None = None,
    ) -> None:
        """Records that a version was exported; again it replaces the files.

        Args:
            digest: Of the version; of several of the run the newest is meant.
            files: By plain name, without a folder.
            run_id: Whose version.
            manifest_json: Signed; see `fedpeft.registry.manifest`.

        Raises:
            NotFoundError: If the run has no such version.
            StateError: If a name could leave its folder, or there is no file.
        """
        with self._database.writing() as connection:
            found = read(connection, ADAPTERS.c.run_id == run_id, ADAPTERS.c.digest == digest)
            if not found:
                raise NotFoundError(f"run {run_id!r} has no adapter {digest!r}")
            export(connection, run_id, found[-1].round, files, manifest_json=manifest_json)

    def lineage(self, digest_prefix: str) -> list[AdapterRecord]:
        """Returns the versions that one was made from, itself, and those made from it, by age.

        Raises:
            NotFoundError: As for `adapter`.
        """
        with self._database.reading() as connection:
            found = newest_of(connection, digest_prefix)
            everything = read(connection)
        by_digest: dict[str, list[AdapterRecord]] = {}
        made_from: dict[str, list[AdapterRecord]] = {}
        for adapter in everything:
            by_digest.setdefault(adapter.digest, []).append(adapter)
            if adapter.parent is not None:
                made_from.setdefault(adapter.parent, []).append(adapter)
        older = _closure([found], lambda a: by_digest.get(a.parent or "", []))
        newer = _closure([found], lambda a: made_from.get(a.digest, []))
        keys = {(a.run_id, a.round) for a in (*older, *newer)}
        return [a for a in everything if (a.run_id, a.round) in keys]


def add(connection: Connection, adapter: AdapterRecord, *, parent: AdapterRecord | None) -> None:
    """Writes a version; tensors that were withdrawn once are withdrawn, whoever makes them again.

    Raises:
        WrongStateError: If it leaves out a participant of its parent.
    """
    left_out = set(parent.participants if parent else ()) - set(adapter.participants)
    if left_out:
        raise WrongStateError(
            f"adapter {adapter.digest[:12]} leaves out {min(left_out)}, whose updates are in the "
            "version that it was made from"
        )
    withdrawn = _withdrawn(connection, adapter.digest)
    if withdrawn is not None:
        adapter = replace(adapter, status="withdrawn", withdrawn_by=withdrawn.withdrawn_by)
    position = following(connection, ADAPTERS.c.position)
    connection.execute(insert(ADAPTERS).values(**values(ADAPTERS, adapter), position=position))
    key = (adapter.run_id, adapter.round)
    add_clients(connection, ADAPTER_PARTICIPANTS, key, adapter.participants)


def export(
    connection: Connection,
    run_id: str,
    number: int,
    files: Mapping[str, ExportedFile],
    *,
    manifest_json: str | None,
) -> None:
    """Writes what a version was exported as; see `Adapters.set_export`."""
    if not files:
        raise StateError("an export has at least one file")
    for name in files:
        if _FILE_NAME.fullmatch(name) is None:
            raise StateError(f"a file of an export has a plain name, got {name!r}")
    connection.execute(
        update(ADAPTERS)
        .where(ADAPTERS.c.run_id == run_id, ADAPTERS.c.round == number)
        .values(
            export={name: vars(file) for name, file in files.items()},
            manifest_json=manifest_json,
        )
    )


def version(connection: Connection, run_id: str, number: int) -> AdapterRecord | None:
    """Returns what a round made, None before it did."""
    found = read(connection, ADAPTERS.c.run_id == run_id, ADAPTERS.c.round == number)
    return found[0] if found else None


def newest(connection: Connection, run_id: str) -> AdapterRecord | None:
    """Returns what the last finished round made."""
    last = select(func.max(ADAPTERS.c.round)).where(ADAPTERS.c.run_id == run_id).scalar_subquery()
    found = read(connection, ADAPTERS.c.run_id == run_id, ADAPTERS.c.round == last)
    return found[0] if found else None


def newest_of(connection: Connection, prefix: str) -> AdapterRecord:
    """Returns the version whose digest begins so; see `Adapters.adapter`."""
    if _PREFIX.fullmatch(prefix) is None:
        raise NotFoundError(f"an adapter is named by 8 to 64 hex digits, got {prefix!r}")
    found = read(connection, ADAPTERS.c.digest.startswith(prefix))
    if len({adapter.digest for adapter in found}) != 1:
        raise NotFoundError(f"{len(found) or 'no'} adapters begin with {prefix!r}")
    return found[-1]


def _withdrawn(connection: Connection, digest: str) -> AdapterRecord | None:
    where = (ADAPTERS.c.digest == digest, ADAPTERS.c.status == "withdrawn")
    return next(iter(read(connection, *where)), None)


def _closure(
    first: list[AdapterRecord], following_: Callable[[AdapterRecord], list[AdapterRecord]]
) -> list[AdapterRecord]:
    """All that is reached; a version of one digest may come twice, as itself it comes once."""
    found: dict[tuple[str, int], AdapterRecord] = {}
    waiting = list(first)
    while waiting:
        adapter = waiting.pop()
        if (adapter.run_id, adapter.round) not in found:
            found[adapter.run_id, adapter.round] = adapter
            waiting += following_(adapter)
    return list(found.values())


def read(connection: Connection, *where: ColumnElement[bool]) -> list[AdapterRecord]:
    """Returns the versions that fit, oldest first."""
    query = select(*columns(ADAPTERS, AdapterRecord)).where(*where).order_by(ADAPTERS.c.position)
    rows = connection.execute(query).mappings().all()
    clients = clients_by_round(connection, ADAPTER_PARTICIPANTS, ADAPTERS, *where)
    return [_adapter(row, clients.get((row["run_id"], row["round"]), ())) for row in rows]


def _adapter(row: Mapping[Any, Any], participants: tuple[str, ...]) -> AdapterRecord:
    export = row["export"]
    if export is not None:
        export = {name: ExportedFile(**file) for name, file in export.items()}
    return AdapterRecord(**{**row, "export": export}, participants=participants)

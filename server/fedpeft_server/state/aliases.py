"""Aliases: names that point at the version in use."""

import re
from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, insert, select, update

from fedpeft.ledger.chain import utc_now
from fedpeft_server.records import AdapterRecord, AliasRecord
from fedpeft_server.state import adapters, audit
from fedpeft_server.state.errors import NotFoundError, StateError, WrongStateError
from fedpeft_server.state.store import Store, columns, values
from fedpeft_server.state.tables import ALIASES

# Never to be taken for a digest or a run's id, which are hex digits alone.
_RUN_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"(?![0-9a-f]{8,64}$)[a-z0-9][a-z0-9_.-]{0,62}")


class Aliases(Store):
    """The aliases' part of the state."""

    def alias(self, name: str) -> AliasRecord:
        """Returns where an alias points.

        Raises:
            NotFoundError: If there is none of that name.
        """
        with self._database.reading() as connection:
            found = _read(connection, [name])
        if not found:
            raise NotFoundError(f"there is no alias {name!r}")
        return found[0]

    def aliases(self) -> list[AliasRecord]:
        """Returns all aliases, by name."""
        with self._database.reading() as connection:
            return _read(connection, None)

    def named_adapter(self, name: str) -> AdapterRecord:
        """Returns the version that an alias, the beginning of a digest, or a run's id means.

        Raises:
            NotFoundError: If there is none.
        """
        with self._database.reading() as connection:
            alias = next(iter(_read(connection, [name])), None)
            if alias is not None:
                found = adapters.version(connection, alias.run_id, alias.round)
                assert found is not None
                return found
            newest = adapters.newest(connection, name) if _RUN_ID.fullmatch(name) else None
            return newest or adapters.newest_of(connection, name)

    def set_alias(self, name: str, adapter: AdapterRecord, by: str) -> AliasRecord:
        """Points an alias at a version; where it does already nothing changes.

        Args:
            name: Lower-case letters, digits, `-`, `_`, `.`; not what could be a digest.
            adapter: The version.
            by: Who does it, for the audit log.

        Raises:
            StateError: If the name cannot be used.
            NotFoundError: If there is no such version.
            WrongStateError: If it was withdrawn, or not exported and signed.
        """
        if _NAME.fullmatch(name) is None:
            raise StateError(
                "an alias is 1 to 63 lower-case letters, digits, '-', '_' and '.', and not 8 or "
                f"more hex digits, got {name[:80]!r}"
            )
        with self._database.writing() as connection:
            version = adapters.version(connection, adapter.run_id, adapter.round)
            if version is None:
                raise NotFoundError(f"there is no adapter {adapter.digest!r}")
            return point(connection, name, version, by)


def point(connection: Connection, name: str, version: AdapterRecord, by: str) -> AliasRecord:
    """Points an alias at a version as part of a transaction; see `Aliases.set_alias`."""
    if version.status == "withdrawn":
        raise WrongStateError(f"adapter {version.digest[:12]} was withdrawn and is used no more")
    if version.export is None or version.manifest_json is None:
        raise WrongStateError(
            f"adapter {version.digest[:12]} was not exported and signed: the last version of a "
            "finished run is"
        )
    before = next(iter(_read(connection, [name])), None)
    if before is not None and (before.run_id, before.round) == (version.run_id, version.round):
        return before
    record = AliasRecord(
        name=name,
        digest=version.digest,
        run_id=version.run_id,
        round=version.round,
        generation=1 if before is None else before.generation + 1,
        changed_at=utc_now(),
        changed_by=by,
    )
    row = values(ALIASES, record)
    if before is None:
        connection.execute(insert(ALIASES).values(**row))
    else:
        connection.execute(update(ALIASES).where(ALIASES.c.name == name).values(**row))
    audit.append(
        connection,
        actor=by,
        action="alias",
        subject=name,
        outcome="ok",
        detail={
            "adapter": version.digest,
            "before": before.digest if before else "",
            "generation": record.generation,
        },
    )
    return record


def move(
    connection: Connection, digests: Collection[str], to: AdapterRecord, by: str
) -> list[AliasRecord]:
    """Points every alias of some versions at another one; returns those that were moved."""
    moved = [alias for alias in _read(connection, None) if alias.digest in digests]
    return [point(connection, alias.name, to, by) for alias in moved]


def of_digest(connection: Connection, digests: Collection[str]) -> list[AliasRecord]:
    """Returns the aliases that point at one of the versions."""
    return [alias for alias in _read(connection, None) if alias.digest in digests]


def _read(connection: Connection, names: list[str] | None) -> list[AliasRecord]:
    query = select(*columns(ALIASES, AliasRecord)).order_by(ALIASES.c.name)
    if names is not None:
        query = query.where(ALIASES.c.name.in_(names))
    return [AliasRecord(**row) for row in connection.execute(query).mappings()]

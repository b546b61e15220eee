"""Serving processes, as they last reported."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, insert, select

from fedpeft.ledger.chain import utc_now
from fedpeft_server.records import ReplicaRecord
from fedpeft_server.state.errors import StateError
from fedpeft_server.state.store import Store, columns, values
from fedpeft_server.state.tables import REPLICAS

_FORGOTTEN: Final = timedelta(days=1)
_MOST_OF_ONE: Final = 100


class Replicas(Store):
    """The replicas' part of the state."""

    def report_replica(self, replica: ReplicaRecord) -> None:
        """Records what a replica said, in place of what it said before.

        Raises:
            StateError: If the caller has too many replicas already, or it is another's.
        """
        key = (REPLICAS.c.replica_id == replica.replica_id, REPLICAS.c.alias == replica.alias)
        with self._database.writing() as connection:
            old = utc_now() - _FORGOTTEN
            connection.execute(delete(REPLICAS).where(REPLICAS.c.reported_at < old))
            owner = connection.execute(
                select(REPLICAS.c.operated_by).where(*key)
            ).scalar_one_or_none()
            if owner is not None and owner != replica.operated_by:
                raise StateError(f"the replica {replica.replica_id!r} is operated by another")
            theirs = select(REPLICAS.c.alias).where(REPLICAS.c.operated_by == replica.operated_by)
            if owner is None and len(connection.execute(theirs).all()) >= _MOST_OF_ONE:
                raise StateError(f"{replica.operated_by} has {_MOST_OF_ONE} replicas already")
            connection.execute(delete(REPLICAS).where(*key))
            connection.execute(insert(REPLICAS).values(**values(REPLICAS, replica)))

    def replicas(self, alias: str | None = None) -> list[ReplicaRecord]:
        """Returns the replicas of an alias, or of all, by name; also those that are gone."""
        query = select(*columns(REPLICAS, ReplicaRecord)).order_by(
            REPLICAS.c.alias, REPLICAS.c.replica_id
        )
        if alias is not None:
            query = query.where(REPLICAS.c.alias == alias)
        with self._database.reading() as connection:
            return [ReplicaRecord(**row) for row in connection.execute(query).mappings()]

"""Withdrawal of versions: for ever, and never of one that an alias points at."""

from collections.abc import Collection

from sqlalchemy import Connection, update

from fedpeft_server.records import AdapterRecord
from fedpeft_server.state import adapters, aliases, audit
from fedpeft_server.state.errors import WrongStateError
from fedpeft_server.state.store import Store
from fedpeft_server.state.tables import ADAPTERS


class Withdrawals(Store):
    """The withdrawals' part of the state."""

    def withdraw_adapter(self, digest: str, by: str, reason: str) -> AdapterRecord:
        """Withdraws a version, for ever; again it changes nothing.

        Raises:
            NotFoundError: If there is none.
            WrongStateError: If an alias points at it: what is in use is replaced first.
        """
        with self._database.writing() as connection:
            found = adapters.newest_of(connection, digest)
            withdraw(connection, [found.digest], by, reason=reason)
            return adapters.newest_of(connection, found.digest)


def withdraw(
    connection: Connection, digests: Collection[str], by: str, *, reason: str = ""
) -> list[AdapterRecord]:
    """Withdraws all versions of these digests as part of a transaction; those that were not yet.

    Raises:
        WrongStateError: If an alias points at one of them.
    """
    still = aliases.of_digest(connection, digests)
    if still:
        raise WrongStateError(
            f"alias {still[0].name} points at adapter {still[0].digest[:12]}; deploy another "
            "version first"
        )
    found = adapters.read(connection, ADAPTERS.c.digest.in_(list(digests)))
    withdrawn = [adapter for adapter in found if adapter.status == "published"]
    for adapter in withdrawn:
        connection.execute(
            update(ADAPTERS)
            .where(ADAPTERS.c.run_id == adapter.run_id, ADAPTERS.c.round == adapter.round)
            .values(status="withdrawn", withdrawn_by=by)
        )
        audit.append(
            connection,
            actor=by,
            action="withdraw",
            subject=adapter.digest,
            outcome="ok",
            detail={"run": adapter.run_id, "round": adapter.round, "reason": reason},
        )
    return withdrawn

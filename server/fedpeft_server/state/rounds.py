"""Rounds: the updates of the open one, and what a finished one leaves, in one transaction."""

from sqlalchemy import delete, insert, select

from fedpeft_server.records import AdapterRecord, BudgetRecord, RoundRecord, UpdateRecord
from fedpeft_server.state import adapters, budgets, removals
from fedpeft_server.state.errors import (
    DuplicateUpdateError,
    RowsRemovedMeanwhileError,
    WrongStateError,
)
from fedpeft_server.state.lineage import add_clients, clients_by_round
from fedpeft_server.state.store import Store, columns, following, require_run, values
from fedpeft_server.state.tables import PARTICIPATION, ROUNDS, UPDATES


class Rounds(Store):
    """The rounds' part of the state."""

    def add_update(self, update: UpdateRecord, budget: BudgetRecord | None) -> bool:
        """Records a client's update of a round, and the budget that it stated with it.

        The first one of a client in a round stays, unless the client has asked for a removal
        since. The same again changes nothing, its budget included.

        Args:
            update: Its artifact must be in the store already.
            budget: None where the run has no privacy.

        Returns:
            Whether it is new.

        Raises:
            NotFoundError: If there is no such run.
            DuplicateUpdateError: If the client sent another one before.
            RowsRemovedMeanwhileError: If it is the one that rows are to be removed from.
        """
        with self._database.writing() as connection:
            require_run(connection, update.run_id)
            of_client = (
                UPDATES.c.run_id == update.run_id,
                UPDATES.c.round == update.round,
                UPDATES.c.client_id == update.client_id,
            )
            query = select(UPDATES.c.update_digest, UPDATES.c.received_at).where(*of_client)
            row = connection.execute(query).one_or_none()
            first = None if row is None else row.update_digest
            if row is not None and removals.removed_since(
                connection, update.client_id, row.received_at
            ):
                if first == update.update_digest:
                    raise RowsRemovedMeanwhileError(
                        f"{update.client_id} sent the update again that it has asked to have rows "
                        "removed from"
                    )
                connection.execute(delete(UPDATES).where(*of_client))
            elif first == update.update_digest:
                return False
            elif first is not None:
                raise DuplicateUpdateError(
                    f"{update.client_id} sent update {first[:12]} for round {update.round} of run "
                    f"{update.run_id} before; {update.update_digest[:12]} is not taken"
                )
            of_round = (UPDATES.c.run_id == update.run_id, UPDATES.c.round == update.round)
            position = following(connection, UPDATES.c.position, *of_round)
            connection.execute(insert(UPDATES).values(**values(UPDATES, update), position=position))
            if budget is not None:
                budgets.record(connection, budget)
        return True

    def updates(self, run_id: str, round: int) -> list[UpdateRecord]:  # noqa: A002
        """Returns the updates of a round, in the order in which they came."""
        query = (
            select(*columns(UPDATES, UpdateRecord))
            .where(UPDATES.c.run_id == run_id, UPDATES.c.round == round)
            .order_by(UPDATES.c.position)
        )
        with self._database.reading() as connection:
            return [UpdateRecord(**row) for row in connection.execute(query).mappings()]

    def finish_round(self, run_id: str, round: RoundRecord, adapter: AdapterRecord) -> None:  # noqa: A002
        """Records the round, its participants and the adapter that it made, all or nothing.

        The same round again with the same adapter changes nothing. The rows of its updates stay:
        they are lineage.

        Args:
            run_id: The run.
            round: The one after the last finished one.
            adapter: Made from the run's newest version. Its participants are those of that version
                and the round's cohort.

        Raises:
            NotFoundError: If there is no such run.
            RowsRemovedMeanwhileError: If a client of the cohort asked for a removal after its
                update came; the round is done again without it.
            WrongStateError: If it does not follow what is recorded, or the round has another
                adapter.
        """
        assert (adapter.run_id, adapter.round) == (run_id, round.round)
        assert adapter.digest == round.adapter
        with self._database.writing() as connection:
            require_run(connection, run_id)
            made = adapters.version(connection, run_id, round.round)
            if made is not None and made.digest == adapter.digest:
                return
            if made is not None:
                raise WrongStateError(
                    f"round {round.round} of run {run_id} made adapter {made.digest[:12]}, not "
                    f"{adapter.digest[:12]}"
                )
            parent = adapters.newest(connection, run_id)
            if parent is None or round.round != parent.round + 1:
                expected = "start_adapter" if parent is None else f"round {parent.round + 1}"
                raise WrongStateError(
                    f"run {run_id} goes on with {expected}, not with round {round.round}"
                )
            if adapter.parent != parent.digest:
                raise WrongStateError(
                    f"round {round.round} of run {run_id} starts from adapter "
                    f"{parent.digest[:12]}, not from {(adapter.parent or 'none')[:12]}"
                )
            if parent.status == "withdrawn":
                raise WrongStateError(
                    f"adapter {parent.digest[:12]}, which round {round.round} of run {run_id} goes "
                    f"on from, was withdrawn by {parent.withdrawn_by}; submit a new run"
                )
            left_out = set(round.cohort) - set(adapter.participants)
            if left_out:
                raise WrongStateError(
                    f"adapter {adapter.digest[:12]} leaves out {min(left_out)}, who is in the "
                    "cohort of its round"
                )
            received = select(UPDATES.c.client_id, UPDATES.c.received_at).where(
                UPDATES.c.run_id == run_id, UPDATES.c.round == round.round
            )
            for client_id, received_at in connection.execute(received).all():
                in_round = client_id in round.cohort
                if in_round and removals.removed_since(connection, client_id, received_at):
                    raise RowsRemovedMeanwhileError(
                        f"{client_id} asked for a removal after its update of round {round.round} "
                        f"of run {run_id} came"
                    )
            connection.execute(insert(ROUNDS).values(**values(ROUNDS, round), run_id=run_id))
            add_clients(connection, PARTICIPATION, (run_id, round.round), round.cohort)
            adapters.add(connection, adapter, parent=parent)

    def rounds(self, run_id: str) -> list[RoundRecord]:
        """Returns the finished rounds, oldest first."""
        of_run = ROUNDS.c.run_id == run_id
        query = select(*columns(ROUNDS, RoundRecord)).where(of_run).order_by(ROUNDS.c.round)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
            cohorts = clients_by_round(connection, PARTICIPATION, ROUNDS, of_run)
        return [RoundRecord(**row, cohort=cohorts.get((run_id, row["round"]), ())) for row in rows]

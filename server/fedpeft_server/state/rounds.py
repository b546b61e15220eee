"""Rounds: the updates of the open one, and what a finished one leaves, in one transaction."""

from fedpeft_server.records import AdapterRecord, BudgetRecord, RoundRecord, UpdateRecord
from fedpeft_server.state.store import Store


class Rounds(Store):
    """The rounds' part of the state."""

    def add_update(self, update: UpdateRecord, budget: BudgetRecord | None) -> bool:
        """Records a client's update of a round, and the budget that it stated with it.

        The first one of a client in a round stays. The same again changes nothing, its budget
        included.

        Args:
            update: Its artifact must be in the store already.
            budget: None where the run has no privacy.

        Returns:
            Whether it is new.

        Raises:
            NotFoundError: If there is no such run.
            DuplicateUpdateError: If the client sent another one before.
        """
        raise NotImplementedError

    def updates(self, run_id: str, round: int) -> list[UpdateRecord]:  # noqa: A002
        """Returns the updates of a round, in the order in which they came."""
        raise NotImplementedError

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
            WrongStateError: If it does not follow what is recorded, or the round has another
                adapter.
        """
        raise NotImplementedError

    def rounds(self, run_id: str) -> list[RoundRecord]:
        """Returns the finished rounds, oldest first."""
        raise NotImplementedError

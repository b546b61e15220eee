"""Runs: submitted once, their status, and the plan that is fixed before the first round."""

from collections.abc import Collection

from fedpeft_server.records import RunPlanRecord, RunRecord, RunStatus
from fedpeft_server.state.store import Store


class Runs(Store):
    """The runs' part of the state."""

    def add_run(self, run: RunRecord, idempotency_key: str, submitter: str) -> RunRecord:
        """Records a run.

        Args:
            run: With an id of its own.
            idempotency_key: Not empty; with the same key the same submitter gets its first run.
            submitter: Whose keys are told apart.

        Returns:
            The run, or the one that was submitted with this key before.

        Raises:
            StateError: If the key is empty.
            WrongStateError: If another run has the id.
        """
        raise NotImplementedError

    def run(self, run_id: str) -> RunRecord:
        """Returns one run.

        Raises:
            NotFoundError: If there is none of that id.
        """
        raise NotImplementedError

    def runs(self) -> list[RunRecord]:
        """Returns every run, oldest first."""
        raise NotImplementedError

    def set_run_status(
        self,
        run_id: str,
        status: RunStatus,
        *,
        reason: str = "",
        expected: Collection[RunStatus] | None = None,
    ) -> RunRecord:
        """Changes where a run stands.

        Args:
            run_id: The run.
            status: From now on.
            reason: Why, for `stopped` and `failed`.
            expected: What it may be now; None: anything.

        Returns:
            The run as it is now.

        Raises:
            NotFoundError: If there is no such run.
            WrongStateError: If its status is not among the expected ones.
        """
        raise NotImplementedError

    def save_plan(self, run_id: str, plan: RunPlanRecord) -> None:
        """Fixes the plan; the same one again changes nothing.

        Raises:
            NotFoundError: If there is no such run.
            WrongStateError: If it has another plan.
        """
        raise NotImplementedError

    def plan(self, run_id: str) -> RunPlanRecord | None:
        """Returns the plan, None before there is one.

        Raises:
            NotFoundError: If there is no such run.
        """
        raise NotImplementedError

"""Runs: submitted once, their status, and the plan that is fixed before the first round."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from fedpeft_server.records import Participant, RunPlanRecord, RunRecord, RunStatus
from fedpeft_server.state.errors import NotFoundError, StateError, WrongStateError
from fedpeft_server.state.store import Store, columns, following, one, require_run, values
from fedpeft_server.state.tables import PARTICIPANTS, PLANS, RUNS


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
        if not idempotency_key:
            raise StateError("a run is submitted with an idempotency key; this one's is empty")
        with self._database.writing() as connection:
            first = with_key(connection, submitter, idempotency_key)
            if first is not None:
                return first
            add(connection, run, idempotency_key, submitter)
        return run

    def run(self, run_id: str) -> RunRecord:
        """Returns one run.

        Raises:
            NotFoundError: If there is none of that id.
        """
        with self._database.reading() as connection:
            return _known(connection, run_id)

    def runs(self) -> list[RunRecord]:
        """Returns every run, oldest first."""
        query = select(*columns(RUNS, RunRecord)).order_by(RUNS.c.position)
        with self._database.reading() as connection:
            return [_run(row) for row in connection.execute(query).mappings()]

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
        with self._database.writing() as connection:
            run = _known(connection, run_id)
            if expected is not None and run.status not in expected:
                raise WrongStateError(
                    f"run {run_id} is {run.status}, which had to be one of "
                    f"{', '.join(sorted(expected))}"
                )
            connection.execute(
                update(RUNS)
                .where(RUNS.c.run_id == run_id)
                .values(status=status.value, reason=reason)
            )
        return replace(run, status=status, reason=reason)

    def save_plan(self, run_id: str, plan: RunPlanRecord) -> None:
        """Fixes the plan; the same one again changes nothing.

        Raises:
            NotFoundError: If there is no such run.
            WrongStateError: If it has another plan.
        """
        with self._database.writing() as connection:
            require_run(connection, run_id)
            before = _plan(connection, run_id)
            if before == plan:
                return
            if before is not None:
                raise WrongStateError(f"run {run_id} has another plan, and a plan stays")
            connection.execute(
                insert(PLANS).values(
                    run_id=run_id, terms_json=plan.terms_json, cohorts=plan.cohorts
                )
            )
            rows = [
                {"run_id": run_id, "position": position, **values(PARTICIPANTS, participant)}
                for position, participant in enumerate(plan.participants)
            ]
            if rows:
                connection.execute(insert(PARTICIPANTS), rows)

    def plan(self, run_id: str) -> RunPlanRecord | None:
        """Returns the plan, None before there is one.

        Raises:
            NotFoundError: If there is no such run.
        """
        with self._database.reading() as connection:
            require_run(connection, run_id)
            return _plan(connection, run_id)


def with_key(connection: Connection, submitter: str, idempotency_key: str) -> RunRecord | None:
    """Returns the run that was submitted with a key."""
    return _find(
        connection, RUNS.c.submitter == submitter, RUNS.c.idempotency_key == idempotency_key
    )


def add(connection: Connection, run: RunRecord, idempotency_key: str, submitter: str) -> None:
    """Writes a run.

    Raises:
        WrongStateError: If another run has the id.
    """
    if _find(connection, RUNS.c.run_id == run.run_id) is not None:
        raise WrongStateError(f"there is a run {run.run_id} already")
    connection.execute(
        insert(RUNS).values(
            **values(RUNS, run),
            position=following(connection, RUNS.c.position),
            submitter=submitter,
            idempotency_key=idempotency_key,
        )
    )


def _run(row: Mapping[Any, Any]) -> RunRecord:
    return RunRecord(**{**row, "status": RunStatus(row["status"])})


def _find(connection: Connection, *where: ColumnElement[bool]) -> RunRecord | None:
    row = one(connection, RUNS, RunRecord, *where)
    return None if row is None else _run(row)


def _known(connection: Connection, run_id: str) -> RunRecord:
    run = _find(connection, RUNS.c.run_id == run_id)
    if run is None:
        raise NotFoundError(f"there is no run {run_id!r}")
    return run


def _plan(connection: Connection, run_id: str) -> RunPlanRecord | None:
    plan = one(connection, PLANS, RunPlanRecord, PLANS.c.run_id == run_id)
    if plan is None:
        return None
    query = (
        select(*columns(PARTICIPANTS, Participant))
        .where(PARTICIPANTS.c.run_id == run_id)
        .order_by(PARTICIPANTS.c.position)
    )
    return RunPlanRecord(
        terms_json=plan["terms_json"],
        participants=tuple(Participant(**row) for row in connection.execute(query).mappings()),
        cohorts=tuple(tuple(cohort) for cohort in plan["cohorts"]),
    )

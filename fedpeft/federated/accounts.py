"""The clients' budgets as one run sees them: every charge goes to a ledger, before the training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fedpeft.dp.events import PrivacyEvent
from fedpeft.errors import BudgetError, LedgerError
from fedpeft.federated.plan import RunPlan
from fedpeft.ledger import Head, Ledger
from fedpeft.ledger.pricing import rounded_up
from fedpeft.models.table import Table


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Where a client's budget stands.

    Attributes:
        epsilon: Of everything that the ledger has charged to the client's rows.
        budget_epsilon: What may be spent on them, at the same delta.
        num_releases: Releases that this run was charged for, whether or not they arrived.
    """

    epsilon: float
    budget_epsilon: float
    num_releases: int


class Accounts:
    """The budgets of a run's clients in an open ledger.

    Attributes:
        ledger: The ledger.
    """

    def __init__(
        self, ledger: Ledger, fingerprints: Mapping[str, str], *, run_id: str, delta: float
    ) -> None:
        """Use `open_accounts`."""
        self.ledger = ledger
        self._fingerprints = fingerprints
        self._run_id = run_id
        self._delta = delta

    def reserve(self, round_number: int, client_id: str, event: PrivacyEvent) -> str:
        """Pays for the client's round, durably; returns the reservation's id.

        Raises:
            BudgetError: If the client's budget does not allow it.
        """
        purpose = f"{self._purpose}{round_number}"
        return self.ledger.reserve(self._fingerprints[client_id], event, purpose=purpose).id

    def spent_epsilon(self, client_id: str) -> float:
        """Returns epsilon of all that was charged to the client's rows, in this run and others."""
        return self.ledger.spent_epsilon(self._fingerprints[client_id], self._delta)

    def statement(self, client_id: str) -> Statement:
        """Returns where the client's budget stands."""
        fingerprint = self._fingerprints[client_id]
        budget = self.ledger.balance(fingerprint).epsilon
        assert budget is not None
        return Statement(
            epsilon=self.spent_epsilon(client_id),
            budget_epsilon=budget,
            num_releases=sum(event.num_releases for event in self.events(client_id)),
        )

    def events(self, client_id: str) -> list[PrivacyEvent]:
        """Returns what this run was charged for on the client's rows, oldest first."""
        return [
            reservation.event
            for reservation in self.ledger.reservations(self._fingerprints[client_id])
            if reservation.purpose.startswith(self._purpose)
        ]

    def check_affordable(self, plan: RunPlan, local_steps: int) -> None:
        """Refuses a plan that some client could not take part in to its end.

        Raises:
            BudgetError: It names the client and the number of rounds that still fit.
        """
        for client_id, client in plan.clients.items():
            event = plan.event(client_id, local_steps)
            if event is None or client.num_rounds == 0:
                continue
            fingerprint = self._fingerprints[client_id]
            if self.ledger.balance(fingerprint).epsilon is None:
                self._check_untouched(client_id)
                continue
            fits = self.ledger.remaining_events(fingerprint, event)
            if fits < client.num_rounds:
                statement = self.statement(client_id)
                raise BudgetError(
                    f"{client_id} is planned for {client.num_rounds} rounds, its budget allows "
                    f"{fits}: epsilon {rounded_up(statement.epsilon)} of "
                    f"{statement.budget_epsilon:g} is spent; plan fewer rounds or a lower "
                    "target_epsilon, or its owner raises the budget with `fedpeft budget set`"
                )

    def set_missing_budgets(self, epsilon: float) -> None:
        """Gives each client whose rows have no budget this one, at the run's delta.

        Raises:
            BudgetError: If more than that is spent already on such rows.
        """
        for fingerprint in self._fingerprints.values():
            if self.ledger.balance(fingerprint).epsilon is None:
                self.ledger.set_budget(fingerprint, epsilon=epsilon, delta=self._delta)

    def check_continues(self, head: str, spent: Mapping[str, float]) -> None:
        """Refuses a ledger that is not the one that the run was charged to so far.

        Args:
            head: Of the ledger when the run was last stored; it may have grown since.
            spent: Client id → epsilon as it was stated then.

        Raises:
            VerificationError: If the ledger does not go on from that head.
            LedgerError: If it states less than was stated before.
        """
        self.ledger.verify(Head.parse(head))
        for client_id, before in spent.items():
            now = self.spent_epsilon(client_id)
            if now < before:
                raise LedgerError(
                    f"the ledger charges the rows of {client_id} with epsilon {now:.4f}, but "
                    f"{before:.4f} was spent when the run was stopped; are data and ledger those "
                    "that it was started with?"
                )

    def _check_untouched(self, client_id: str) -> None:
        """The budget that rows without one will get allows the plan if nothing is spent on them."""
        spent = self.spent_epsilon(client_id)
        if spent > 0:
            raise BudgetError(
                f"some rows of {client_id} are in data sets that epsilon {rounded_up(spent)} was "
                "spent on already, and these rows have no budget together; set one with `fedpeft "
                "budget set`"
            )

    @property
    def _purpose(self) -> str:
        return f"run {self._run_id} round "


@contextmanager
def open_accounts(
    location: str, rows: Mapping[str, Table], *, run_id: str, delta: float
) -> Iterator[Accounts]:
    """Opens the ledger and makes every client's rows known to it.

    Args:
        location: See `Ledger.open`.
        rows: Client id → its rows, the columns that training reads.
        run_id: Tells the charges of this run from others.
        delta: Of every epsilon that the accounts state.

    Raises:
        LedgerError: If the ledger cannot be opened or written.
        BudgetError: If a budget is stated at another delta.
    """
    with Ledger.open(location) as ledger:
        fingerprints = {}
        for client_id, table in rows.items():
            fingerprint = ledger.register(table.records(), owner=client_id)
            budget = ledger.balance(fingerprint)
            if budget.delta not in (None, delta):
                raise BudgetError(
                    f"the budget of {client_id} in the ledger {location} is stated at delta "
                    f"{budget.delta:g}, the run at {delta:g}; set privacy.delta to the budget's"
                )
            fingerprints[client_id] = fingerprint
        yield Accounts(ledger, fingerprints, run_id=run_id, delta=delta)

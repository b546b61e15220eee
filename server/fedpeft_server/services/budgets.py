"""Budgets as clients last reported them."""

from fedpeft.wire.v1 import budgets_pb2, budgets_pb2_grpc
from fedpeft_server.access.call import Call
from fedpeft_server.services import fields, translate
from fedpeft_server.state import State


class BudgetsService(budgets_pb2_grpc.BudgetsServicer):
    """See protos/fedpeft/wire/v1/budgets.proto."""

    def __init__(self, state: State) -> None:
        """Takes where they are recorded."""
        self._state = state

    def ListBudgets(
        self, request: budgets_pb2.ListBudgetsRequest, call: Call
    ) -> budgets_pb2.ListBudgetsResponse:
        """Returns those of one client, or of all, that the caller may see."""
        name = fields.client_id(request.client_id) if request.client_id else None
        return budgets_pb2.ListBudgetsResponse(
            budgets=[
                translate.budget(budget)
                for budget in self._state.budgets(name)
                if call.may_see(budget.client_id)
            ]
        )

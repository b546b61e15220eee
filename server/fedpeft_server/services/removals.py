"""Removal requests: planned, made, given their records, watched, cancelled."""

from collections.abc import Iterator

from fedpeft.errors import InputError
from fedpeft.identity.roles import Role
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.v1 import removals_pb2, removals_pb2_grpc
from fedpeft_server.access.call import Call
from fedpeft_server.ports import RemovalEngine
from fedpeft_server.records import RemovalRecord, RemovalState
from fedpeft_server.removals.planning import Wish
from fedpeft_server.removals.requests import Order, Requests
from fedpeft_server.services import fields
from fedpeft_server.services import removal_messages as messages
from fedpeft_server.state import NotFoundError, State, WrongStateError
from fedpeft_server.watching import watch_removal

_LONGEST_RESULT = 2**22


class RemovalsService(removals_pb2_grpc.RemovalsServicer):
    """See protos/fedpeft/wire/v1/removals.proto."""

    def __init__(self, state: State, requests: Requests, engine: RemovalEngine) -> None:
        """Takes where requests are recorded, what takes them in, and what brings them forward."""
        self._state, self._requests, self._engine = state, requests, engine

    def PlanRemoval(
        self, request: removals_pb2.RemovalOrder, call: Call
    ) -> removals_pb2.RemovalPlan:
        """Returns what a request would do."""
        wish = self._wish(request, call)
        return messages.plan(self._requests.plan(wish, fields.version(request.adapter)))

    def RequestRemoval(
        self, request: removals_pb2.RequestRemovalRequest, call: Call
    ) -> removals_pb2.Removal:
        """Records a request."""
        order = Order(
            wish=self._wish(request.order, call),
            adapter=fields.version(request.order.adapter),
            deadline=messages.deadline(request.order),
            records_digest=messages.records_digest(request.records_digest),
            idempotency_key=fields.text("idempotency_key", request.idempotency_key, required=True),
        )
        removal = self._requests.request(order)
        call.about(removal.request_id, removal=removal.request_id, client_id=removal.client_id)
        return messages.removal(removal)

    def UploadRecords(
        self, request: removals_pb2.UploadRecordsRequest, call: Call
    ) -> removals_pb2.Removal:
        """Stores the sealed records of a request."""
        removal = self._found(request.request_id, call)
        return messages.removal(self._requests.take_records(removal, request.sealed))

    def SubmitSuccessor(
        self, request: removals_pb2.SubmitSuccessorRequest, call: Call
    ) -> removals_pb2.Removal:
        """Takes what the job at the client made."""
        removal = self._own(request.request_id, call)
        files = {file.name: file.content for file in request.files}
        if len(files) != len(request.files):
            raise Refused.INVALID.error("a file of the export came twice")
        if removal.place != "client":
            raise Refused.WRONG_STATE.error(
                f"the job of removal {removal.request_id} runs at the server"
            )
        result = messages.json_object("result_json", request.result_json, _LONGEST_RESULT)
        try:
            return messages.removal(
                self._engine.submit(removal.request_id, request.adapter, result, files)
            )
        except WrongStateError as error:
            raise self._wrong_state(removal, "one that is planned takes a successor") from error
        except InputError as error:
            raise Refused.INVALID.error(str(error)) from error

    def ListRemovals(
        self, request: removals_pb2.ListRemovalsRequest, call: Call
    ) -> removals_pb2.ListRemovalsResponse:
        """Returns those about one client's data, or all, that the caller may see."""
        name = fields.client_id(request.client_id) if request.client_id else None
        return removals_pb2.ListRemovalsResponse(
            removals=[
                messages.removal(removal)
                for removal in self._state.removals(name)
                if call.may_see(removal.client_id)
            ]
        )

    def GetRemoval(
        self, request: removals_pb2.GetRemovalRequest, call: Call
    ) -> removals_pb2.Removal:
        """Returns one request."""
        return messages.removal(self._found(request.request_id, call))

    def WatchRemoval(
        self, request: removals_pb2.GetRemovalRequest, call: Call
    ) -> Iterator[removals_pb2.RemovalEvent]:
        """Yields past events, then new ones, until the request has ended."""
        removal = self._found(request.request_id, call)
        after = fields.position(request.after)
        for event in watch_removal(self._state, removal.request_id, after, call):
            yield messages.event(event)

    def CancelRemoval(
        self, request: removals_pb2.CancelRemovalRequest, call: Call
    ) -> removals_pb2.Removal:
        """Ends a request; where it was cancelled before, nothing changes."""
        removal = self._found(request.request_id, call)
        reason = fields.text("reason", request.reason) or f"cancelled by {call.caller.name}"
        if removal.state is RemovalState.CANCELLED:
            return messages.removal(removal)
        try:
            return messages.removal(self._engine.cancel(removal.request_id, reason))
        except WrongStateError as error:
            allowed = "one that has published nothing can be cancelled"
            raise self._wrong_state(removal, allowed) from error

    def GetReceipt(
        self, request: removals_pb2.GetRemovalRequest, call: Call
    ) -> removals_pb2.Receipt:
        """Returns the signed receipt."""
        removal = self._found(request.request_id, call)
        if removal.receipt_json is None:
            raise self._wrong_state(removal, "one that was published has a receipt")
        return removals_pb2.Receipt(receipt_json=removal.receipt_json)

    def GetJob(
        self, request: removals_pb2.GetRemovalRequest, call: Call
    ) -> removals_pb2.RemovalJob:
        """Returns what the client needs to run the job."""
        removal = self._own(request.request_id, call)
        try:
            order, adapter = self._requests.job(removal)
        except WrongStateError as error:
            raise self._wrong_state(
                removal, "the job of one that is planned is given out"
            ) from error
        except InputError as error:
            raise Refused.WRONG_STATE.error(str(error)) from error
        return removals_pb2.RemovalJob(order_json=order.to_json(), adapter=adapter)

    def _wish(self, order: removals_pb2.RemovalOrder, call: Call) -> Wish:
        """What is asked for, by someone who may ask for it."""
        wish = messages.wish(order, call.caller.name)
        if not _is_operator(call) and call.own_client != wish.client_id:
            raise Refused.NOT_YOURS.error(wish.client_id)
        if wish.void_guarantee and not _is_operator(call):
            raise Refused.NOT_ALLOWED.error(
                f"{Role.OPERATOR.value} (to give up an adapter's privacy guarantee)"
            )
        return wish

    def _found(self, request_id: str, call: Call) -> RemovalRecord:
        """A request that the caller may see; to others it is as if there were none."""
        name = messages.request_id(request_id)
        call.about(name, removal=name)
        try:
            removal = self._state.removal(name)
        except NotFoundError as error:
            raise Refused.NO_SUCH_REMOVAL.error(name) from error
        if not call.may_see(removal.client_id):
            raise Refused.NO_SUCH_REMOVAL.error(name)
        return removal

    def _own(self, request_id: str, call: Call) -> RemovalRecord:
        """A request about the caller's own data."""
        removal = self._found(request_id, call)
        if removal.client_id != call.own_client:
            raise Refused.NOT_YOURS.error(removal.client_id)
        return removal

    def _wrong_state(self, removal: RemovalRecord, allowed: str) -> Exception:
        state = self._state.removal(removal.request_id).state
        return Refused.WRONG_STATE.error(f"removal {removal.request_id} is {state}; only {allowed}")


def _is_operator(call: Call) -> bool:
    return Role.OPERATOR in call.caller.roles

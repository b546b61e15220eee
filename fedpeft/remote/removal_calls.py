"""Calls about removal requests; a part of `Connection`."""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from fedpeft.errors import InputError, ProtocolError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote import translate
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.caller import Caller
from fedpeft.remote.removal_records import (
    Removal,
    RemovalEvent,
    RemovalJob,
    RemovalOrder,
    RemovalState,
)
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import seal
from fedpeft.wire.v1 import removals_pb2, removals_pb2_grpc


class RemovalCalls(Caller):
    """A data owner asks for the removal of its own data alone, an operator of anyone's."""

    def __init__(
        self,
        server: str | ServerAddress,
        credentials: Credentials,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        """See `Caller`."""
        super().__init__(server, credentials, timeout_s=timeout_s, patience_s=patience_s)
        self._removals = removals_pb2_grpc.RemovalsStub(self._signing)

    def plan_removal(self, order: RemovalOrder) -> RemovalPlan:
        """Returns what a request would do; nothing is changed."""
        return _plan(self._call(self._removals.PlanRemoval, _order(order)))

    def request_removal(
        self, order: RemovalOrder, *, records_digest: str, idempotency_key: str | None = None
    ) -> Removal:
        """Asks for a removal.

        Where the job runs at the server the request waits for its records: `upload_records`.

        Args:
            order: What is asked for.
            records_digest: `fedpeft.unlearning.records.records_digest`; keep its salt.
            idempotency_key: The same key again gives the same request; default: a new one.
        """
        request = removals_pb2.RequestRemovalRequest(
            order=_order(order),
            records_digest=records_digest,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
        )
        return _removal(self._call(self._removals.RequestRemoval, request))

    def upload_records(self, removal: Removal, rows: JobRows) -> Removal:
        """Seals rows to the key of a request's job, and sends them. Once.

        Args:
            removal: As `request_removal` gave it.
            rows: To be forgotten, some that stay, and held-out ones where there are any.

        Raises:
            InputError: If the request waits for no records.
        """
        if not removal.job_public_key:
            raise InputError(
                f"removal {removal.request_id} is {removal.state} and takes no records"
            )
        sealed = seal(removal.job_public_key, removal.request_id, rows.to_bytes())
        request = removals_pb2.UploadRecordsRequest(request_id=removal.request_id, sealed=sealed)
        return _removal(self._call(self._removals.UploadRecords, request))

    def get_removal_job(self, request_id: str) -> RemovalJob:
        """Returns what is needed to run the job of a request at the client."""
        found = self._call(self._removals.GetJob, _named(request_id))
        return RemovalJob(order_json=found.order_json, adapter=found.adapter)

    def submit_successor(
        self,
        request_id: str,
        adapter: bytes,
        result: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> Removal:
        """Sends what a job at the client made; the same again changes nothing.

        Args:
            request_id: The request.
            adapter: The successor's tensors as safetensors.
            result: `fedpeft.unlearning.job.JobResult` as JSON says it.
            files: Of the PEFT export, by plain name.
        """
        request = removals_pb2.SubmitSuccessorRequest(
            request_id=request_id,
            adapter=adapter,
            result_json=json.dumps(result, sort_keys=True, allow_nan=False),
            files=[
                removals_pb2.RemovalFile(name=name, content=content)
                for name, content in sorted(files.items())
            ],
        )
        return _removal(self._call(self._removals.SubmitSuccessor, request))

    def list_removals(self, client_id: str = "") -> list[Removal]:
        """Returns the requests about a client's data, or all the caller may see, oldest first."""
        request = removals_pb2.ListRemovalsRequest(client_id=client_id)
        found = self._call(self._removals.ListRemovals, request)
        return [_removal(entry) for entry in found.removals]

    def get_removal(self, request_id: str) -> Removal:
        """Returns one request."""
        return _removal(self._call(self._removals.GetRemoval, _named(request_id)))

    def watch_removal(self, request_id: str, *, after: int = 0) -> Iterator[RemovalEvent]:
        """Yields what happened to a request, then what happens, until it has ended.

        A connection that breaks is made again where it was, for `patience_s` at a time.

        Args:
            request_id: The request.
            after: Events after this position.
        """
        events = self._watch(
            lambda position: self._removals.WatchRemoval(
                removals_pb2.GetRemovalRequest(request_id=request_id, after=position)
            ),
            after,
        )
        return map(_event, events)

    def cancel_removal(self, request_id: str, reason: str = "") -> Removal:
        """Ends a request before anything of it is published."""
        request = removals_pb2.CancelRemovalRequest(request_id=request_id, reason=reason)
        return _removal(self._call(self._removals.CancelRemoval, request))

    def get_receipt(self, request_id: str) -> str:
        """Returns the signed receipt of a request that was published, as JSON.

        It is verified without a server: `fedpeft removal verify`.
        """
        receipt: str = self._call(self._removals.GetReceipt, _named(request_id)).receipt_json
        return receipt


def _named(request_id: str) -> removals_pb2.GetRemovalRequest:
    return removals_pb2.GetRemovalRequest(request_id=request_id)


def _order(order: RemovalOrder) -> removals_pb2.RemovalOrder:
    deadline = None
    if order.deadline is not None:
        deadline = Timestamp()
        deadline.FromDatetime(order.deadline)
    return removals_pb2.RemovalOrder(
        adapter=order.adapter,
        client_id=order.client_id,
        place=order.place,
        method=order.method,
        num_records=order.num_records,
        settings_json=json.dumps(order.settings, sort_keys=True) if order.settings else "",
        void_guarantee=order.void_guarantee,
        private_job=order.private_job,
        deadline=deadline,
    )


def _removal(read: removals_pb2.Removal) -> Removal:
    name = removals_pb2.RemovalState.Name(read.state).removeprefix("REMOVAL_STATE_").lower()
    try:
        state = RemovalState(name)
    except ValueError as error:
        raise ProtocolError(f"removal {read.request_id} has the unknown state {name!r}") from error
    order = read.order
    return Removal(
        request_id=read.request_id,
        order=RemovalOrder(
            adapter=order.adapter,
            client_id=order.client_id,
            num_records=order.num_records,
            place="client" if order.place == "client" else "server",
            method=order.method,
            settings=translate.json_object(order.settings_json),
            void_guarantee=order.void_guarantee,
            private_job=order.private_job,
            deadline=translate.time(order.deadline) if order.HasField("deadline") else None,
        ),
        plan=_plan(read.plan),
        state=state,
        reason=read.reason,
        requested_by=read.requested_by,
        created_at=translate.time(read.created_at),
        updated_at=translate.time(read.updated_at),
        records_digest=read.records_digest,
        job_public_key=read.job_public_key,
        successor=read.successor,
        num_attempts=read.num_attempts,
        progress=read.progress,
    )


def _plan(read: removals_pb2.RemovalPlan) -> RemovalPlan:
    return RemovalPlan.from_body(
        {
            "adapter": read.adapter,
            "affected": list(read.affected),
            "aliases": list(read.aliases),
            "method": read.method,
            "claim": read.claim,
            "clean_ancestor": read.clean_ancestor or None,
            "guarantee": read.guarantee,
            "notes": list(read.notes),
            "gate": translate.json_object(read.gate_json),
        }
    )


def _event(read: removals_pb2.RemovalEvent) -> RemovalEvent:
    return RemovalEvent(
        position=read.position,
        at=translate.time(read.at),
        kind=read.kind,
        body=translate.json_object(read.body_json),
    )

"""Requests that meet: one publishes while another, from the same version, has not begun yet.

Had the second begun from the version that it named, its successor would bring back what the first
has removed. So it begins from the first one's successor, by a new plan.
"""

from fedpeft.wire.catalogue import Refused
from fedpeft_server.records import AdapterRecord, RemovalRecord
from fedpeft_server.removals import events
from fedpeft_server.removals.orders import named_version
from fedpeft_server.removals.planning import Wish, known_of, plan_removal
from fedpeft_server.state import NotFoundError, State


def up_to_date(state: State, removal: RemovalRecord) -> RemovalRecord:
    """Returns a request whose job may begin now: planned again, where its version was withdrawn.

    Call it before every attempt of a job, and check in the transaction that publishes that the
    version is not withdrawn: if it is, the request goes back to `planned`.

    Args:
        state: The database of record.
        removal: Received or planned.

    Raises:
        RemoteError: `withdrawn`, where no removal put another version in its place; or whatever
            `planning.plan_removal` says of the other version.
        WrongStateError: If its job has begun, or it has ended.
    """
    named = named_version(state, removal)
    if named.status == "published":
        return removal
    successor = _successor(state, named)
    plan = plan_removal(wish_of(removal), successor, known_of(state, removal.client_id))
    again = state.replan_removal(removal.request_id, successor, plan.to_body())
    message = (
        f"adapter {named.digest[:12]} was withdrawn by removal {named.withdrawn_by}; this one "
        f"begins from its successor {successor.digest[:12]}"
    )
    state.add_removal_event(removal.request_id, events.NOTE, {"message": message})
    return again


def wish_of(removal: RemovalRecord) -> Wish:
    """Returns what a recorded request asks for."""
    return Wish(
        client_id=removal.client_id,
        asked_by=removal.requested_by,
        place=removal.place,
        method=removal.method,
        num_records=removal.num_records,
        settings=removal.settings,
        void_guarantee=removal.void_guarantee,
        private_job=removal.private_job,
    )


def _successor(state: State, version: AdapterRecord) -> AdapterRecord:
    """The version in use that stands for a withdrawn one."""
    seen = {version.digest}
    while version.status == "withdrawn":
        following = _put_in_place_of(state, version)
        if following is None or following.digest in seen:
            raise Refused.WITHDRAWN.error(version.digest)
        version = following
        seen.add(version.digest)
    return version


def _put_in_place_of(state: State, withdrawn: AdapterRecord) -> AdapterRecord | None:
    """What the removal made that withdrew a version; None where an operator withdrew it."""
    try:
        removal = state.removal(withdrawn.withdrawn_by or "")
        return state.adapter(removal.successor or "")
    except NotFoundError:
        return None

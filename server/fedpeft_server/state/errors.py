"""What the state of record refuses, so that a service can tell the reasons apart."""

from fedpeft.errors import InputError


class StateError(InputError):
    """The coordinator's database cannot be opened as it is, or does not allow what was asked."""


class NotFoundError(StateError):
    """There is no such client, run or adapter, or several that begin so."""


class WrongStateError(StateError):
    """What was asked contradicts what is recorded; nothing was changed."""


class DuplicateUpdateError(WrongStateError):
    """The client sent another update for the round before; the first one stays."""


class RowsRemovedMeanwhileError(WrongStateError):
    """An update of the round holds rows that its client wants forgotten since."""


class BadTokenError(StateError):
    """An enrolment token is unknown, used, expired or another client's."""


class ClientRevokedError(StateError):
    """The client, or its certificate, was revoked."""


class KeyInUseError(StateError):
    """The node key is another client's."""


class SameRequestError(WrongStateError):
    """An open request removes the same records from the same version.

    Attributes:
        request_id: Of that request.
    """

    def __init__(self, request_id: str) -> None:
        """Takes the id of the open request."""
        super().__init__(f"removal {request_id} is open and removes the same records")
        self.request_id = request_id

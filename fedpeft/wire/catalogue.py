"""Every way in which a server refuses a call: code, gRPC status, and what the caller is told.

The message is for whoever calls, so it never quotes an exception: what went wrong inside stands in
the server's log and audit log, under the same code.
"""

from dataclasses import dataclass
from enum import Enum

from fedpeft.errors import RemoteError

CODE, REQUEST_ID = "fedpeft-code", "fedpeft-request-id"
"""Keys of the trailing metadata: the entry's code, and what the server's log calls the request."""

_LONGEST_DETAIL = 1000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One way to refuse.

    Attributes:
        code: What programs read; it never changes its meaning.
        status: Name of the gRPC status.
        message: What a person reads; `{detail}` is filled in where it is there.
    """

    code: str
    status: str
    message: str


class Refused(Enum):
    """The catalogue."""

    def error(self, detail: str = "") -> RemoteError:
        """Returns the error that refuses a call in this way.

        Args:
            detail: For the caller: it may quote the request, never anything else. What cannot be
                shown on one line is replaced, and what is very long is cut.
        """
        shown = "".join(c if c.isprintable() else "?" for c in detail[:_LONGEST_DETAIL])
        return RemoteError(self.value.code, self.value.message.format(detail=shown))

    NOT_TRUSTED = Problem(
        code="not-trusted",
        status="UNAUTHENTICATED",
        message="the certificate is not valid here: {detail}",
    )
    NOT_ALLOWED = Problem(
        code="not-allowed",
        status="PERMISSION_DENIED",
        message="this needs one of the roles {detail}",
    )
    NOT_SIGNED = Problem(
        code="not-signed",
        status="UNAUTHENTICATED",
        message="the request must be signed with the certificate's key: {detail}",
    )
    REPLAYED = Problem(
        code="replayed",
        status="UNAUTHENTICATED",
        message="this request was made before, or its time is not now; check the clock",
    )
    INVALID = Problem(code="invalid", status="INVALID_ARGUMENT", message="{detail}")
    TOO_LARGE = Problem(
        code="too-large", status="RESOURCE_EXHAUSTED", message="too large: {detail}"
    )
    BUSY = Problem(code="busy", status="RESOURCE_EXHAUSTED", message="{detail}; try again later")
    UNKNOWN_METHOD = Problem(
        code="unknown-method",
        status="UNIMPLEMENTED",
        message="this server does not know {detail}; upgrade the older side",
    )
    NO_SUCH_SERVICE = Problem(
        code="no-such-service", status="NOT_FOUND", message="there is no service {detail}"
    )
    OLD_PROTOCOL = Problem(
        code="old-protocol",
        status="FAILED_PRECONDITION",
        message="{detail}; upgrade the older side",
    )
    NO_SUCH_RUN = Problem(
        code="no-such-run", status="NOT_FOUND", message="there is no run {detail}"
    )
    NO_SUCH_CLIENT = Problem(
        code="no-such-client", status="NOT_FOUND", message="there is no client {detail}"
    )
    NO_SUCH_ADAPTER = Problem(
        code="no-such-adapter",
        status="NOT_FOUND",
        message="there is no adapter, or more than one, whose digest begins with {detail}",
    )
    NOT_EXPORTED = Problem(
        code="not-exported",
        status="FAILED_PRECONDITION",
        message="adapter {detail} was not exported: the last version of a finished run is",
    )
    WITHDRAWN = Problem(
        code="withdrawn",
        status="FAILED_PRECONDITION",
        message="adapter {detail} was withdrawn and is used no more",
    )
    NO_SUCH_ALIAS = Problem(
        code="no-such-alias",
        status="NOT_FOUND",
        message="there is no alias {detail}; `fedpeft adapter deploy` makes one",
    )
    NO_SUCH_REMOVAL = Problem(
        code="no-such-removal", status="NOT_FOUND", message="there is no removal request {detail}"
    )
    NOT_YOURS = Problem(
        code="not-yours",
        status="PERMISSION_DENIED",
        message="a data owner asks for the removal of its own data alone, not that of {detail}",
    )
    NEVER_TRAINED = Problem(
        code="never-trained",
        status="FAILED_PRECONDITION",
        message="nothing to remove: {detail}",
    )
    GUARANTEE = Problem(code="guarantee", status="FAILED_PRECONDITION", message="{detail}")
    WRONG_STATE = Problem(code="wrong-state", status="FAILED_PRECONDITION", message="{detail}")
    BAD_TOKEN = Problem(
        code="bad-token",
        status="PERMISSION_DENIED",
        message="the enrolment token is unknown, used, expired or another client's; ask for a "
        "new one",
    )
    ALREADY_EXISTS = Problem(code="already-exists", status="ALREADY_EXISTS", message="{detail}")
    REVOKED = Problem(
        code="revoked", status="PERMISSION_DENIED", message="client {detail} was revoked"
    )
    DATABASE_DOWN = Problem(
        code="database-down",
        status="UNAVAILABLE",
        message="the server cannot reach what it keeps its records in; try again",
    )
    DAMAGED = Problem(
        code="damaged",
        status="DATA_LOSS",
        message="what the server kept was altered or lost; tell its operator{detail}",
    )
    SHUTTING_DOWN = Problem(
        code="shutting-down", status="UNAVAILABLE", message="the server is stopping; try again"
    )
    INTERNAL = Problem(
        code="internal",
        status="INTERNAL",
        message="the server failed; its log has the details under {detail}",
    )


BY_CODE = {refused.value.code: refused for refused in Refused}
"""Code → entry."""

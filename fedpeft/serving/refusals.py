"""Every way in which a request is refused: HTTP status, OpenAI's type, and a code for programs."""

from dataclasses import dataclass
from enum import Enum

from fedpeft.errors import RemoteError

_LONGEST_DETAIL = 500


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One way to refuse.

    Attributes:
        code: What programs read; it never changes its meaning.
        status: Of HTTP.
        type: As OpenAI's API groups them.
    """

    code: str
    status: int
    type: str


class Refused(Enum):
    """The catalogue."""

    def error(self, message: str) -> RemoteError:
        """Returns the error that refuses a request in this way.

        Args:
            message: For whoever asked. What cannot be shown on one line is replaced.
        """
        shown = "".join(c if c.isprintable() else "?" for c in message[:_LONGEST_DETAIL])
        return RemoteError(self.value.code, shown)

    INVALID = Refusal(code="invalid_value", status=400, type="invalid_request_error")
    UNSUPPORTED = Refusal(code="unsupported_parameter", status=400, type="invalid_request_error")
    TOO_LONG = Refusal(code="context_length_exceeded", status=400, type="invalid_request_error")
    WRONG_TASK = Refusal(code="wrong_task", status=400, type="invalid_request_error")
    NO_KEY = Refusal(code="invalid_api_key", status=401, type="authentication_error")
    NO_SUCH_MODEL = Refusal(code="model_not_found", status=404, type="invalid_request_error")
    NO_SUCH_PATH = Refusal(code="not_found", status=404, type="invalid_request_error")
    WRONG_METHOD = Refusal(code="method_not_allowed", status=405, type="invalid_request_error")
    WITHDRAWN = Refusal(code="withdrawn", status=410, type="invalid_request_error")
    TOO_LARGE = Refusal(code="too_large", status=413, type="invalid_request_error")
    BUSY = Refusal(code="overloaded", status=429, type="overloaded_error")
    FAILED = Refusal(code="internal", status=500, type="server_error")
    NOT_SERVED = Refusal(code="not_served", status=503, type="server_error")
    STOPPING = Refusal(code="stopping", status=503, type="server_error")


BY_CODE = {refused.value.code: refused for refused in Refused}
"""Code → entry."""

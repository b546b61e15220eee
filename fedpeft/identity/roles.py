"""What the holder of a certificate may be, as a name in the certificate itself.

A role is a URI among the subject's alternative names (RFC 5280, 4.2.1.6), where gRPC hands it to a
service without parsing. The authority writes it; what a request asks for counts for nothing.
"""

from enum import StrEnum

_PREFIX = "urn:fedpeft:role:"


class Role(StrEnum):
    """What a certificate lets its holder do; a holder may have several."""

    OPERATOR = "operator"
    DATA_OWNER = "data-owner"
    AUDITOR = "auditor"
    READER = "reader"
    SERVER = "server"

    @property
    def uri(self) -> str:
        """The name in a certificate."""
        return f"{_PREFIX}{self.value}"


def role_of_uri(uri: str) -> Role | None:
    """Returns the role that a name in a certificate means; None where it means none."""
    try:
        return Role(uri.removeprefix(_PREFIX)) if uri.startswith(_PREFIX) else None
    except ValueError:
        return None

"""What a server says of itself."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft_server.access.trust import ServerIdentity


@dataclass(frozen=True, kw_only=True)
class About:
    """What callers need to know of a server.

    Attributes:
        identity: Its certificate, which may be renewed while it runs.
        fleet_address: host:port that nodes connect to; an empty host means the one that was called.
        bundle_digest: Of the Flower app that it runs.
    """

    identity: ServerIdentity
    fleet_address: str
    bundle_digest: str

    def certificate_der(self) -> bytes:
        """Returns the certificate that plans are signed with."""
        return self.identity.current().certificate.public_bytes(Encoding.DER)

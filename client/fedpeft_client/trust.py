"""Whose word a client takes for a server's."""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.errors import IdentityError
from fedpeft.identity.authority import REVOKED
from fedpeft.identity.certificates import Identity, holder_of, identify, read_revocations
from fedpeft.identity.roles import Role


class ServerTrust:
    """Checks the certificates that letters are signed with.

    With a revocation list in the identity's folder, every server of the authority that is not on it
    is believed; the list is read anew each time, so that a fresh one counts at once. Without one
    nobody could say who was revoked: then only the very certificate is believed that the server has
    when it is called.
    """

    def __init__(self, authority: x509.Certificate, identity: Path, enrolled: bytes) -> None:
        """Takes the authority's certificate.

        Args:
            authority: Of the federation.
            identity: The folder that may hold `revoked.crl.pem`.
            enrolled: The server's certificate at enrolment, DER.
        """
        self._authority = authority
        self._revoked = identity / REVOKED
        self._enrolled = enrolled

    def identify(self, certificate: x509.Certificate, now: datetime) -> Identity:
        """Returns whose certificate it is; see `wire.envelope.Identify`.

        Raises:
            IdentityError: If it is not that of a server to be believed now.
        """
        if self._revoked.exists():
            found = identify(certificate, self._authority, read_revocations(self._revoked), now)
        else:
            if certificate.public_bytes(Encoding.DER) != self._enrolled:
                raise IdentityError(
                    "the letter is signed with another certificate than the server's own; to "
                    f"believe every server of the authority, put {REVOKED} into the identity's "
                    "folder"
                )
            found = holder_of(certificate, self._authority, now)
        if Role.SERVER not in found.roles:
            raise IdentityError(f"the letter is from {found.name!r}, who is no server")
        return found

"""Invitations, clients, and what protects their requests against replay."""

from datetime import datetime

from fedpeft_server.records import Client
from fedpeft_server.state.store import Store


class Clients(Store):
    """The clients' part of the state."""

    def add_invitation(
        self, client_id: str, token_digest: str, expires_at: datetime, created_by: str
    ) -> None:
        """Lets the named client enrol once with the token of that digest.

        Args:
            client_id: Whom it is for.
            token_digest: sha256 of the token, hex; the token itself is never stored.
            expires_at: From then on it is refused.
            created_by: The operator.

        Raises:
            StateError: If the digest is none, or another client's invitation has it.
        """
        raise NotImplementedError

    def enrol(
        self, client_id: str, token_digest: str | None, client: Client, now: datetime
    ) -> Client:
        """Uses up the token and makes the client known, or known with another node key.

        Who is known with this node key already needs no token: its certificate, protocol and
        version are brought up to date, and the rest stays. A token that is shown is used up then
        too.

        Returns:
            The client as it is now recorded.

        Raises:
            BadTokenError: If the token is unknown, used, expired or another client's, or there is
                none.
            ClientRevokedError: If its certificate was revoked. A revoked client comes back with a
                new certificate and a new token.
            KeyInUseError: If the node key is another client's.
        """
        raise NotImplementedError

    def clients(self) -> list[Client]:
        """Returns every client, revoked ones among them, by name."""
        raise NotImplementedError

    def client(self, client_id: str) -> Client:
        """Returns one client.

        Raises:
            NotFoundError: If it never enrolled.
        """
        raise NotImplementedError

    def revoke_client(self, client_id: str, reason: str, now: datetime) -> Client:
        """Takes the client out, and its certificate for ever; again it changes nothing.

        Invitations that it has not used are withdrawn.

        Raises:
            NotFoundError: If it never enrolled.
        """
        raise NotImplementedError

    def seen(self, client_id: str, now: datetime) -> None:
        """Remembers that the client called, to within ten seconds.

        Raises:
            NotFoundError: If it never enrolled.
        """
        raise NotImplementedError

    def use_nonce(self, serial: str, nonce: bytes, expires_at: datetime, now: datetime) -> bool:
        """Returns whether this is the first request with the nonce under the certificate.

        Args:
            serial: Of the certificate, hex.
            nonce: Of the request.
            expires_at: When the request's time runs out; what has run out already gives False.
            now: The clock.
        """
        raise NotImplementedError

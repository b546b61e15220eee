"""Invitations, clients, and what protects their requests against replay."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, or_, select, update

from fedpeft_server.records import Client
from fedpeft_server.state.errors import (
    BadTokenError,
    ClientRevokedError,
    KeyInUseError,
    NotFoundError,
    StateError,
    WrongStateError,
)
from fedpeft_server.state.store import Store, one, values
from fedpeft_server.state.tables import CERTIFICATES, CLIENTS, INVITATIONS, NONCES

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SEEN_RESOLUTION: Final = timedelta(seconds=10)
# A clock that was put back must not make an old request new.
_KEPT_AFTERWARDS: Final = timedelta(days=1)


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
            StateError: If the digest is none.
            WrongStateError: If an invitation has it already.
        """
        if _DIGEST.fullmatch(token_digest) is None:
            raise StateError("expected the sha256 of a token, 64 hex digits; the token is secret")
        with self._database.writing() as connection:
            query = select(INVITATIONS.c.client_id).where(
                INVITATIONS.c.token_digest == token_digest
            )
            if connection.execute(query).one_or_none() is not None:
                raise WrongStateError("there is an invitation with this token; make another token")
            connection.execute(
                insert(INVITATIONS).values(
                    token_digest=token_digest,
                    client_id=client_id,
                    expires_at=expires_at,
                    created_by=created_by,
                )
            )

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
        assert client.client_id == client_id
        with self._database.writing() as connection:
            _check_certificate(connection, client)
            known = _find(connection, client_id)
            invited = _use_token(connection, client_id, token_digest, now)
            revoked = known is not None and known.revoked_at is not None
            if revoked and token_digest is None:
                raise ClientRevokedError(f"client {client_id} was revoked")
            if known and not revoked and known.node_public_key == client.node_public_key:
                client = replace(client, enrolled_at=known.enrolled_at, last_seen=known.last_seen)
            elif not invited:
                raise BadTokenError(
                    f"no invitation of {client_id} has this token, or it is used or has expired; "
                    "ask the operator for a new one"
                )
            _check_key(connection, client)
            client = replace(client, revoked_at=None)
            connection.execute(delete(CLIENTS).where(CLIENTS.c.client_id == client_id))
            connection.execute(insert(CLIENTS).values(**values(CLIENTS, client)))
            _add_certificate(connection, client, now)
        return client

    def clients(self) -> list[Client]:
        """Returns every client, revoked ones among them, by name."""
        query = select(CLIENTS).order_by(CLIENTS.c.client_id)
        with self._database.reading() as connection:
            return [Client(**row) for row in connection.execute(query).mappings()]

    def client(self, client_id: str) -> Client:
        """Returns one client.

        Raises:
            NotFoundError: If it never enrolled.
        """
        with self._database.reading() as connection:
            return _known(connection, client_id)

    def revoke_client(self, client_id: str, reason: str, now: datetime) -> Client:
        """Takes the client out, and its certificates for ever; again it changes nothing.

        Invitations that it has not used are withdrawn.

        Raises:
            NotFoundError: If it never enrolled.
        """
        with self._database.writing() as connection:
            client = _known(connection, client_id)
            if client.revoked_at is not None:
                return client
            connection.execute(
                update(CLIENTS).where(CLIENTS.c.client_id == client_id).values(revoked_at=now)
            )
            connection.execute(
                update(CERTIFICATES)
                .where(CERTIFICATES.c.client_id == client_id, CERTIFICATES.c.revoked_at.is_(None))
                .values(revoked_at=now, reason=reason)
            )
            connection.execute(
                delete(INVITATIONS).where(
                    INVITATIONS.c.client_id == client_id, INVITATIONS.c.used_at.is_(None)
                )
            )
        return replace(client, revoked_at=now)

    def certificate_revoked(self, client_id: str, serial: str) -> bool:
        """Returns whether a certificate was taken out with its client, though it came back since.

        Args:
            client_id: The name in the certificate.
            serial: Of the certificate, hex.
        """
        with self._database.reading() as connection:
            return _is_revoked(connection, client_id, serial)

    def seen(self, client_id: str, now: datetime) -> None:
        """Remembers that the client called, to within ten seconds.

        Raises:
            NotFoundError: If it never enrolled.
        """
        with self._database.reading() as connection:
            last = _known(connection, client_id).last_seen
        if last is not None and now - last < _SEEN_RESOLUTION:
            return
        with self._database.writing() as connection:
            connection.execute(
                update(CLIENTS)
                .where(
                    CLIENTS.c.client_id == client_id,
                    or_(CLIENTS.c.last_seen.is_(None), CLIENTS.c.last_seen < now),
                )
                .values(last_seen=now)
            )

    def use_nonce(self, serial: str, nonce: bytes, expires_at: datetime, now: datetime) -> bool:
        """Returns whether this is the first request with the nonce under the certificate.

        Args:
            serial: Of the certificate, hex.
            nonce: Of the request.
            expires_at: When the request's time runs out; what has run out already gives False.
            now: The clock.
        """
        if expires_at <= now:
            return False
        where = (NONCES.c.certificate_serial == serial, NONCES.c.nonce == nonce)
        with self._database.writing() as connection:
            connection.execute(delete(NONCES).where(NONCES.c.expires_at < now - _KEPT_AFTERWARDS))
            if connection.execute(select(NONCES).where(*where)).one_or_none() is not None:
                return False
            connection.execute(
                insert(NONCES).values(certificate_serial=serial, nonce=nonce, expires_at=expires_at)
            )
        return True


def _find(connection: Connection, client_id: str) -> Client | None:
    found = one(connection, CLIENTS, Client, CLIENTS.c.client_id == client_id)
    return None if found is None else Client(**found)


def _known(connection: Connection, client_id: str) -> Client:
    client = _find(connection, client_id)
    if client is None:
        raise NotFoundError(f"there is no client {client_id!r}")
    return client


def _is_revoked(connection: Connection, client_id: str, serial: str) -> bool:
    query = select(CERTIFICATES.c.revoked_at).where(
        CERTIFICATES.c.client_id == client_id,
        CERTIFICATES.c.certificate_serial == serial,
        CERTIFICATES.c.revoked_at.is_not(None),
    )
    return connection.execute(query).one_or_none() is not None


def _check_certificate(connection: Connection, client: Client) -> None:
    if _is_revoked(connection, client.client_id, client.certificate_serial):
        raise ClientRevokedError(
            f"the certificate {client.certificate_serial} of {client.client_id} was revoked; it "
            "needs a new one"
        )


def _check_key(connection: Connection, client: Client) -> None:
    query = select(CLIENTS.c.client_id).where(
        CLIENTS.c.node_public_key == client.node_public_key,
        CLIENTS.c.client_id != client.client_id,
    )
    if connection.execute(query).one_or_none() is not None:
        raise KeyInUseError(
            f"the node key of {client.client_id} is another client's; every client makes its own"
        )


def _use_token(
    connection: Connection, client_id: str, token_digest: str | None, now: datetime
) -> bool:
    used = connection.execute(
        update(INVITATIONS)
        .where(
            INVITATIONS.c.token_digest == token_digest,
            INVITATIONS.c.client_id == client_id,
            INVITATIONS.c.used_at.is_(None),
            INVITATIONS.c.expires_at > now,
        )
        .values(used_at=now)
    )
    return used.rowcount == 1


def _add_certificate(connection: Connection, client: Client, now: datetime) -> None:
    query = select(CERTIFICATES.c.client_id).where(
        CERTIFICATES.c.client_id == client.client_id,
        CERTIFICATES.c.certificate_serial == client.certificate_serial,
    )
    if connection.execute(query).one_or_none() is None:
        connection.execute(
            insert(CERTIFICATES).values(
                client_id=client.client_id,
                certificate_serial=client.certificate_serial,
                enrolled_at=now,
            )
        )

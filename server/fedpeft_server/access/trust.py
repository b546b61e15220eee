"""Whose certificate holds now, and the server's own; files that change are read again."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509

from fedpeft.errors import IdentityError
from fedpeft.identity.certificates import Identity, identify, read_revocations, roles_of
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role

_T = TypeVar("_T")


class Trust:
    """Checks certificates against the authority, the clock and the revocation list.

    It fails closed: without a list that is valid now nobody is trusted.
    """

    def __init__(self, authority: x509.Certificate, revocations: Path) -> None:
        """Takes the authority's certificate and where its revocation list lies."""
        self._authority = authority
        self._revocations = _Reread([revocations], lambda: read_revocations(revocations))

    def identify(self, certificate: x509.Certificate, now: datetime) -> Identity:
        """Returns who holds a certificate.

        Raises:
            IdentityError: If it does not hold now; the message may be shown to its holder.
        """
        try:
            revocations = self._revocations.current()
        except IdentityError as error:
            raise IdentityError(
                "the server has no readable list of revoked certificates, so it trusts nobody; "
                "tell its operator"
            ) from error
        return identify(certificate, self._authority, revocations, now)


class ServerIdentity:
    """The server's own key and certificate, which can be renewed while it runs."""

    def __init__(self, key: Path, certificate: Path, authority: Path) -> None:
        """Reads the files.

        Raises:
            IdentityError: If one is missing, they do not belong together, or the certificate is no
                server's or does not hold now.
        """
        self._files = _Reread(
            [key, certificate], lambda: Credentials.read(key, certificate, authority)
        )
        self._lock = threading.Lock()
        self._last = self._files.current()
        if Role.SERVER not in roles_of(self._last.certificate):
            raise IdentityError(
                f"the certificate {certificate} is not a server's; issue it with --role server and "
                "--host"
            )

    def current(self) -> Credentials:
        """Returns what the files hold; while they are being replaced, what they held before."""
        with self._lock:
            # Half of a new pair is none: the old one is still good, and a later call reads again.
            with suppress(IdentityError):
                self._last = self._files.current()
            return self._last

    def is_called(self, host: str) -> bool:
        """Returns whether the certificate is for this host."""
        names = self.current().certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        try:
            address = ip_address(host)
        except ValueError:
            hosts = [name.lower() for name in names.value.get_values_for_type(x509.DNSName)]
            return host in hosts or _wildcard(host) in hosts
        return address in names.value.get_values_for_type(x509.IPAddress)


def _wildcard(host: str) -> str:
    """The wildcard that would stand for a host in a certificate."""
    return "*." + host.partition(".")[2]


class _Reread(Generic[_T]):
    """What files hold, read again when one of them was replaced or written."""

    def __init__(self, paths: list[Path], read: Callable[[], _T]) -> None:
        self._paths, self._read = paths, read
        self._lock = threading.Lock()
        self._stamp: list[tuple[int, ...]] | None = None
        self._held: _T | None = None

    def current(self) -> _T:
        with self._lock:
            try:
                stamp = [_stamp(path.stat()) for path in self._paths]
            except OSError:
                stamp = None
            if stamp is None or stamp != self._stamp or self._held is None:
                self._held = self._read()  # where this fails, the next call tries again
                self._stamp = stamp
            return self._held


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_size, found.st_ino

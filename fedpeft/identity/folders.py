"""The folder of a holder, filled: by the holder with a key and a request, by the authority back."""

from collections.abc import Sequence
from pathlib import Path

from fedpeft.files import write_text
from fedpeft.identity import authority
from fedpeft.identity.authority import Authority, Issued
from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY, REQUEST
from fedpeft.identity.keys import common_name, new_key, write_request
from fedpeft.identity.roles import Role


def request_in(folder: Path, name: str) -> None:
    """Makes a key and a request in a holder's folder.

    Raises:
        IdentityError: If there is a key already, or the name cannot be used.
    """
    common_name(name)  # before there is a key
    write_request(new_key(folder / KEY), name, folder / REQUEST)


def issue_into(
    folder: Path,
    request: Path,
    ca: Path,
    roles: Sequence[Role],
    *,
    days: int,
    hosts: Sequence[str] = (),
    renew: bool = False,
) -> Issued:
    """Signs a request, and puts into a folder what its holder needs besides the key.

    Args:
        folder: Gets the certificate, the authority's, and for a server the revocation list.
        request: What `request_in` made.
        ca: The authority's folder.
        roles: See `Authority.issue`; so are `days`, `hosts` and `renew`.
        days: Validity.
        hosts: Of a server.
        renew: Although the name holds a valid certificate.

    Raises:
        IdentityError: If it cannot be granted.
    """
    opened = Authority(ca)
    folder.mkdir(parents=True, exist_ok=True)
    issued = opened.issue(request, roles, folder / CERTIFICATE, days=days, hosts=hosts, renew=renew)
    copies = {authority.CERTIFICATE: AUTHORITY}
    if Role.SERVER in roles:
        copies[authority.REVOKED] = authority.REVOKED
    for source, target in copies.items():
        write_text(folder / target, (ca / source).read_text(encoding="ascii"))
    return issued

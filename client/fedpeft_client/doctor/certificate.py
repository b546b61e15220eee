"""Key and certificate of the client."""

from datetime import timedelta

from cryptography import x509

from fedpeft.errors import FedpeftError
from fedpeft.identity.certificates import roles_of
from fedpeft.identity.roles import Role
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine

_SOON = timedelta(days=30)


def check_certificate(machine: Machine) -> Finding:
    """Looks for a data owner's certificate with its key, which holds for another month."""
    held = machine.credentials
    if held is None:
        return Finding.skipped("no --identity")
    if isinstance(held, FedpeftError):
        return Finding.fail(str(held), "put in order what it says, then ask again")
    roles = roles_of(held.certificate)
    if Role.DATA_OWNER not in roles:
        names = ", ".join(sorted(roles)) or "none"
        return Finding.fail(
            f"the certificate of {held.name!r} has the roles: {names}",
            "ask the operator for one with --role data-owner",
        )
    soon = machine.now() + _SOON
    if held.authority.not_valid_after_utc < soon:
        return Finding.warn(
            f"the authority's certificate expires on {_day(held.authority)}",
            "ask the operator what follows: everybody needs certificates of a new authority",
        )
    if held.certificate.not_valid_after_utc < soon:
        return Finding.warn(
            f"{held.name!r} expires on {_day(held.certificate)}",
            "ask the operator for a new one (`fedpeft pki issue --renew`)",
        )
    return Finding.ok(f"{held.name!r}, a data owner, until {_day(held.certificate)}")


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"

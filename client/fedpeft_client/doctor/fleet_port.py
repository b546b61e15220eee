"""The server's second port, which a client's node calls."""

import socket
import ssl

from fedpeft.identity.credentials import Credentials
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.explain import server_not_trusted
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine, Visit
from fedpeft_client.state_folder import StateFolder

_TIMEOUT_S = 10.0


def check_fleet_port(machine: Machine) -> Finding:
    """Connects in TLS as a node does: it checks the server and shows no certificate."""
    held = machine.credentials
    if not isinstance(held, Credentials):
        return Finding.skipped("no authority's certificate to check the server with")
    where = _address(machine)
    if where is None:
        return Finding.skipped("where it is, only the server says")
    address = ServerAddress.parse(where)
    context = ssl.create_default_context(cadata=held.authority_pem.decode("ascii"))
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=address.host) as secured,
        ):
            return Finding.ok(f"{address} speaks {secured.version()}")
    except ssl.SSLCertVerificationError as error:
        return Finding.fail(server_not_trusted(error, address), "tell the server's operator")
    except ssl.SSLError as error:
        return Finding.fail(
            f"the TLS handshake with {address} failed ({error.reason})",
            "let the connection through as it is: nothing between may end its TLS",
        )
    except OSError as error:
        return Finding.fail(
            f"{address} cannot be reached ({error.strerror or error})",
            f"open TCP port {address.port} to {address.host} for connections from here",
        )


def _address(machine: Machine) -> str | None:
    if isinstance(machine.visit, Visit):
        return machine.visit.info.fleet_address
    if not isinstance(machine.folder, StateFolder):
        return None
    enrolment = machine.folder.enrolment()
    return None if enrolment is None else enrolment.fleet_address

"""What went wrong with a call, in words: the server's own, or those that TLS has for it.

gRPC says of every failed connection that it failed. Whoever has the wrong authority, an expired
certificate or a mistyped host needs to know which, so one more connection is made to find out.
"""

import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedpeft.errors import FedpeftError, RemoteError, UnavailableError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote.address import ServerAddress
from fedpeft.wire.catalogue import CODE, Refused

_PROBE_TIMEOUT_S = 5.0
_EXPIRED, _WRONG_HOST = 10, 62  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH
_WRONG_ADDRESS = 64  # X509_V_ERR_IP_ADDRESS_MISMATCH

_WE_ARE_NOT_TRUSTED = (
    "the server hung up when it saw your certificate: another authority than the server's issued "
    "it, or it has expired by the server's clock"
)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a failed call means.

    Attributes:
        error: `UnavailableError` where the server could not be reached or is not able to answer
            now, else `RemoteError` with the code of the catalogue.
        may_pass: Whether the same call may go through a moment later.
    """

    error: FedpeftError
    may_pass: bool = False


def explain(error: grpc.RpcError, address: ServerAddress, credentials: Credentials) -> Explanation:
    """Explains why a call failed."""
    assert isinstance(error, grpc.Call)
    status, details = error.code(), error.details() or ""
    code = dict(error.trailing_metadata() or ()).get(CODE)
    if status is grpc.StatusCode.UNAVAILABLE:
        reason, may_pass = details, True
        if not code:
            found, may_pass = _why_unreachable(address, credentials)
            reason = found or details
        return Explanation(error=UnavailableError(f"{address}: {reason}"), may_pass=may_pass)
    if isinstance(code, str):
        return Explanation(error=RemoteError(code, details))
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Explanation(
            error=UnavailableError(
                f"{address} did not answer in time; whether it did what was asked is not known"
            )
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Explanation(error=Refused.TOO_LARGE.error("the request, or the answer to it"))
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return Explanation(error=Refused.UNKNOWN_METHOD.error("this call"))
    internal = Refused.INTERNAL.value.code
    return Explanation(error=RemoteError(internal, f"{address} failed ({status.name}: {details})"))


def _why_unreachable(address: ServerAddress, credentials: Credentials) -> tuple[str, bool]:
    """What connections of our own find, empty if nothing; and whether that may pass."""
    try:
        if _speaks(address, credentials) or _speaks(address, credentials):
            return "", True
    except socket.gaierror:
        return "there is no host of that name; check it", True
    except ConnectionRefusedError:
        return "nothing listens there; check host and port, and that the server runs", True
    except ssl.SSLCertVerificationError as error:
        return server_not_trusted(error, address), False
    except ssl.SSLEOFError:
        return "the connection ended during the TLS handshake", True
    except ssl.SSLError as error:
        return _no_handshake(error), False
    except OSError as error:
        reason = error.strerror or error
        return f"it cannot be reached ({reason}); check the network and firewalls", True
    # Once may be a line that broke.
    return _WE_ARE_NOT_TRUSTED, False


def _speaks(address: ServerAddress, credentials: Credentials) -> bool:
    """Whether the server says something once the handshake is done.

    In TLS 1.3 a server looks at our certificate after that, and gRPC hangs up on one that it does
    not accept without a word, where it would otherwise speak first.
    """
    with _handshaken(address, _context(credentials)) as secured:
        try:
            return secured.recv(1) != b""
        except ConnectionError:
            return False


def _handshaken(address: ServerAddress, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Returns a connection after its TLS handshake.

    It is wrapped before it connects: to wrap a connection that has just been reset leaks it.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, where) in enumerate(found, start=1):
        raw = socket.socket(family, kind, protocol)
        secured = context.wrap_socket(raw, server_hostname=address.host)
        secured.settimeout(_PROBE_TIMEOUT_S)
        try:
            secured.connect(where)
        except OSError as error:
            secured.close()
            if isinstance(error, ssl.SSLError) or place == len(found):
                raise
        else:
            return secured
    raise socket.gaierror(socket.EAI_NONAME, "no address")


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=credentials.authority_pem.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    # OpenSSL takes a certificate with its key from a file only; it is gone again at once.
    with tempfile.TemporaryDirectory(prefix="fedpeft-") as folder:
        both = Path(folder, "holder.pem")
        both.touch(mode=0o600)
        both.write_bytes(credentials.key_pem + credentials.certificate_pem)
        context.load_cert_chain(both)
    return context


def server_not_trusted(error: ssl.SSLCertVerificationError, address: ServerAddress) -> str:
    """Says what is wrong with the certificate of a server."""
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired; its operator must renew it"
    if error.verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
        return (
            f"the server's certificate is not for {address.host!r}; call it by a name in its "
            "certificate, or have one issued with this name (`fedpeft pki issue --host`)"
        )
    return (
        "the server's certificate was not issued by the authority that you trust "
        f"({error.verify_message}); check the server, and the authority's certificate"
    )


def _no_handshake(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    if "WRONG_VERSION_NUMBER" in reason:
        return "what listens there does not speak TLS; check the port"
    return f"the TLS handshake failed ({reason})"

"""Certificates that hold at first and then no longer, and those that never did."""

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from fedpeft.errors import IdentityError, RemoteError, UnavailableError
from fedpeft.identity.authority import CERTIFICATE as CA_CERTIFICATE
from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY
from fedpeft.identity.roles import Role
from fedpeft.remote import Connection
from fedpeft_server.access.trust import ServerIdentity, Trust
from tests.server.control_rig import Rig, listening
from tests.server.holders import LOCAL, Holders
from tests.server.runs import submitted


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path) as opened:
        yield opened


def refusal(connection: Connection) -> tuple[str, str]:
    with pytest.raises(RemoteError) as refused:
        connection.get_server()
    return refused.value.code, str(refused.value)


def test_revoked_while_connected(rig: Rig) -> None:
    """The next call on the open connection is refused, and a stream that is open ends."""
    connection = rig.connect("reader")
    run_id = submitted(rig)
    ended: list[RemoteError] = []
    seen = threading.Event()

    def watch() -> None:
        try:
            for _ in connection.watch_run(run_id):
                seen.set()
        except RemoteError as error:
            ended.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert seen.wait(20)
    rig.holders.authority.revoke(rig.holders.serial("reader"))
    watcher.join(20)
    assert [error.code for error in ended] == ["not-trusted"]
    assert refusal(connection) == (
        "not-trusted",
        "the certificate is not valid here: the certificate was revoked",
    )
    assert rig.connect("auditor").get_server().caller == "auditor"


def test_without_a_revocation_list_nobody_is_trusted(rig: Rig) -> None:
    connection = rig.connect("operator")
    kept = rig.holders.revocations.read_bytes()
    for content in (None, b"", b"no list", kept[:200]):
        rig.holders.revocations.unlink(missing_ok=True)
        if content is not None:
            rig.holders.revocations.write_bytes(content)
        code, message = refusal(connection)
        assert code == "not-trusted"
        assert str(rig.folder) not in message
    rig.holders.revocations.write_bytes(kept)
    assert connection.get_server().caller == "operator"


def test_another_authoritys_list_is_no_list(rig: Rig, tmp_path: Path) -> None:
    other = Holders(tmp_path / "other")  # of the same name: only its signature tells
    rig.holders.revocations.write_bytes(other.revocations.read_bytes())
    code, message = refusal(rig.connect("operator"))
    assert code == "not-trusted"
    assert "another authority's" in message


def test_an_expired_list_is_no_list(rig: Rig) -> None:
    trust = Trust(rig.holders.authority.certificate, rig.holders.revocations)
    certificate, now = rig.holders.of("operator").certificate, datetime.now(UTC)
    assert trust.identify(certificate, now).name == "operator"
    with pytest.raises(IdentityError, match="the revocation list expired"):
        trust.identify(certificate, now + timedelta(days=31))


def test_a_certificate_that_expires_on_an_open_connection(rig: Rig) -> None:
    trust = Trust(rig.holders.authority.certificate, rig.holders.revocations)
    certificate, now = rig.holders.of("operator").certificate, datetime.now(UTC)
    with pytest.raises(IdentityError, match="the certificate is valid from"):
        trust.identify(certificate, now + timedelta(days=61))


def test_a_list_that_was_replaced_in_the_same_instant_is_read(rig: Rig) -> None:
    """Its time may be that of the old one, where clocks are coarse."""
    trust = Trust(rig.holders.authority.certificate, rig.holders.revocations)
    certificate, now = rig.holders.of("reader").certificate, datetime.now(UTC)
    trust.identify(certificate, now)
    before = rig.holders.revocations.stat()
    rig.holders.authority.revoke(rig.holders.serial("reader"))
    os.utime(rig.holders.revocations, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IdentityError, match="was revoked"):
        trust.identify(certificate, now)


def test_tls_itself_refuses_strangers(rig: Rig, tmp_path: Path) -> None:
    """Another authority's certificate, of one with the right name; and an expired one."""
    other = Holders(tmp_path / "other")
    other.issue("operator", Role.OPERATOR)
    rig.holders.issue("late", Role.OPERATOR)
    rig.holders.expire("late")
    for folder in (other.folder / "operator", rig.holders.folder / "late"):
        credentials = grpc.ssl_channel_credentials(
            rig.holders.of("reader").authority_pem,
            (folder / KEY).read_bytes(),
            (folder / CERTIFICATE).read_bytes(),
        )
        with grpc.secure_channel(rig.address, credentials) as opened:
            with pytest.raises(grpc.RpcError) as refused:
                opened.unary_unary("/fedpeft.wire.v1.Server/GetServer")(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_server_certificate_needs_no_restart(rig: Rig) -> None:
    folder = rig.holders.folder / "coordinator"
    before = (folder / CERTIFICATE).read_bytes()
    rig.connect("operator").get_server()
    renewed = rig.holders.issue("coordinator", Role.SERVER, hosts=LOCAL, at="renewed")
    (folder / KEY).write_bytes((renewed / KEY).read_bytes())
    # Between the two writes key and certificate do not belong together: the old pair goes on.
    rig.connect("auditor").get_server()
    (folder / CERTIFICATE).write_bytes((renewed / CERTIFICATE).read_bytes())
    assert tls_certificate(rig) == (renewed / CERTIFICATE).read_bytes() != before
    rig.connect("reader").get_server()


def tls_certificate(rig: Rig) -> bytes:
    """What the server shows in a new handshake, PEM."""
    import ssl

    context = ssl.create_default_context(cafile=str(rig.holders.folder / "reader" / AUTHORITY))
    reader = rig.holders.folder / "reader"
    context.load_cert_chain(reader / CERTIFICATE, reader / KEY)
    import socket

    with (
        socket.create_connection(("localhost", rig.control.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def test_a_server_needs_a_servers_certificate(rig: Rig) -> None:
    reader = rig.holders.folder / "reader"
    with pytest.raises(IdentityError, match="is not a server's"):
        ServerIdentity(reader / KEY, reader / CERTIFICATE, reader / AUTHORITY)


def test_a_server_knows_its_names(tmp_path: Path) -> None:
    holders = Holders(tmp_path)
    hosts = ["fed.example.org", "*.fed.example.org", "::1", "127.0.0.1"]
    folder = holders.issue("coordinator", Role.SERVER, hosts=hosts)
    identity = ServerIdentity(folder / KEY, folder / CERTIFICATE, folder / AUTHORITY)
    for host in ("fed.example.org", "a.fed.example.org", "::1", "0:0:0:0:0:0:0:1", "127.0.0.1"):
        assert identity.is_called(host), host
    for host in ("example.org", "a.b.fed.example.org", "fed.example.org.evil.org", "127.0.0.2", ""):
        assert not identity.is_called(host), host


def test_an_unreachable_server_is_another_error(rig: Rig) -> None:
    authority = read_certificate(rig.holders.ca / CA_CERTIFICATE)
    assert authority == rig.holders.of("reader").authority
    connection = rig.connect("reader")
    rig.control.stop()
    with pytest.raises(UnavailableError, match="nothing listens there"):
        connection.get_server()

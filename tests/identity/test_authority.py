"""The authority against real TLS: who gets in, and who does not."""

import json
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from fedpeft.cli.main import app
from fedpeft.errors import IdentityError
from fedpeft.identity import authority as module
from fedpeft.identity.authority import CERTIFICATE, ISSUED, KEY, REVOKED, Authority
from fedpeft.identity.certificates import Identity, identify, read_certificate, read_revocations
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import common_name, new_key, read_key, write_request
from fedpeft.identity.roles import Role

LOCAL = ("127.0.0.1", "localhost")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "test authority")


def holder(
    authority: Authority,
    folder: Path,
    name: str,
    *roles: Role,
    days: int = 30,
    hosts: tuple[str, ...] = (),
) -> Path:
    """A folder with key and certificate."""
    write_request(new_key(folder / "key.pem"), name, folder / "request.pem")
    authority.issue(folder / "request.pem", roles, folder / "cert.pem", days=days, hosts=hosts)
    return folder


def check(folder: Path, ca: Path, now: datetime | None = None) -> Identity:
    return identify(
        read_certificate(folder / "cert.pem"),
        read_certificate(ca / CERTIFICATE),
        read_revocations(ca / REVOKED),
        now or datetime.now(UTC),
    )


def handshake(server: Path, client: Path, ca: Path, host: str = "localhost") -> str:
    """The client's name as the server saw it in mutual TLS 1.3."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.minimum_version = ssl.TLSVersion.TLSv1_3
    listening.verify_mode = ssl.CERT_REQUIRED
    listening.load_cert_chain(server / "cert.pem", server / "key.pem")
    listening.load_verify_locations(ca / CERTIFICATE)
    calling = ssl.create_default_context(cafile=str(ca / CERTIFICATE))
    calling.load_cert_chain(client / "cert.pem", client / "key.pem")
    names: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as accepting:

        def serve() -> None:
            connection, _ = accepting.accept()
            try:
                with listening.wrap_socket(connection, server_side=True) as secured:
                    subject = secured.getpeercert()["subject"]
                    names.append(dict(part[0] for part in subject)["commonName"])
                    secured.sendall(b"in")
            except ssl.SSLError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(accepting.getsockname()) as raw,
                calling.wrap_socket(raw, server_hostname=host) as secured,
            ):
                assert secured.recv(2) == b"in"
        finally:
            thread.join()
    return names[0]


def test_mutual_tls_between_those_who_were_issued(authority: Authority, tmp_path: Path) -> None:
    server = holder(authority, tmp_path / "s", "coordinator", Role.SERVER, hosts=LOCAL)
    client = holder(authority, tmp_path / "c", "clinic", Role.DATA_OWNER)
    for host in LOCAL:
        assert handshake(server, client, tmp_path / "ca", host) == "clinic"
    found = check(client, tmp_path / "ca")
    assert (found.name, found.roles) == ("clinic", {Role.DATA_OWNER})
    assert found.not_after <= datetime.now(UTC) + timedelta(days=30)


def test_tls_refuses_other_hosts_and_other_authorities(
    authority: Authority, tmp_path: Path
) -> None:
    server = holder(authority, tmp_path / "s", "coordinator", Role.SERVER, hosts=("localhost",))
    client = holder(authority, tmp_path / "c", "clinic", Role.DATA_OWNER)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(server, client, tmp_path / "ca", "127.0.0.1")
    other = Authority.create(tmp_path / "other", "test authority")
    stranger = holder(other, tmp_path / "x", "clinic", Role.OPERATOR)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        handshake(server, stranger, tmp_path / "ca")
    with pytest.raises(IdentityError, match="issued by another authority"):
        check(stranger, tmp_path / "ca")


def test_a_client_cannot_play_the_server(authority: Authority, tmp_path: Path) -> None:
    client = holder(authority, tmp_path / "c", "clinic", Role.OPERATOR)
    with pytest.raises(ssl.SSLError):
        handshake(client, client, tmp_path / "ca")


def test_a_revoked_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    folder = holder(authority, tmp_path / "c", "clinic", Role.DATA_OWNER)
    other = holder(authority, tmp_path / "d", "bank", Role.DATA_OWNER)
    serial = check(folder, tmp_path / "ca").serial
    revoked = authority.revoke(serial)
    assert revoked.revoked_at is not None
    with pytest.raises(IdentityError, match="was revoked"):
        check(folder, tmp_path / "ca")
    assert check(other, tmp_path / "ca").name == "bank"
    assert authority.revoke(serial) == revoked, "revoked once"
    authority.refresh()
    with pytest.raises(IdentityError, match="was revoked"):
        check(folder, tmp_path / "ca")
    assert [issued.revoked_at is None for issued in authority.issued()] == [False, True]
    with pytest.raises(IdentityError, match="no certificate with the serial number"):
        authority.revoke("abc")


def test_time_ends_certificates_and_lists(authority: Authority, tmp_path: Path) -> None:
    folder = holder(authority, tmp_path / "c", "clinic", Role.READER, days=40)
    now = datetime.now(UTC)
    for days, message in ((-1, "valid from"), (31, "revocation list expired"), (41, "valid from")):
        with pytest.raises(IdentityError, match=message):
            check(folder, tmp_path / "ca", now + timedelta(days=days))
    assert check(folder, tmp_path / "ca", now + timedelta(days=9)).roles == {Role.READER}


def test_a_revocation_list_of_another_authority_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    """Even of one that has the same name."""
    folder = holder(authority, tmp_path / "c", "clinic", Role.READER)
    Authority.create(tmp_path / "other", "test authority")
    (tmp_path / "ca" / REVOKED).write_bytes((tmp_path / "other" / REVOKED).read_bytes())
    with pytest.raises(IdentityError, match="is another authority's, or was changed"):
        check(folder, tmp_path / "ca")


def test_a_missing_revocation_list_lets_nobody_in(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca" / REVOKED).unlink()
    with pytest.raises(IdentityError, match="expected a revocation list"):
        read_revocations(tmp_path / "ca" / REVOKED)


def test_a_request_gives_name_and_key_and_nothing_else(
    authority: Authority, tmp_path: Path
) -> None:
    """It cannot ask for a role."""
    key = new_key(tmp_path / "key.pem")
    wanted = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(Role.OPERATOR.uri), x509.DNSName("localhost")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name("clinic"))
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "request.pem").write_bytes(request.public_bytes(Encoding.PEM))
    path = tmp_path / "cert.pem"
    authority.issue(tmp_path / "request.pem", [Role.READER], path, days=1)
    certificate = read_certificate(path)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [Role.READER.uri]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert check(tmp_path, tmp_path / "ca").roles == {Role.READER}


def test_a_changed_request_is_refused(authority: Authority, tmp_path: Path) -> None:
    write_request(new_key(tmp_path / "key.pem"), "clinic", tmp_path / "request.pem")
    pem = (tmp_path / "request.pem").read_bytes()
    der = x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)
    changed = x509.load_der_x509_csr(der.replace(b"clinic", b"clinig"))
    (tmp_path / "request.pem").write_bytes(changed.public_bytes(Encoding.PEM))
    with pytest.raises(IdentityError, match="was changed after it was signed"):
        authority.issue(tmp_path / "request.pem", [Role.READER], tmp_path / "x.pem", days=1)
    assert not (tmp_path / "x.pem").exists()
    assert authority.issued() == []


@pytest.mark.parametrize("kind", ["rsa", "p384"])
def test_other_keys_are_refused(authority: Authority, tmp_path: Path, kind: str) -> None:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name("clinic"))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    (tmp_path / "request.pem").write_bytes(pem)
    with pytest.raises(IdentityError, match="another kind of key"):
        authority.issue(tmp_path / "request.pem", [Role.READER], tmp_path / "x.pem", days=1)


@pytest.mark.parametrize(
    ("roles", "days", "hosts", "message"),
    [
        ([], 1, (), "at least one role"),
        ([Role.READER], 0, (), "valid for 1 to 825 days, got 0"),
        ([Role.READER], 826, (), "valid for 1 to 825 days, got 826"),
        ([Role.SERVER], 1, (), "a server needs the hosts"),
        ([Role.READER], 1, ("localhost",), "a server needs the hosts"),
        ([Role.SERVER], 1, ("ümlaut",), "is no name of a host"),
    ],
)
def test_what_cannot_be_granted(
    authority: Authority,
    tmp_path: Path,
    roles: list[Role],
    days: int,
    hosts: tuple[str, ...],
    message: str,
) -> None:
    write_request(new_key(tmp_path / "key.pem"), "clinic", tmp_path / "request.pem")
    with pytest.raises(IdentityError, match=message):
        authority.issue(tmp_path / "request.pem", roles, tmp_path / "x.pem", days=days, hosts=hosts)
    assert authority.issued() == []


def test_a_name_is_held_once_unless_it_is_renewed(authority: Authority, tmp_path: Path) -> None:
    holder(authority, tmp_path / "a", "clinic", Role.DATA_OWNER)
    with pytest.raises(IdentityError, match="'clinic' holds the certificate"):
        holder(authority, tmp_path / "b", "clinic", Role.DATA_OWNER)
    renewed = authority.issue(
        tmp_path / "b" / "request.pem",
        [Role.DATA_OWNER],
        tmp_path / "b" / "cert.pem",
        days=1,
        renew=True,
    )
    first, second = authority.issued()
    assert second == renewed
    authority.revoke(first.serial)
    assert check(tmp_path / "b", tmp_path / "ca").serial == second.serial


def test_an_unknown_role_lets_nobody_in(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = holder(authority, tmp_path / "c", "clinic", Role.READER)
    monkeypatch.setattr("fedpeft.identity.certificates.role_of_uri", lambda uri: None)
    with pytest.raises(IdentityError, match="a role that this fedpeft does not know"):
        check(folder, tmp_path / "ca")


# --- keys


def test_keys_are_their_owners_alone(authority: Authority, tmp_path: Path) -> None:
    for path in (tmp_path / "ca" / KEY, tmp_path / "own.pem"):
        if not path.exists():
            new_key(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(IdentityError, match="there is a key at"):
        new_key(tmp_path / "own.pem")
    (tmp_path / "own.pem").chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        read_key(tmp_path / "own.pem")


def test_an_authority_is_never_overwritten(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="there is a key at"):
        Authority.create(tmp_path / "ca", "again")
    assert Authority(tmp_path / "ca").certificate == authority.certificate


def test_a_mixed_up_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other", "other")
    (tmp_path / "ca" / CERTIFICATE).write_bytes((tmp_path / "other" / CERTIFICATE).read_bytes())
    with pytest.raises(IdentityError, match="do not belong together"):
        Authority(tmp_path / "ca")


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(IdentityError, match="a name must be printable text"):
        common_name(name)


def test_the_record_comes_before_the_certificate(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two leaves a line too many, never an unknown certificate."""

    def crash(path: Path, certificate: x509.Certificate) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_certificate", crash)
    with pytest.raises(KeyboardInterrupt):
        holder(authority, tmp_path / "c", "clinic", Role.READER)
    [issued] = authority.issued()
    assert issued.name == "clinic"


def test_a_damaged_record_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca" / ISSUED).write_text('{"serial": 1}\n', encoding="utf-8")
    with pytest.raises(IdentityError, match="is damaged"):
        authority.issued()


# --- the command


def test_the_whole_way_on_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["pki", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    ca, clinic = tmp_path / "ca", tmp_path / "clinic"
    run("init", ca, "--name", "the federation")
    run("request", "clinic", "--output", clinic)
    issued = json.loads(
        run(
            *("issue", clinic / "request.pem", "--ca", ca, "--role", "data-owner"),
            *("--role", "reader", "--json"),
        )
    )
    assert [issued[0]["name"], issued[0]["roles"]] == ["clinic", ["data-owner", "reader"]]
    assert "clinic" in run("list", "--ca", ca)
    assert check(clinic, ca).roles == {Role.DATA_OWNER, Role.READER}
    shown = json.loads(run("show", clinic, "--json"))
    assert (shown["name"], shown["serial"]) == ("clinic", issued[0]["serial"])
    run("revoke", issued[0]["serial"], "--ca", ca)
    run("refresh", "--ca", ca)
    assert json.loads(run("list", "--ca", ca, "--json"))[0]["revoked_at"] is not None
    with pytest.raises(IdentityError, match="was revoked"):
        check(clinic, ca)


def test_in_one_step_where_key_and_authority_are_on_one_machine(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["pki", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    ca, server, reader = tmp_path / "ca", tmp_path / "server", tmp_path / "reader"
    run("init", ca)
    run("new", "coordinator", "--ca", ca, "--role", "server", "--host", "localhost", "-o", server)
    run("new", "ann", "--ca", ca, "--role", "reader", "-o", reader)
    theirs = {"key.pem", "request.pem", "cert.pem", "authority.cert.pem"}
    assert {path.name for path in reader.iterdir()} == theirs
    assert {path.name for path in server.iterdir()} == {*theirs, "revoked.crl.pem"}
    assert "ann: reader" in run("show", reader)
    assert handshake(server, reader, ca) == "ann"


def test_what_comes_back_may_go_elsewhere(tmp_path: Path) -> None:
    ca, clinic, back = tmp_path / "ca", tmp_path / "clinic", tmp_path / "back"
    for arguments in (
        ("init", ca),
        ("request", "clinic", "-o", clinic),
        ("issue", clinic / "request.pem", "--ca", ca, "--role", "data-owner", "-o", back),
    ):
        result = CliRunner().invoke(app, ["pki", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert {path.name for path in back.iterdir()} == {"cert.pem", "authority.cert.pem"}
    for path in back.iterdir():
        path.rename(clinic / path.name)
    assert Credentials.in_folder(clinic).name == "clinic"

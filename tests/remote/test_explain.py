"""Connections that fail, in words: whose certificate, which host, or nobody there."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fedpeft.errors import IdentityError, UnavailableError
from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY, Credentials
from fedpeft.identity.roles import Role
from fedpeft.remote import Connection
from tests.server.control_rig import Rig, listening
from tests.server.holders import Holders


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    holders = Holders(tmp_path_factory.mktemp("other"))
    holders.issue("operator", Role.OPERATOR)
    return holders


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by TLS is not waited for: it would be the same again."""
    monkeypatch.setattr("fedpeft.remote.caller._Retry.pause", lambda _: pytest.fail("a pause"))


def failure(address: str, credentials: Credentials) -> str:
    with (
        Connection(address, credentials) as connection,
        pytest.raises(UnavailableError) as refused,
    ):
        connection.get_server()
    return str(refused.value)


def test_a_server_of_another_authority(rig: Rig, other: Holders) -> None:
    message = failure(rig.address, other.of("operator"))
    assert "was not issued by the authority that you trust" in message


def test_a_caller_of_another_authority(rig: Rig, other: Holders) -> None:
    ours, theirs = rig.holders.of("operator"), other.of("operator")
    mixed = Credentials(key=theirs.key, certificate=theirs.certificate, authority=ours.authority)
    message = failure(rig.address, mixed)
    assert "the server hung up when it saw your certificate: another authority" in message


def test_a_callers_certificate_that_expired(rig: Rig) -> None:
    rig.holders.issue("late", Role.OPERATOR)
    rig.holders.expire("late")
    with pytest.raises(IdentityError, match=r"'late' expired on .* --renew"):
        Connection.open(rig.address, rig.holders.folder / "late")
    # A machine whose clock is behind does not notice by itself.
    ours, folder = rig.holders.of("operator"), rig.holders.folder / "late"
    from fedpeft.identity.certificates import read_certificate
    from fedpeft.identity.keys import read_key

    late = Credentials(
        key=read_key(folder / KEY),
        certificate=read_certificate(folder / CERTIFICATE),
        authority=ours.authority,
    )
    assert "or it has expired by the server's clock" in failure(rig.address, late)


def test_a_servers_certificate_for_another_host(tmp_path: Path) -> None:
    with listening(tmp_path) as opened:
        opened.holders.issue("coordinator", Role.SERVER, hosts=["fed.example.org"], at="new")
        for name in (KEY, CERTIFICATE):
            new = (opened.holders.folder / "new" / name).read_bytes()
            (opened.holders.folder / "coordinator" / name).write_bytes(new)
        message = failure(opened.address, opened.holders.of("operator"))
    assert "is not for 'localhost'" in message


def test_nobody_there(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft.remote.caller._Retry.pause", lambda _: False)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    message = failure(f"127.0.0.1:{port}", rig.holders.of("operator"))
    assert "nothing listens there; check host and port" in message


def test_no_such_host(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft.remote.caller._Retry.pause", lambda _: False)
    message = failure("no-such-host.invalid", rig.holders.of("operator"))
    assert "no host of that name" in message or "cannot be reached" in message


def test_something_else_listens(rig: Rig) -> None:
    with talking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        message = failure(f"127.0.0.1:{port}", rig.holders.of("operator"))
    assert "does not speak TLS; check the port" in message


@contextmanager
def talking(words: bytes) -> Iterator[int]:
    """A server that says the same to everybody."""
    with closing(socket.create_server(("127.0.0.1", 0))) as accepting:

        def serve() -> None:
            while True:
                try:
                    connection, _ = accepting.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(accepting.getsockname()[1])
        accepting.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_files_that_do_not_belong_together(rig: Rig, other: Holders, tmp_path: Path) -> None:
    ours, theirs = rig.holders.folder / "operator", other.folder / "operator"
    files = {KEY: ours, CERTIFICATE: ours, AUTHORITY: ours}

    def opened(**changed: Path) -> None:
        chosen = {**files, **changed}
        Credentials.read(*(chosen[name] / name for name in (KEY, CERTIFICATE, AUTHORITY)))

    opened()
    with pytest.raises(IdentityError, match="is not that of the key"):
        opened(**{KEY: theirs})
    with pytest.raises(IdentityError, match="was not issued by the authority in"):
        opened(**{AUTHORITY: theirs})
    with pytest.raises(IdentityError, match="expected a certificate in PEM"):
        opened(**{CERTIFICATE: tmp_path})
    with pytest.raises(IdentityError, match="there is no folder"):
        Credentials.in_folder(tmp_path / "none")

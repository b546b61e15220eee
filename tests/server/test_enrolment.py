"""How clients come in and go: a token for one name, once; a name that is the certificate's."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedpeft.errors import RemoteError
from fedpeft.remote.records import Enrolment
from fedpeft.wire.v1 import clients_pb2
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol, invite, node_key
from tests.server.raw_calls import send_signed


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path, max_clients=2) as opened:
        yield opened


def join(rig: Rig, name: str, token: str, key: bytes | None = None) -> Enrolment:
    return rig.connect(name).enrol_client(key or node_key(), token=token, version="0.1.0")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as error:
        call()
    return error.value.code


def test_a_client_comes_in(rig: Rig) -> None:
    key = node_key()
    enrolment = join(rig, "clinic", invite(rig, "clinic"), key)
    assert enrolment.client_id == "clinic"
    assert enrolment.fleet_address == "localhost:7444", "the host that was called"
    assert enrolment.bundle_digest == "b" * 64
    held = rig.holders.of("coordinator").certificate
    assert enrolment.server_certificate == held.public_bytes(Encoding.DER)
    assert rig.nodes.keys == {"clinic": key}
    rig.nodes.connected = {"clinic"}
    [client] = rig.connect("operator").list_clients()
    assert (client.client_id, client.online, client.revoked_at) == ("clinic", True, None)
    assert client.certificate_serial == rig.holders.serial("clinic")
    assert client.last_seen == client.enrolled_at


def test_the_same_key_again_needs_no_token_and_changes_nothing(rig: Rig) -> None:
    key = enrol(rig, "clinic")
    [before] = rig.state.clients()
    join(rig, "clinic", "", key)
    [after] = rig.state.clients()
    assert (after.enrolled_at, after.node_public_key) == (before.enrolled_at, key)
    assert refused(lambda: join(rig, "clinic", "")) == "bad-token", "another key needs a token"


def test_a_token_is_used_once(rig: Rig) -> None:
    token = invite(rig, "clinic")
    key = node_key()
    join(rig, "clinic", token, key)
    assert refused(lambda: join(rig, "clinic", token)) == "bad-token"
    assert rig.nodes.keys == {"clinic": key}


def test_a_token_is_for_one_name(rig: Rig) -> None:
    """A data owner cannot come in under another's name: it says none, its certificate does."""
    token = invite(rig, "clinic")
    assert refused(lambda: join(rig, "hospital", token)) == "bad-token"
    assert rig.nodes.keys == {}
    assert "client_id" not in clients_pb2.EnrolClientRequest.DESCRIPTOR.fields_by_name
    join(rig, "clinic", token)


def test_a_token_expires(rig: Rig) -> None:
    soon = datetime.now(UTC) - timedelta(seconds=1)
    digest = hashlib.sha256(b"late").hexdigest()
    rig.state.add_invitation("clinic", digest, soon, "operator")
    assert refused(lambda: join(rig, "clinic", "late")) == "bad-token"


def test_a_guessed_token(rig: Rig) -> None:
    invite(rig, "clinic")
    for token in ("", "x", "A" * 43):
        assert refused(lambda token=token: join(rig, "clinic", token)) == "bad-token"  # type: ignore[misc]


def test_a_token_is_stored_nowhere(rig: Rig) -> None:
    token = invite(rig, "clinic")
    for file in rig.folder.glob("server.db*"):
        assert token.encode() not in file.read_bytes(), file


def test_a_nodes_key_is_one_clients(rig: Rig) -> None:
    key = enrol(rig, "clinic")
    token = invite(rig, "hospital")
    assert refused(lambda: join(rig, "hospital", token, key)) == "already-exists"
    join(rig, "hospital", token)


def test_keys_that_are_none_use_up_no_token(rig: Rig) -> None:
    token = invite(rig, "clinic")
    wrong_kind = rsa.generate_private_key(65537, 2048).public_key()
    pem = wrong_kind.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for key in (b"\0", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", pem):
        assert refused(lambda key=key: join(rig, "clinic", token, key)) == "invalid"  # type: ignore[misc]
    assert rig.nodes.keys == {}
    join(rig, "clinic", token)


@pytest.mark.parametrize("protocol", [0, 2, 2**32 - 1])
def test_other_protocols_are_refused(rig: Rig, protocol: int) -> None:
    request = clients_pb2.EnrolClientRequest(
        token=invite(rig, "clinic"), node_public_key=node_key(), protocol=protocol, version="9"
    )
    assert send_signed(rig, "clinic", "Clients/EnrolClient", request).code == "old-protocol"


def test_revoking_a_client_takes_effect_on_its_connection(rig: Rig) -> None:
    key = enrol(rig, "clinic")
    connection = rig.connect("clinic")
    assert connection.list_clients()[0].client_id == "clinic"
    revoked = rig.connect("operator").revoke_client("clinic", "left the study")
    assert revoked.revoked_at is not None
    assert refused(connection.list_clients) == "revoked"
    assert rig.nodes.keys == {}
    assert rig.connect("operator").revoke_client("clinic", "again").revoked_at == revoked.revoked_at
    # Neither its old key nor a new token brings back the same certificate.
    token = invite(rig, "clinic")
    assert refused(lambda: join(rig, "clinic", token, key)) == "revoked"
    assert refused(lambda: join(rig, "clinic", token)) == "revoked"


def test_a_revoked_client_comes_back_with_new_keys(rig: Rig) -> None:
    old = enrol(rig, "clinic")
    rig.connect("operator").revoke_client("clinic", "stolen laptop")
    rig.holders.issue("clinic", *rig.holders.roles("clinic"), at="clinic-2")
    token = invite(rig, "clinic")
    assert refused(lambda: join(rig, "clinic-2", token, old)) == "invalid", "a node's key neither"
    join(rig, "clinic-2", token)
    assert set(rig.nodes.keys) == {"clinic"}
    assert rig.connect("clinic-2").get_server().caller == "clinic"
    assert refused(rig.connect("clinic").get_server) == "revoked", "the laptop is still stolen"


def test_a_renewed_certificate_keeps_the_client(rig: Rig) -> None:
    key = enrol(rig, "clinic")
    rig.holders.issue("clinic", *rig.holders.roles("clinic"), at="clinic-2")
    join(rig, "clinic-2", "", key)
    [client] = rig.state.clients()
    assert client.certificate_serial == rig.holders.serial("clinic-2")


def test_there_is_room_for_so_many(rig: Rig) -> None:
    for name in ("clinic", "hospital"):
        enrol(rig, name)
    assert refused(lambda: invite(rig, "third")) == "busy"
    invite(rig, "clinic")  # not one more
    rig.connect("operator").revoke_client("hospital", "left")
    invite(rig, "third")


def test_enrolment_and_revocation_at_once_leave_no_open_door(rig: Rig) -> None:
    """Whichever comes last, the fleet ends as the database does."""
    key = enrol(rig, "clinic")
    operator, owner = rig.connect("operator"), rig.connect("clinic")
    outcomes: list[str] = []

    def come_in() -> None:
        try:
            owner.enrol_client(key, token="", version="0.1.0")
            outcomes.append("in")
        except RemoteError as error:
            outcomes.append(error.code)

    coming = [threading.Thread(target=come_in) for _ in range(4)]
    for thread in coming:
        thread.start()
    operator.revoke_client("clinic", "at the same time")
    for thread in coming:
        thread.join()
    assert rig.state.client("clinic").revoked_at is not None
    assert rig.nodes.keys == {}, outcomes


def test_a_data_owner_sees_itself_alone(rig: Rig) -> None:
    enrol(rig, "clinic")
    enrol(rig, "hospital")
    assert [c.client_id for c in rig.connect("clinic").list_clients()] == ["clinic"]
    assert [c.client_id for c in rig.connect("auditor").list_clients()] == ["clinic", "hospital"]

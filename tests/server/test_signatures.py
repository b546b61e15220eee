"""Signed requests: one is accepted once, as it is, from its caller, by its server, and soon."""

from datetime import UTC, datetime, timedelta

import pytest

from fedpeft.identity.roles import Role
from fedpeft.wire.signing import AUDIENCE, NONCE, SIGNATURE, TIME, WINDOW
from fedpeft.wire.v1 import clients_pb2
from fedpeft_server.access.rules import RULES
from tests.server.control_rig import Rig
from tests.server.raw_calls import WIRE, Metadata, channel, send, signature

INVITE = f"{WIRE}Clients/InviteClient"
WINDOW_S = WINDOW.total_seconds()


def invitation(name: str, hours: int = 1) -> bytes:
    return clients_pb2.InviteClientRequest(client_id=name, valid_hours=hours).SerializeToString()


def signed(rig: Rig, body: bytes, path: str = INVITE, **how: float | str) -> Metadata:
    return signature(rig.holders.of("operator"), path, body, **how)  # type: ignore[arg-type]


def call(
    rig: Rig, body: bytes, metadata: Metadata, name: str = "operator", path: str = INVITE
) -> str:
    with channel(rig, name) as opened:
        return send(opened, path, body, metadata).code


def num_invitations(rig: Rig, name: str) -> int:
    """How often an invitation of that name was really made, as the audit log has it."""
    log = rig.state.audit(limit=10_000)
    return sum((e.subject, e.outcome) == (name, "ok") for e in log)


def test_a_captured_request_is_accepted_once(rig: Rig) -> None:
    """Byte for byte the same, over the same connection and over another one."""
    body = invitation("captured")
    metadata = signed(rig, body)
    with channel(rig, "operator") as first, channel(rig, "operator") as second:
        assert send(first, INVITE, body, metadata).code == "ok"
        assert send(first, INVITE, body, metadata).code == "replayed"
        assert send(second, INVITE, body, metadata).code == "replayed"
    assert num_invitations(rig, "captured") == 1


def test_the_same_request_signed_anew_is_another_one(rig: Rig) -> None:
    body = invitation("twice")
    assert call(rig, body, signed(rig, body)) == "ok"
    assert call(rig, body, signed(rig, body)) == "ok"


def test_the_body_is_what_was_signed(rig: Rig) -> None:
    body = invitation("small", hours=1)
    metadata = signed(rig, body)
    assert call(rig, invitation("small", hours=2000), metadata) == "not-signed"
    # The same message in other bytes: an unknown field that the parser would ignore.
    assert call(rig, body + b"\xf8\x07\x01", metadata) == "not-signed"
    assert call(rig, body, metadata) == "ok", "a forgery must not use up the nonce"


def test_a_signature_is_for_one_method(rig: Rig) -> None:
    body = clients_pb2.RevokeClientRequest(client_id="x", reason="y").SerializeToString()
    stop = f"{WIRE}Runs/StopRun"  # its request has two texts as well
    assert call(rig, body, signed(rig, body, stop), path=f"{WIRE}Clients/RevokeClient") == (
        "not-signed"
    )


def test_a_signature_is_by_the_key_of_the_connection(rig: Rig) -> None:
    rig.holders.issue("second-operator", *rig.holders.roles("operator"))
    body = invitation("stolen")
    assert call(rig, body, signed(rig, body), name="second-operator") == "not-signed"
    assert num_invitations(rig, "stolen") == 0


@pytest.mark.parametrize(
    ("age_s", "code"),
    [
        (WINDOW_S + 5, "replayed"),
        (-WINDOW_S - 5, "replayed"),
        (WINDOW_S - 20, "ok"),
        (20 - WINDOW_S, "ok"),
        (10.0**9, "replayed"),
    ],
)
def test_a_signature_is_for_now(rig: Rig, age_s: float, code: str) -> None:
    body = invitation("timely")
    assert call(rig, body, signed(rig, body, age_s=age_s)) == code


@pytest.mark.parametrize("audience", ["other.example.org", "localhost.example.org", "127.0.0.2"])
def test_a_signature_is_for_one_server(rig: Rig, audience: str) -> None:
    body = invitation("relayed")
    assert call(rig, body, signed(rig, body, audience=audience)) == "not-signed"


def test_every_name_of_the_server_will_do(rig: Rig) -> None:
    for host in ("localhost", "127.0.0.1"):
        body = invitation("named")
        assert call(rig, body, signed(rig, body, audience=host)) == "ok"


@pytest.mark.parametrize("part", [NONCE, TIME, AUDIENCE, SIGNATURE])
def test_each_part_is_needed_and_bound(rig: Rig, part: str) -> None:
    body = invitation("parts")
    good = dict(signed(rig, body))
    for value in (None, *ODD[part]):
        metadata = {key: old for key, old in good.items() if key != part}
        if value is not None:
            metadata[part] = value
        assert call(rig, body, tuple(metadata.items())) == "not-signed", value
    assert call(rig, body, tuple(good.items())) == "ok"


ODD: dict[str, tuple[str | bytes, ...]] = {
    NONCE: (b"", b"x" * 15, b"x" * 17, b"x" * 16),
    TIME: ("", "-1", "1e12", "1_0", "9" * 16, "0", f"{datetime.now(UTC).timestamp():.0f}"),
    AUDIENCE: ("", "x" * 254, "other", "127.0.0.1"),
    SIGNATURE: (b"", b"\0" * 70, b"x" * 4000),
}


@pytest.mark.parametrize("path", [path for path, rule in RULES.items() if rule.mutates])
def test_every_change_must_be_signed(rig: Rig, path: str) -> None:
    name = "operator" if Role.OPERATOR in RULES[path].roles else "clinic"
    assert call(rig, b"", (), name=name, path=path) == "not-signed"
    assert call(rig, b"", signed(rig, b"x", path), name=name, path=path) == "not-signed"


def test_a_forgotten_nonce_is_of_a_time_that_is_refused(rig: Rig) -> None:
    """What keeps nonces from piling up must not let one be used again."""
    from fedpeft.wire.signing import RequestSignature

    now = datetime.now(UTC)
    made = RequestSignature.make(
        rig.holders.of("operator").key, method=INVITE, audience="localhost", request=b"", now=now
    )
    assert not made.is_recent(made.forgettable_at)
    assert not made.is_recent(made.forgettable_at - timedelta(minutes=4))

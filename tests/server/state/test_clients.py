"""Enrolment, revocation, and requests that are used once."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fedpeft_server.state import (
    BadTokenError,
    ClientRevokedError,
    KeyInUseError,
    NotFoundError,
    State,
    StateError,
    WrongStateError,
)
from tests.server.state.conftest import Execute
from tests.server.state.samples import NOW, SOON, a_client, digest, enrol

TOKEN = digest("token")


def test_a_token_enrols_the_client_it_is_for_and_is_used_up(state: State) -> None:
    state.add_invitation("north", TOKEN, SOON, "operator")
    assert state.clients() == []
    assert state.enrol("north", TOKEN, a_client(), NOW) == a_client()
    assert state.client("north") == a_client()
    # Not with another key, and not for somebody else.
    for other in (a_client(key="new key"), a_client("south")):
        with pytest.raises(BadTokenError, match=f"no invitation of {other.client_id} has this"):
            state.enrol(other.client_id, TOKEN, other, NOW)
    assert state.clients() == [a_client()]


def test_a_token_of_another_client_is_refused_and_stays_good_for_its_own(state: State) -> None:
    state.add_invitation("south", TOKEN, SOON, "operator")
    for token in (TOKEN, digest("made up"), None):
        with pytest.raises(BadTokenError):
            state.enrol("north", token, a_client(), NOW)
    assert state.enrol("south", TOKEN, a_client("south"), NOW).client_id == "south"


def test_a_token_expires(state: State) -> None:
    state.add_invitation("north", TOKEN, SOON, "operator")
    with pytest.raises(BadTokenError):
        state.enrol("north", TOKEN, a_client(), SOON)
    state.enrol("north", TOKEN, a_client(), SOON - timedelta(microseconds=1))


def test_the_same_key_again_needs_no_token_and_renews_the_certificate(state: State) -> None:
    state.add_invitation("north", TOKEN, SOON, "operator")
    state.enrol("north", TOKEN, a_client(), NOW)
    state.seen("north", NOW)
    renewed = a_client(serial="b2", version="0.2.0", enrolled_at=SOON)
    expected = replace(renewed, enrolled_at=NOW, last_seen=NOW)
    assert state.enrol("north", None, renewed, SOON) == expected
    assert state.client("north") == expected
    # Who lost the answer asks again with the token that is used.
    assert state.enrol("north", TOKEN, renewed, SOON) == expected


def test_a_token_that_was_not_needed_is_used_up_all_the_same(state: State) -> None:
    enrol(state, a_client())
    state.add_invitation("north", TOKEN, SOON, "operator")
    state.enrol("north", TOKEN, a_client(), NOW)
    with pytest.raises(BadTokenError):
        state.enrol("north", TOKEN, a_client(key="stolen"), NOW)


def test_another_key_needs_a_token_and_takes_the_place_of_the_first(state: State) -> None:
    enrol(state, a_client())
    changed = a_client(key="new key", enrolled_at=SOON)
    with pytest.raises(BadTokenError):
        state.enrol("north", None, changed, SOON)
    assert enrol(state, changed) == changed
    assert state.clients() == [changed]


def test_a_key_of_another_client_is_refused_and_the_token_is_not_used(state: State) -> None:
    enrol(state, a_client())
    state.add_invitation("south", TOKEN, SOON, "operator")
    thief = replace(a_client("south"), node_public_key=a_client().node_public_key)
    with pytest.raises(KeyInUseError, match="the node key of south is another client's"):
        state.enrol("south", TOKEN, thief, NOW)
    state.enrol("south", TOKEN, a_client("south"), NOW)


def test_revocation_is_final_for_every_certificate_the_client_had(state: State) -> None:
    enrol(state, a_client(serial="a1"))
    state.enrol("north", None, a_client(serial="b2"), NOW)
    state.add_invitation("north", TOKEN, SOON, "operator")
    gone = state.revoke_client("north", "laptop stolen", NOW)
    assert gone == a_client(serial="b2", revoked_at=NOW)
    assert state.revoke_client("north", "again", SOON) == gone
    assert state.client("north") == gone
    for serial in ("a1", "b2"):
        with pytest.raises(ClientRevokedError, match=f"the certificate {serial} of north"):
            enrol(state, a_client(serial=serial))
        assert state.certificate_revoked("north", serial)
        assert not state.certificate_revoked("south", serial)
    assert not state.certificate_revoked("north", "c3")
    # What it was invited with before does not bring it back, nor does the key it is known by.
    with pytest.raises(BadTokenError):
        state.enrol("north", TOKEN, a_client(serial="c3"), NOW)
    with pytest.raises(ClientRevokedError, match="client north was revoked"):
        state.enrol("north", None, a_client(serial="c3"), NOW)
    assert state.client("north") == gone


def test_a_revoked_client_comes_back_with_a_new_certificate_and_a_new_token(state: State) -> None:
    enrol(state, a_client(serial="a1"))
    state.revoke_client("north", "moved", NOW)
    back = a_client(serial="b2", enrolled_at=SOON)
    assert enrol(state, back) == back
    assert state.client("north").revoked_at is None
    assert [state.certificate_revoked("north", serial) for serial in ("a1", "b2")] == [True, False]
    state.revoke_client("north", "moved again", SOON)
    with pytest.raises(ClientRevokedError, match="the certificate b2 of north"):
        enrol(state, a_client(serial="b2"))


def test_clients_come_by_name_and_unknown_ones_are_not_found(state: State) -> None:
    for name in ("west", "east", "north"):
        enrol(state, a_client(name, serial=name))
    state.revoke_client("east", "left", NOW)
    assert [client.client_id for client in state.clients()] == ["east", "north", "west"]
    for call in (
        lambda: state.client("south"),
        lambda: state.revoke_client("south", "why", NOW),
        lambda: state.seen("south", NOW),
    ):
        with pytest.raises(NotFoundError, match="there is no client 'south'"):
            call()


def test_when_a_client_was_seen_never_goes_back(state: State) -> None:
    enrol(state, a_client())
    moments = (NOW, NOW + timedelta(seconds=9), NOW + timedelta(seconds=10), NOW)
    seen = []
    for moment in moments:
        state.seen("north", moment)
        seen.append(state.client("north").last_seen)
    assert seen == [moments[0], moments[0], moments[2], moments[2]]


def test_a_token_itself_is_never_stored(state: State) -> None:
    with pytest.raises(StateError, match="expected the sha256 of a token") as refusal:
        state.add_invitation("north", "fp-secret-token", SOON, "operator")
    assert "fp-secret" not in str(refusal.value)
    state.add_invitation("north", TOKEN, SOON, "operator")
    with pytest.raises(WrongStateError, match="make another token"):
        state.add_invitation("south", TOKEN, SOON, "operator")


def test_a_nonce_is_good_once_under_one_certificate(state: State) -> None:
    assert state.use_nonce("a1", b"n\x001", SOON, NOW)
    assert not state.use_nonce("a1", b"n\x001", SOON, NOW)
    assert not state.use_nonce("a1", b"n\x001", SOON + timedelta(days=1), NOW)
    assert state.use_nonce("b2", b"n\x001", SOON, NOW)
    assert state.use_nonce("a1", b"n\x002", SOON, NOW)


def test_a_request_whose_time_ran_out_is_not_the_first(state: State) -> None:
    assert not state.use_nonce("a1", b"n", NOW, NOW)
    assert not state.use_nonce("a1", b"n", NOW - timedelta(days=9), NOW)


def test_old_nonces_are_pruned_but_not_before_a_clock_that_jumps_is_safe(
    state: State, execute: Execute
) -> None:
    assert state.use_nonce("a1", b"first", SOON, NOW)
    # The clock runs ahead by half a day and is put back: the captured request is still known.
    assert state.use_nonce("a1", b"second", NOW + timedelta(days=1), NOW + timedelta(hours=12))
    assert not state.use_nonce("a1", b"first", SOON, NOW)
    assert state.use_nonce("a1", b"third", NOW + timedelta(days=9), NOW + timedelta(days=3))
    assert execute("SELECT count(*) FROM server_nonces") == [(1,)]

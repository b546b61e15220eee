"""A node on its own machine: what it does while it works, and what no server can make it do."""

import gzip
import threading

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
)

from fedpeft.errors import ConfigError, IdentityError, ProtocolError
from fedpeft.wire.records import to_record
from fedpeft_client.fleet_link import FleetLink
from fedpeft_client.flower_app import Incoming
from fedpeft_server.fleet import Fleet, build_bundle
from tests.fleet.hostile import Hostile, Said
from tests.fleet.parts import LONG_S, Member, Place, Served, collect, make_place, serving

ACTIVATE, PULL = "/v1/fleet/activate-node", "/v1/fleet/pull-messages"
ORDER = to_record(b"order", None)


def said(message: object, status: int = 200, **headers: str) -> Said:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return status, headers, body


WELCOME = said(ActivateNodeResponse(node_id=5))
UNTOLD = 2 * (b"f4240\r\n" + bytes(1_000_000) + b"\r\n") + b"0\r\n\r\n"


def link_to(place: Place, port: int, *, limit: int = 1 << 20) -> FleetLink:
    return FleetLink(
        f"127.0.0.1:{port}",
        authority=place.authority,
        key=Member(place).key,
        heartbeat_s=10.0,
        wait_s=0.0,
        max_message_bytes=limit,
    )


def test_a_server_of_another_authority_is_refused(fleet: Fleet, place: Place, tmp_path) -> None:
    member = Member(make_place(tmp_path))
    member.enrol(fleet)
    node = member.node(fleet)
    with pytest.raises(IdentityError, match="certificate is not the authority's"):
        node.connect()
    node.close()
    assert fleet.online() == {}


def test_a_server_under_another_name_is_refused(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    link = FleetLink(
        f"localhost:{fleet.port}",
        authority=place.authority,
        key=member.key,
        heartbeat_s=10.0,
        wait_s=0.0,
        max_message_bytes=1,
    )
    with pytest.raises(IdentityError, match="certificate is not the authority's"):
        link.activate()
    link.close()


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", "host:x", "user@host:1", "host:1/path", "host:1?x", "http://h:1"],
)
def test_an_address_that_is_none_is_refused(place: Place, address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        FleetLink(
            address,
            authority=place.authority,
            key=Member(place).key,
            heartbeat_s=10.0,
            wait_s=0.0,
            max_message_bytes=1,
        )


def test_an_authority_that_is_none_is_refused(place: Place) -> None:
    for wrong in (b"", b"\xff", b"-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(IdentityError, match="authority's certificate"):
            FleetLink(
                "host:1",
                authority=wrong,
                key=Member(place).key,
                heartbeat_s=10.0,
                wait_s=0.0,
                max_message_bytes=1,
            )


def test_a_node_is_not_sent_elsewhere(place: Place) -> None:
    with Hostile(place, {}) as elsewhere:
        target = f"https://127.0.0.1:{elsewhere.port}{ACTIVATE}"
        with Hostile(place, {ACTIVATE: said(b"", 307, location=target)}) as server:
            link = link_to(place, server.port)
            with pytest.raises(ProtocolError, match="answered 307"):
                link.activate()
            link.close()
        assert elsewhere.asked == []


def other_nodes() -> PullMessagesResponse:
    metadata = Metadata(1, 32 * "ab", 1, 6, "", "1", 2e9, 60.0, "train")
    return PullMessagesResponse(
        messages_list=[message_to_proto(make_message(metadata, content=ORDER))]
    )


def odd_type() -> PullMessagesResponse:
    response = other_nodes()
    response.messages_list[0].metadata.dst_node_id = 5
    response.messages_list[0].metadata.message_type = "import os"
    return response


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (said(UNTOLD, **{"transfer-encoding": "chunked"}), "more than this node takes"),
        (said(bytes(2_000_000)), "more than this node takes"),
        (said(b"", **{"content-length": "9" * 15}), "more than this node takes"),
        (said(gzip.compress(bytes(10_000_000)), **{"content-encoding": "gzip"}), "compressed"),
        (said(b"\x12\x00" * 400_000), "at most 1000 fields"),
        (said(b"\xff\xff"), "protobuf"),
        (said(other_nodes()), "another node's"),
        (said(odd_type()), "cannot be read"),
        (said(b"<html>", 404), "answered 404"),
    ],
    ids=["chunked", "large", "claimed", "packed", "fields", "garbage", "another's", "type", "page"],
)
def test_what_a_server_sends_is_looked_at(place: Place, answer: Said, match: str) -> None:
    with Hostile(place, {ACTIVATE: WELCOME, PULL: answer}) as server:
        link = link_to(place, server.port)
        link.activate()
        with pytest.raises(ProtocolError, match=match):
            link.pull()
        link.close()


def test_a_message_of_no_use_does_not_end_a_node(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    with serving(lambda _: ORDER, member.node(fleet, max_message_bytes=5000)):
        large, small = grid.push_messages(
            grid.create_message(
                to_record(b"b", bytes(size)), "train", member.node_id, "1", ttl=LONG_S
            )
            for size in (10_000, 100)
        )
        assert collect(grid, [small])[small].has_content()
        assert grid.pull_messages([large]) == []


def test_the_text_of_an_exception_stays_on_the_node(fleet: Fleet, place: Place) -> None:
    def fail(_: Incoming) -> RecordDict:
        raise ValueError("patient 4711 has no diagnosis")

    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    with serving(fail, member.node(fleet)):
        (message_id,) = grid.push_messages(
            [grid.create_message(ORDER, "train", member.node_id, "1", ttl=LONG_S)]
        )
        reply = collect(grid, [message_id])[message_id]
    assert (reply.has_content(), reply.error.reason) == (False, "ValueError")


def test_a_node_is_alive_while_it_works(
    fleet: Fleet, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft_client.fleet_node._EARLY", 0.001)
    beats = threading.Semaphore(0)
    state = fleet._link.state
    original = state.acknowledge_node_heartbeat

    def acknowledge(node_id: int, heartbeat_interval: float) -> bool:
        beats.release()
        return original(node_id, heartbeat_interval)

    monkeypatch.setattr(state, "acknowledge_node_heartbeat", acknowledge)
    counted: list[bool] = []

    def work(_: Incoming) -> RecordDict:
        while beats.acquire(blocking=False):
            pass
        counted.extend(beats.acquire(timeout=LONG_S) for _ in range(3))
        return ORDER

    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    with serving(work, member.node(fleet)):
        (message_id,) = grid.push_messages(
            [grid.create_message(ORDER, "train", member.node_id, "1", ttl=LONG_S)]
        )
        collect(grid, [message_id])
    assert counted == [True, True, True]


def test_stopping_does_not_wait_for_the_next_message(place: Place) -> None:
    with Fleet(place.config(max_wait_s=60.0)) as fleet:
        member = Member(place).enrol(fleet)
        served = Served(member.node(fleet, wait_s=60.0), lambda _: ORDER)
        served.node.stop()
        assert served.ended(within_s=30.0) is None
        served.close()
        assert fleet.online() == {}


def test_a_question_of_a_node_that_left_is_answered_at_once(place: Place) -> None:
    """Stopped between two questions, a node says so before it asks the second."""
    with Fleet(place.config(max_wait_s=60.0)) as fleet:
        link = FleetLink(
            f"127.0.0.1:{fleet.port}",
            authority=place.authority,
            key=Member(place).enrol(fleet).key,
            heartbeat_s=10.0,
            wait_s=60.0,
            max_message_bytes=1 << 20,
        )
        link.activate()
        link.deactivate()
        asked = threading.Thread(target=link.pull)
        asked.start()
        asked.join(30.0)
        assert not asked.is_alive()
        link.close()


def test_the_reply_of_a_node_that_was_stopped_meanwhile_is_taken(
    fleet: Fleet, place: Place
) -> None:
    member = Member(place).enrol(fleet)
    node = member.node(fleet)

    def work(_: Incoming) -> RecordDict:
        node.stop()
        while fleet.online():
            threading.Event().wait(0.01)
        return ORDER

    grid = fleet.grid(fleet.open_run(build_bundle()))
    with serving(work, node):
        (message_id,) = grid.push_messages(
            [grid.create_message(ORDER, "train", member.node_id, "1", ttl=LONG_S)]
        )
        assert collect(grid, [message_id])[message_id].has_content()


def test_what_was_not_answered_comes_again_and_what_was_does_not(
    fleet: Fleet, place: Place
) -> None:
    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    link = FleetLink(
        f"127.0.0.1:{fleet.port}",
        authority=place.authority,
        key=member.key,
        heartbeat_s=10.0,
        wait_s=0.0,
        max_message_bytes=1 << 20,
    )
    link.activate()
    (message_id,) = grid.push_messages(
        [grid.create_message(ORDER, "train", member.node_id, "1", ttl=LONG_S)]
    )
    first = link.pull()
    assert first is not None
    assert link.pull() is None
    link.activate()
    second = link.pull()
    assert second is not None
    assert second.metadata.message_id == first.metadata.message_id == message_id
    link.activate()
    assert link.push(Message(ORDER, reply_to=first))
    assert link.pull() is None
    link.activate()
    assert link.pull() is None
    link.close()

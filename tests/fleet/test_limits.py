"""Too much, too slow, too many: what a peer cannot make the public port do."""

import gzip
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node

from fedpeft.errors import ConfigError
from fedpeft_server.fleet import Fleet
from tests.fleet.parts import LONG_S, Member, Peer, Place, signed

PUSH = "/v1/fleet/push-messages"
PULL = "/v1/fleet/pull-messages"
LIMIT = 200_000


@pytest.fixture
def small(place: Place) -> Iterator[Fleet]:
    with Fleet(place.config(max_message_bytes=LIMIT)) as fleet:
        yield fleet


@pytest.fixture
def hasty(place: Place) -> Iterator[Fleet]:
    with Fleet(place.config(head_timeout_s=1.5)) as fleet:
        yield fleet


def raw(fleet: Fleet, place: Place) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=place.authority.decode())
    connected = socket.create_connection(("127.0.0.1", fleet.port), timeout=LONG_S)
    return context.wrap_socket(connected, server_hostname="127.0.0.1")


def head(path: str, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/protobuf"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connected: ssl.SSLSocket) -> bytes:
    """Everything that the server says before it hangs up."""
    said = b""
    try:
        while data := connected.recv(1 << 16):
            said += data
    except OSError:
        pass
    return said


def active(fleet: Fleet, place: Place) -> Member:
    member = Member(place).enrol(fleet)
    request = ActivateNodeRequest(public_key=member.public_key, heartbeat_interval=10)
    peer = Peer(fleet, place)
    assert peer.post("/v1/fleet/activate-node", request, signed(member.key)).status_code == 200
    peer.http.close()
    return member


@pytest.mark.parametrize(("path", "limit"), [(PUSH, LIMIT), (PULL, 64 * 1024)])
def test_a_length_that_is_too_large_is_refused_unread(
    small: Fleet, place: Place, path: str, limit: int
) -> None:
    member = active(small, place)
    for claimed in (limit + 1, 10_000_000_000, 10**19):
        with raw(small, place) as connected:
            connected.sendall(head(path, {"content-length": str(claimed), **signed(member.key)}))
            assert answer(connected).startswith(b"HTTP/1.1 413")
    exact = Peer(small, place).post(path, bytes(limit), signed(member.key))
    assert (exact.status_code, exact.text) == (400, "malformed")


@pytest.mark.parametrize(("path", "limit"), [(PUSH, LIMIT), (PULL, 64 * 1024)])
def test_a_body_without_length_is_counted(
    small: Fleet, place: Place, path: str, limit: int
) -> None:
    member = active(small, place)
    sent = 0
    with raw(small, place) as connected:
        connected.sendall(head(path, {"transfer-encoding": "chunked", **signed(member.key)}))
        piece = bytes(10_000)
        try:
            for _ in range(1000):
                connected.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                sent += len(piece)
        except OSError:
            pass
        said = answer(connected)
    assert b"413" in said or sent < 1000 * len(piece)
    assert small.online()  # and it still serves


def test_a_strangers_body_is_not_read_at_all(small: Fleet, place: Place) -> None:
    stranger = Member(place)
    for headers, status in (({}, b"401"), (signed(stranger.key), b"403")):
        with raw(small, place) as connected:
            connected.sendall(head(PUSH, {"content-length": str(LIMIT), **headers}))
            assert answer(connected).startswith(b"HTTP/1.1 " + status)


def test_nothing_is_unpacked(small: Fleet, place: Place) -> None:
    member = active(small, place)
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < LIMIT
    peer = Peer(small, place)
    for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
        refused = peer.post(PUSH, bomb, {"content-encoding": encoding, **signed(member.key)})
        assert (refused.status_code, refused.text) == (415, "content-encoding")


def test_many_small_fields_are_refused_before_they_are_parsed(place: Place) -> None:
    """2 bytes of an empty message of protobuf become a hundred in memory."""
    with Fleet(place.config()) as fleet:
        member = active(fleet, place)
        bombs = {
            "messages": b"\x12\x00" * 1_000_000,
            "one packed list": PushMessagesRequest(
                clientapp_runtime_list=[0.0] * 1_000_000
            ).SerializeToString(),
        }
        for name, bomb in bombs.items():
            refused = Peer(fleet, place).post(PUSH, bomb, signed(member.key))
            assert (refused.status_code, refused.text) == (400, "malformed"), name


def test_a_body_that_trickles_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft_server.fleet.exchange._GRACE_S", 0.2)
    with Fleet(place.config()) as fleet:
        member = active(fleet, place)
        with raw(fleet, place) as connected:
            connected.sendall(head(PUSH, {"content-length": "1000", **signed(member.key)}) + b"x")
            assert answer(connected).startswith(b"HTTP/1.1 408")


def test_a_head_that_trickles_is_cut_off(hasty: Fleet, place: Place) -> None:
    for said in (b"", b"POST ", head(PULL, {})[:-2]):
        with raw(hasty, place) as connected:
            connected.sendall(said)
            assert answer(connected) == b""


def test_a_second_head_that_trickles_is_cut_off(hasty: Fleet, place: Place) -> None:
    member = active(hasty, place)
    body = PullMessagesRequest(node=Node(node_id=member.node_id)).SerializeToString()
    with raw(hasty, place) as connected:
        length = {"content-length": str(len(body))}
        connected.sendall(head(PULL, length | signed(member.key)) + body)
        assert connected.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connected.sendall(b"POST /v1")
        assert answer(connected) == b""


def test_a_head_without_end_is_refused(small: Fleet, place: Place) -> None:
    with raw(small, place) as connected:
        try:
            connected.sendall(b"POST / HTTP/1.1\r\n")
            for number in range(10_000):
                connected.sendall(b"x-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:
            pass
        said = answer(connected)
    assert said == b"" or said.startswith(b"HTTP/1.1 400")


def test_one_address_cannot_take_all_connections(place: Place) -> None:
    with Fleet(place.config(max_connections_per_peer=4)) as fleet, ExitStack() as held:
        member = active(fleet, place)
        body = PullMessagesRequest(node=Node(node_id=member.node_id)).SerializeToString()
        length = {"content-length": str(len(body))}

        def ask(connected: ssl.SSLSocket) -> bytes:
            try:
                connected.sendall(head(PULL, length | signed(member.key)) + body)
                return connected.recv(1 << 16)
            except OSError:
                return b""

        # An answer shows that the connection was counted: TLS alone is over before that.
        first = held.enter_context(raw(fleet, place))
        assert ask(first).startswith(b"HTTP/1.1 200")
        others = [held.enter_context(raw(fleet, place)) for _ in range(5)]
        taken = [each for each in others if ask(each)]
        assert len(taken) == 3
        assert ask(first).startswith(b"HTTP/1.1 200")


def test_a_node_sends_one_reply_at_a_time(place: Place) -> None:
    with Fleet(place.config()) as fleet:
        member = active(fleet, place)
        with raw(fleet, place) as connected:
            connected.sendall(head(PUSH, {"content-length": "10", **signed(member.key)}) + b"x")
            peer = Peer(fleet, place)
            for _ in range(100):
                second = peer.post(PUSH, b"\xff", signed(member.key))
                if second.status_code == 429:
                    break
            assert (second.status_code, second.text) == (429, "busy")


def test_limits_that_cannot_be_are_refused(place: Place) -> None:
    for wrong in (
        {"port": 70_000},
        {"max_message_bytes": 0},
        {"max_message_bytes": 1 << 31},
        {"max_transfers": 0},
        {"max_wait_s": 61.0},
        {"head_timeout_s": float("nan")},
        {"min_bytes_per_s": -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            place.config(**wrong)


def test_a_port_or_certificate_that_cannot_be_used_is_said_so(fleet: Fleet, place: Place) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        Fleet(place.config(port=fleet.port)).start()
    lost = place.config().__class__(certificate=place.key, key=place.certificate)
    with pytest.raises(ConfigError, match="cannot use certificate"):
        Fleet(lost).start()

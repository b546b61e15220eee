"""How much of a message is tensors, found out without parsing it."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import ProtocolError
from fedpeft.wire.protobuf import check_small_beside, field_path
from fedpeft.wire.records import (
    MAX_BESIDE_TENSORS_BYTES,
    MAX_BODY_BYTES,
    TENSORS,
    to_record,
)

PATH = field_path(PushMessagesRequest, *TENSORS)


def message(body: bytes, blob: bytes | None) -> Message:
    metadata = Metadata(2**64 - 1, 64 * "a", 2**64 - 1, 1, 64 * "b", "7", 2e9, 60.0, "train")
    return make_message(metadata, content=to_record(body, b"s", blob))


def request(body: bytes, blob: bytes | None) -> bytes:
    return PushMessagesRequest(
        node=Node(node_id=2**64 - 1),
        messages_list=[message_to_proto(message(body, blob))],
        message_object_trees=[ObjectTree(object_id=64 * "a")],
    ).SerializeToString()


def test_both_ways_have_the_tensors_at_the_end_of_the_same_names() -> None:
    assert field_path(PullMessagesResponse, *TENSORS) == PATH
    with pytest.raises(KeyError):
        field_path(PushMessagesRequest, "messages_list", "nothing")


@given(st.binary(min_size=1, max_size=300), st.none() | st.binary(min_size=1, max_size=70_000))
def test_the_rest_is_what_is_not_tensors(body: bytes, blob: bytes | None) -> None:
    content = request(body, blob)
    rest = len(content) - len(blob or b"")
    check_small_beside(content, PATH, rest)
    with pytest.raises(ProtocolError, match=f"at most {rest - 1} bytes beside the tensors, got"):
        check_small_beside(content, PATH, rest - 1)


def test_the_largest_body_that_may_be_packed_gets_through() -> None:
    content = request(bytes(MAX_BODY_BYTES), bytes(10_000_000))
    check_small_beside(content, PATH, MAX_BESIDE_TENSORS_BYTES)


def test_tensors_elsewhere_are_no_tensors() -> None:
    data = bytes(5000)
    array = Array(dtype="uint8", shape=(5000,), stype=5000 * "x", data=b"small")
    content = RecordDict({"arrays": ArrayRecord({"a": array}), "c": ConfigRecord({"b": data})})
    odd = make_message(message(b"b", None).metadata, content=content)
    packed = PushMessagesRequest(messages_list=[message_to_proto(odd)]).SerializeToString()
    with pytest.raises(ProtocolError, match="beside the tensors"):
        check_small_beside(packed, PATH, 9000)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_measured(content: bytes) -> None:
    try:
        check_small_beside(content, PATH, len(content))
    except ProtocolError:
        return
    check_small_beside(content, (), 0)


@pytest.mark.parametrize(
    "content",
    [
        b"\x12",  # a length is missing
        b"\x12\x05abcd",  # longer than what is there
        b"\x12" + 9 * b"\xff" + b"\x01",  # 2^64 - 1 bytes
        b"\x12" + 11 * b"\x80",  # a number without end
        b"\x13\x00",  # a group, which protobuf no longer has
        b"\x09\x00",  # half of a fixed number
    ],
)
def test_broken_messages_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="protobuf"):
        check_small_beside(content, PATH, 1000)


def test_many_fields_are_refused_at_once() -> None:
    with pytest.raises(ProtocolError, match="at most 1000 fields"):
        check_small_beside(b"\x12\x00" * 1001, PATH, 10**9)

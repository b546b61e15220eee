"""What an enrolled node cannot do to others, with requests of its own making."""

from collections.abc import Callable

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

from fedpeft.wire.records import from_record, to_record
from fedpeft_server.fleet import Fleet, FleetGrid, build_bundle
from tests.fleet.parts import LONG_S, Member, Peer, Place, signed

PUSH, PULL = "/v1/fleet/push-messages", "/v1/fleet/pull-messages"
GET_RUN = "/v1/fleet/get-run"


class Insider:
    """An enrolled and active node with hands of its own."""

    def __init__(self, fleet: Fleet, place: Place) -> None:
        self.member = Member(place).enrol(fleet)
        self._peer = Peer(fleet, place)
        request = ActivateNodeRequest(public_key=self.member.public_key, heartbeat_interval=10)
        assert self.post("/v1/fleet/activate-node", request)[0] == 200

    @property
    def node(self) -> Node:
        return Node(node_id=self.member.node_id)

    def post(self, path: str, request: object) -> tuple[int, bytes]:
        answer = self._peer.post(path, request, signed(self.member.key))
        return answer.status_code, answer.content

    def pull(self) -> Message | None:
        status, body = self.post(PULL, PullMessagesRequest(node=self.node))
        assert status == 200
        messages = PullMessagesResponse.FromString(body).messages_list
        return message_from_proto(messages[0]) if messages else None

    def request(self, reply: Message) -> PushMessagesRequest:
        reply.metadata.__dict__["_message_id"] = 32 * "ab"
        return PushMessagesRequest(
            node=self.node,
            messages_list=[message_to_proto(reply)],
            message_object_trees=[ObjectTree(object_id=reply.metadata.message_id)],
        )


@pytest.fixture
def grid(fleet: Fleet) -> FleetGrid:
    return fleet.grid(fleet.open_run(build_bundle()))


def ask(grid: FleetGrid, insider: Insider) -> str:
    (message_id,) = grid.push_messages(
        [
            grid.create_message(
                to_record(b"order", b"s", None), "train", insider.member.node_id, "1", ttl=LONG_S
            )
        ]
    )
    return message_id


def test_a_node_gets_its_own_messages_only(fleet: Fleet, place: Place, grid: FleetGrid) -> None:
    one, two = Insider(fleet, place), Insider(fleet, place)
    ask(grid, one)
    assert two.pull() is None
    assert one.pull() is not None
    assert one.pull() is None


def test_a_reply_in_anothers_name_is_refused(fleet: Fleet, place: Place, grid: FleetGrid) -> None:
    one, two = Insider(fleet, place), Insider(fleet, place)
    message_id = ask(grid, one)
    message = one.pull()
    assert message is not None
    reply = two.request(Message(to_record(b"forged", b"s", None), reply_to=message))
    assert two.post(PUSH, reply) == (410, b"no-such-message")
    reply.messages_list[0].metadata.src_node_id = two.member.node_id
    assert two.post(PUSH, reply) == (410, b"no-such-message")
    reply.node.node_id = one.member.node_id
    assert two.post(PUSH, reply) == (403, b"another-node")
    assert grid.pull_messages([message_id]) == []
    assert (
        one.post(PUSH, one.request(Message(to_record(b"true", b"s", None), reply_to=message)))[0]
        == 200
    )
    (taken,) = grid.pull_messages([message_id])
    assert from_record(taken.content)[0] == b"true"


def other_source(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.src_node_id += 1


def servers_source(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.src_node_id = 1


def other_destination(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.dst_node_id = request.node.node_id


def other_run(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.run_id += 1


def other_round(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.group_id = "2"


def other_type(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.message_type = "query"


def no_content(request: PushMessagesRequest) -> None:
    request.messages_list[0].ClearField("content")


def content_and_error(request: PushMessagesRequest) -> None:
    request.messages_list[0].error.code = 1


def two_messages(request: PushMessagesRequest) -> None:
    request.messages_list.append(request.messages_list[0])


def no_tree(request: PushMessagesRequest) -> None:
    del request.message_object_trees[:]


def objects_to_come(request: PushMessagesRequest) -> None:
    request.message_object_trees[0].children.append(ObjectTree(object_id=32 * "cd"))


def another_tree(request: PushMessagesRequest) -> None:
    request.message_object_trees[0].object_id = 32 * "cd"


def a_path_as_id(request: PushMessagesRequest) -> None:
    request.messages_list[0].metadata.message_id = "../../etc/passwd"
    request.message_object_trees[0].object_id = "../../etc/passwd"


def a_runtime(request: PushMessagesRequest) -> None:
    request.clientapp_runtime_list.append(float("nan"))


@pytest.mark.parametrize(
    ("change", "status"),
    [(other_source, 403), (servers_source, 403)]
    + [
        (change, 400)
        for change in (
            other_destination,
            other_run,
            other_round,
            other_type,
            no_content,
            content_and_error,
            two_messages,
            no_tree,
            objects_to_come,
            another_tree,
            a_path_as_id,
            a_runtime,
        )
    ],
)
def test_a_reply_that_says_something_else_is_refused(
    fleet: Fleet,
    place: Place,
    grid: FleetGrid,
    change: Callable[[PushMessagesRequest], None],
    status: int,
) -> None:
    insider = Insider(fleet, place)
    message_id = ask(grid, insider)
    message = insider.pull()
    assert message is not None
    request = insider.request(Message(to_record(b"b", b"s", None), reply_to=message))
    changed = PushMessagesRequest()
    changed.CopyFrom(request)
    change(changed)
    assert insider.post(PUSH, changed)[0] == status
    assert grid.pull_messages([message_id]) == []
    assert insider.post(PUSH, request)[0] == 200
    assert len(grid.pull_messages([message_id])) == 1


def test_an_error_is_a_reply(fleet: Fleet, place: Place, grid: FleetGrid) -> None:
    insider = Insider(fleet, place)
    message_id = ask(grid, insider)
    message = insider.pull()
    assert message is not None
    reply = Message(Error(code=2, reason="ValueError"), reply_to=message)
    assert insider.post(PUSH, insider.request(reply))[0] == 200
    assert grid.pull_messages([message_id])[0].error.reason == "ValueError"


def test_a_node_cannot_make_its_message_live_longer(
    fleet: Fleet, place: Place, grid: FleetGrid
) -> None:
    insider = Insider(fleet, place)
    ask(grid, insider)
    message = insider.pull()
    assert message is not None
    request = insider.request(Message(RecordDict(), reply_to=message))
    request.messages_list[0].metadata.ttl *= 100
    assert insider.post(PUSH, request) == (410, b"not-taken")


def test_runs_of_others_cannot_be_asked_for(fleet: Fleet, place: Place, grid: FleetGrid) -> None:
    one, two = Insider(fleet, place), Insider(fleet, place)
    run_id = grid.run.run_id
    ask(grid, one)
    status, body = one.post(GET_RUN, GetRunRequest(node=one.node, run_id=run_id))
    assert (status, GetRunResponse.FromString(body).run.fab_hash) == (200, build_bundle().hash)
    refused = (410, b"no-such-run")
    assert two.post(GET_RUN, GetRunRequest(node=two.node, run_id=run_id)) == refused
    assert one.post(GET_RUN, GetRunRequest(node=one.node, run_id=run_id + 1)) == refused


@pytest.mark.parametrize("interval_s", [0.0, 9.9, 61.0, 1e300, float("inf"), float("nan"), -10.0])
def test_a_node_cannot_seem_alive_for_hours(fleet: Fleet, place: Place, interval_s: float) -> None:
    insider = Insider(fleet, place)
    heartbeat = SendNodeHeartbeatRequest(node=insider.node, heartbeat_interval=interval_s)
    assert insider.post("/v1/fleet/send-node-heartbeat", heartbeat) == (400, b"heartbeat")
    activate = ActivateNodeRequest(
        public_key=insider.member.public_key, heartbeat_interval=interval_s
    )
    assert insider.post("/v1/fleet/activate-node", activate) == (400, b"heartbeat")

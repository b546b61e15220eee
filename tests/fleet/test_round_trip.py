"""Messages from a server to nodes in threads and back, over real TLS."""

import os
import threading

import pytest
from flwr.app import ConfigRecord

from fedpeft.errors import ConfigError
from fedpeft.wire.records import from_record, to_arrays, to_record
from fedpeft_client.flower_app import Incoming
from fedpeft_server.fleet import Fleet, build_bundle
from fedpeft_server.strategy import CohortStrategy, Reply, Signed
from tests.fleet.parts import LONG_S, Member, Place, collect, serving
from tests.fleet.proxy import Proxy


def back(incoming: Incoming):
    """Sends back what came, the blob reversed."""
    body, signature, blob = from_record(incoming.message.content)
    about = f"{incoming.message_type} {incoming.round} {incoming.bundle_hash}".encode()
    return to_record(body + b" " + about, signature, None if blob is None else blob[::-1])


def test_each_node_answers_its_own_order_and_the_same_tensors(fleet: Fleet, place: Place) -> None:
    members = [Member(place).enrol(fleet) for _ in range(3)]
    bundle = build_bundle()
    grid = fleet.grid(fleet.open_run(bundle))
    blob = os.urandom(150_000)
    with serving(back, *(member.node(fleet) for member in members)):
        assert set(fleet.online()) == {member.node_id for member in members}
        ids = grid.push_messages(
            grid.create_message(
                to_record(f"order {member.node_id}".encode(), b"s", blob),
                "train",
                member.node_id,
                "7",
                ttl=LONG_S,
            )
            for member in members
        )
        replies = collect(grid, ids)
    for member, message_id in zip(members, ids, strict=True):
        body, signature, returned = from_record(replies[message_id].content)
        assert body.decode() == f"order {member.node_id} train 7 {bundle.hash}"
        assert (signature, returned) == (b"s", blob[::-1])
        assert replies[message_id].metadata.src_node_id == member.node_id
    assert fleet.online() == {}


def test_tensors_of_20_mb_and_none(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    with serving(back, member.node(fleet)):
        for blob in (os.urandom(20_000_000), None):
            (message_id,) = grid.push_messages(
                [grid.create_message(to_record(b"b", b"s", blob), "train", member.node_id, "1")]
            )
            returned = from_record(collect(grid, [message_id])[message_id].content)[2]
            assert returned == (None if blob is None else blob[::-1])


def test_runs_do_not_see_each_others_messages(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    first = fleet.grid(fleet.open_run(build_bundle()))
    second = fleet.grid(fleet.open_run(build_bundle()))
    with serving(back, member.node(fleet)):
        (message_id,) = first.push_messages(
            [first.create_message(to_record(b"b", b"s", None), "query", member.node_id, "0")]
        )
        assert first.wait([message_id], LONG_S)
        (stranger,) = second.pull_messages([message_id])
        assert stranger.has_error()
        assert from_record(collect(first, [message_id])[message_id].content)[1] == b"s"


@pytest.mark.parametrize("size", [150_000, 10_000_000], ids=["MiniLM", "8B"])
def test_the_wire_carries_little_but_tensors(fleet: Fleet, place: Place, size: int) -> None:
    """Counted where it counts: every byte of TCP, with handshakes, questions and heartbeats."""
    member = Member(place).enrol(fleet)
    run_id = fleet.open_run(build_bundle())
    grid = fleet.grid(run_id)
    with Proxy(fleet.port) as proxy:
        node = member.node(fleet, port=proxy.port)
        with serving(back, node):
            content = to_record(os.urandom(1000), os.urandom(72), os.urandom(size))
            (message_id,) = grid.push_messages(
                [grid.create_message(content, "train", member.node_id, "1", ttl=LONG_S)]
            )
            collect(grid, [message_id])
        assert size < proxy.num_bytes_down <= 1.05 * size
        assert size < proxy.num_bytes_up <= 1.05 * size
        sent, received = fleet.traffic(run_id)
        assert size < sent < proxy.num_bytes_down
        assert size < received < proxy.num_bytes_up


def test_flowers_own_loop_runs_over_it(fleet: Fleet, place: Place) -> None:
    members = [Member(place).enrol(fleet) for _ in range(2)]
    answered: list[dict[int, Reply]] = []

    def orders(number: int) -> dict[int, Signed]:
        return {
            member.node_id: Signed(body=f"{number}".encode(), signature=b"s") for member in members
        }

    def aggregate(number: int, replies: dict[int, Reply]) -> bytes:
        answered.append(dict(replies))
        return b"+".join(sorted({reply.blob or b"" for reply in replies.values()}))

    strategy = CohortStrategy(orders=orders, aggregate=aggregate, ttl_s=LONG_S)
    with serving(back, *(member.node(fleet) for member in members)):
        grid = fleet.grid(fleet.open_run(build_bundle()))
        result = strategy.start(grid, to_arrays(b"abc"), num_rounds=3, timeout=LONG_S)
    assert [set(replies) for replies in answered] == 3 * [{member.node_id for member in members}]
    assert result.arrays == to_arrays(b"cba")
    assert result.train_metrics_clientapp[3] == {"num_replies": 2, "num_failed": 0}


def test_a_strategy_counts_errors_and_odd_replies_as_failed(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = fleet.grid(fleet.open_run(build_bundle()))
    strategy = CohortStrategy(
        orders=lambda _: {member.node_id: Signed(body=b"b", signature=b"s")},
        aggregate=lambda _number, replies: None if not replies else b"never",
        ttl_s=LONG_S,
    )
    messages = strategy.configure_train(1, to_arrays(b"abc"), ConfigRecord(), grid)

    def odd(incoming: Incoming):
        content = back(incoming)
        content["more"] = ConfigRecord({"x": 1})
        return content

    with serving(odd, member.node(fleet)):
        replies = collect(grid, grid.push_messages(messages))
    arrays, metrics = strategy.aggregate_train(1, replies.values())
    assert arrays is None
    assert metrics == {"num_replies": 0, "num_failed": 1}


def test_a_closed_run_is_over(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    run_id = fleet.open_run(build_bundle())
    grid = fleet.grid(run_id)
    working, closed = threading.Event(), threading.Event()
    taken = []
    node = member.node(fleet)

    def work() -> None:
        incoming = node.pull()
        assert incoming is not None
        working.set()
        assert closed.wait(LONG_S)
        taken.append(node.reply(incoming, to_record(b"b", b"s", None)))

    node.connect()
    thread = threading.Thread(target=work)
    thread.start()
    (message_id,) = grid.push_messages(
        [grid.create_message(to_record(b"b", b"s", None), "train", member.node_id, "1")]
    )
    assert working.wait(LONG_S)
    fleet.close_run(run_id)
    closed.set()
    thread.join(LONG_S)
    assert taken == [False]
    assert grid.pull_messages([message_id])[0].has_error()
    with pytest.raises(ConfigError, match="no run"):
        fleet.grid(run_id)
    node.close()

"""Nodes, servers and connections that are lost, and come back."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fedpeft.errors import EnrolmentError, ReplacedError
from fedpeft.identity.keys import new_key
from fedpeft.wire.records import from_record, to_record
from fedpeft_client.flower_app import Incoming
from fedpeft_server.fleet import Fleet, FleetGrid, build_bundle
from fedpeft_server.fleet.doorbell import Doorbell
from tests.fleet.parts import LONG_S, Member, Place, Served, collect, serving
from tests.fleet.proxy import Proxy

ORDER = to_record(b"order", None)


def answer(incoming: Incoming) -> RecordDict:
    return to_record(f"round {incoming.round}".encode(), None)


def ask(grid: FleetGrid, member: Member, number: str = "1", ttl: float = LONG_S) -> str:
    (message_id,) = grid.push_messages(
        [grid.create_message(ORDER, "train", member.node_id, number, ttl=ttl)]
    )
    return message_id


def open_grid(fleet: Fleet) -> FleetGrid:
    return fleet.grid(fleet.open_run(build_bundle()))


@contextmanager
def process(fleet: Fleet, folder: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    worker = str(Path(__file__).with_name("node_worker.py"))
    arguments = [str(fleet.port), str(folder / "authority.pem"), str(folder / "key.pem"), what]
    with subprocess.Popen(
        [sys.executable, worker, *arguments], stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_killed_node_comes_back_and_gets_its_round_again(
    fleet: Fleet, place: Place, tmp_path: Path
) -> None:
    member = Member(place)
    member.key = new_key(tmp_path / "key.pem")
    member.enrol(fleet)
    (tmp_path / "authority.pem").write_bytes(place.authority)
    grid = open_grid(fleet)
    message_id = ask(grid, member, "4")
    with process(fleet, tmp_path, "hang") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "working 4\n"
        first.kill()
        first.wait()
        # Flower believes that the node is there, and would refuse it for 20 s.
        assert member.node_id in fleet.online()
        with process(fleet, tmp_path, "answer"):
            reply = collect(grid, [message_id])[message_id]
    assert from_record(reply.content)[0] == b"answer to round 4"


def test_a_server_that_restarts_finds_its_nodes_again(place: Place) -> None:
    members = [Member(place) for _ in range(3)]
    with Fleet(place.config()) as first:
        port = first.port
        nodes = [member.enrol(first).node(first) for member in members]
        served = [Served(node, answer) for node in nodes]
        assert len(first.online()) == 3
        ids_before = [member.node_id for member in members]
    second = Fleet(place.config(port=port))
    for member in members:
        member.enrol(second)
    assert not set(ids_before) & {member.node_id for member in members}
    with second:
        grid = open_grid(second)
        ids = [ask(grid, member, "2") for member in members]
        assert {from_record(each.content)[0] for each in collect(grid, ids).values()} == {
            b"round 2"
        }
        for each in served:
            each.close()


def test_a_reply_to_a_server_that_restarted_is_not_taken(place: Place) -> None:
    member = Member(place)
    working, restarted = threading.Event(), threading.Event()
    taken: list[bool] = []
    with Fleet(place.config()) as first:
        port = first.port
        node = member.enrol(first).node(first)
        node.connect()

        def work() -> None:
            incoming = node.pull()
            assert incoming is not None
            working.set()
            assert restarted.wait(LONG_S)
            taken.append(node.reply(incoming, ORDER))

        thread = threading.Thread(target=work)
        thread.start()
        ask(open_grid(first), member)
        assert working.wait(LONG_S)
    second = Fleet(place.config(port=port))
    member.enrol(second)
    with second:
        restarted.set()
        thread.join(LONG_S)
        assert taken == [False]
        assert member.node_id in second.online()
        node.close()


def test_a_message_that_was_lost_on_the_way_comes_again(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    with Proxy(fleet.port) as proxy:
        node = member.node(fleet, port=proxy.port)
        with serving(answer, node):
            proxy.swallow_down.set()
            message_id = ask(grid, member)
            assert proxy.swallowed.wait(LONG_S)
            proxy.swallow_down.clear()
            proxy.cut()
            assert from_record(collect(grid, [message_id])[message_id].content)[0] == b"round 1"


def test_a_connection_that_only_the_server_believes_in_takes_nothing(
    fleet: Fleet, place: Place
) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    with Proxy(fleet.port) as proxy:
        node = member.node(fleet, port=proxy.port)
        with serving(answer, node):
            for number in range(5):
                proxy.leave()
                message_id = ask(grid, member, str(number))
                assert collect(grid, [message_id])[message_id].has_content()


def test_a_node_that_was_away_gets_what_was_sent_meanwhile(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    message_id = ask(grid, member)
    assert grid.pull_messages([message_id]) == []
    with serving(answer, member.node(fleet)):
        assert collect(grid, [message_id])[message_id].has_content()


def test_a_reply_of_a_node_that_left_is_not_lost(fleet: Fleet, place: Place) -> None:
    """Flower's look-up would answer that the node is not there."""
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    message_id = ask(grid, member)
    with serving(answer, member.node(fleet)):
        assert grid.wait([message_id], LONG_S)
    assert fleet.online() == {}
    assert from_record(collect(grid, [message_id])[message_id].content)[0] == b"round 1"


def test_the_same_key_in_a_second_process_ends_the_first(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    first = Served(member.node(fleet), answer)
    with serving(answer, member.node(fleet)):
        assert isinstance(first.ended(), ReplacedError)
        first.close()
        message_id = ask(grid, member)
        assert collect(grid, [message_id])[message_id].has_content()


def test_a_node_that_nobody_enrolled_is_told_so(fleet: Fleet, place: Place) -> None:
    node = Member(place).node(fleet)
    with pytest.raises(EnrolmentError, match="does not know this node's key"):
        node.connect()
    node.close()


def test_a_revoked_node_is_told_so_while_it_waits(place: Place) -> None:
    with Fleet(place.config(max_wait_s=60.0)) as fleet:
        member = Member(place).enrol(fleet)
        grid = open_grid(fleet)
        served = Served(member.node(fleet, wait_s=60.0), answer)
        fleet.unregister(member.node_id)
        assert isinstance(served.ended(within_s=30.0), EnrolmentError)
        assert ask(grid, member) == ""
        assert fleet.online() == {}
        served.close()


def test_a_question_that_was_on_its_way_does_not_wait() -> None:
    """It was let through before the node was unregistered, and came to wait after that."""

    async def ask_after(leave: bool) -> bool:
        doorbell = Doorbell()
        if leave:
            doorbell.leave(1)
        gone = asyncio.ensure_future(asyncio.Event().wait())
        asked = asyncio.ensure_future(doorbell.wait(1, lambda: False, gone, LONG_S))
        for _ in range(10):
            await asyncio.sleep(0)
        ended = asked.done()
        for task in (asked, gone):
            task.cancel()
        return ended

    assert asyncio.run(ask_after(True))
    assert not asyncio.run(ask_after(False))


def test_a_message_to_a_node_that_is_revoked_then_has_an_error(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    message_id = ask(grid, member)
    seen: list[bool] = []
    waiting = threading.Thread(target=lambda: seen.append(grid.wait([message_id], LONG_S)))
    waiting.start()
    fleet.unregister(member.node_id)
    waiting.join(LONG_S / 2)
    assert seen == [True]
    (reply,) = grid.pull_messages([message_id])
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == message_id


def test_a_message_that_expired_has_an_error_and_takes_no_reply(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    message_id = ask(grid, member, ttl=0.1)
    assert grid.wait([message_id], LONG_S)
    (reply,) = grid.pull_messages([message_id])
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == message_id
    with member.node(fleet, wait_s=0.0) as node:
        node.connect()
        assert node.pull() is None


def test_what_is_withdrawn_is_neither_given_out_nor_taken_back(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    given, kept = ask(grid, member), ask(grid, member, "2")
    with member.node(fleet, wait_s=0.0) as node:
        node.connect()
        incoming = node.pull()
        assert incoming is not None
        grid.withdraw([given, kept])
        assert node.pull() is None
        assert not node.reply(incoming, ORDER)
        assert all(reply.has_error() for reply in grid.pull_messages([given, kept]))


def test_a_second_reply_does_not_replace_the_first(fleet: Fleet, place: Place) -> None:
    member = Member(place).enrol(fleet)
    grid = open_grid(fleet)
    message_id = ask(grid, member)
    with member.node(fleet, wait_s=0.0) as node:
        node.connect()
        incoming = node.pull()
        assert incoming is not None
        assert node.reply(incoming, to_record(b"first", None))
        assert not node.reply(incoming, to_record(b"second", None))
        assert from_record(collect(grid, [message_id])[message_id].content)[0] == b"first"

"""How much one caller may ask for: size, number, at once and a minute."""

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fedpeft.errors import RemoteError
from fedpeft.wire.v1 import runs_pb2
from fedpeft_server.access.limits import Concurrency, Rate
from tests.server.control_rig import Rig, listening
from tests.server.raw_calls import WIRE, channel, send
from tests.server.runs import config, submitted

MIB = 2**20
SUBMIT = f"{WIRE}Runs/SubmitRun"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    limits = {"max_message_bytes": MIB, "max_held_out_bytes": MIB // 2, "max_streams": 3}
    with listening(tmp_path, max_calls_per_caller=2, changes_per_minute=1, **limits) as opened:
        yield opened


def refused_by_grpc(rig: Rig, name: str, body: bytes, **settings: object) -> grpc.StatusCode:
    with channel(rig, name) as opened, pytest.raises(grpc.RpcError) as refused:
        opened.unary_unary(SUBMIT)(body, timeout=60, **settings)
    code: grpc.StatusCode = refused.value.code()
    return code


def last_refusal(rig: Rig) -> tuple[str, str, str]:
    # gRPC ends the call by itself; the server's own thread writes it down a moment later.
    while not (log := rig.state.audit(limit=1000)):
        pass
    return log[-1].actor, log[-1].action, log[-1].outcome


def test_an_oversized_message_is_refused_and_written_down(rig: Rig) -> None:
    assert refused_by_grpc(rig, "operator", b"x" * (MIB + 1)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert last_refusal(rig) == ("operator", SUBMIT, "unreceived")
    with pytest.raises(RemoteError) as refused:
        rig.connect("operator").submit_run({**config(), "x": "y" * MIB})
    assert refused.value.code == "too-large"


def test_nobody_makes_the_server_hold_what_it_will_refuse(rig: Rig) -> None:
    """Without the role not even a message of bearable size is read."""
    with channel(rig, "reader") as opened:
        assert send(opened, SUBMIT, b"x" * (MIB - 100)).code == "not-allowed"
        assert send(opened, SUBMIT, b"x" * (5 * MIB)).code == "not-allowed"


def test_a_message_that_unpacks_into_a_large_one_is_not_unpacked(rig: Rig) -> None:
    bomb = b"\0" * (10 * MIB)  # 10 kB on the wire
    status = refused_by_grpc(rig, "operator", bomb, compression=grpc.Compression.Gzip)
    assert status is grpc.StatusCode.UNIMPLEMENTED
    assert last_refusal(rig) == ("operator", SUBMIT, "unreceived")
    small = refused_by_grpc(rig, "operator", b"\0" * 5000, compression=grpc.Compression.Deflate)
    assert small is grpc.StatusCode.UNIMPLEMENTED


def test_large_held_out_rows(rig: Rig, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"x" * (MIB // 2 + 1))
    with pytest.raises(RemoteError, match="held-out rows of 524289 bytes") as refused:
        rig.connect("operator").submit_run(config(), held_out=rows)
    assert refused.value.code == "too-large"
    assert rig.state.runs() == []


def test_streams_leave_room_for_calls(rig: Rig) -> None:
    """However many watch, and however slowly they read, short calls are answered."""
    request = runs_pb2.WatchRunRequest(run_id=submitted(rig)).SerializeToString()
    watch = f"{WIRE}Runs/WatchRun"
    with channel(rig, "reader") as first, channel(rig, "auditor") as second:
        streams = []
        for opened in (first, first, second):
            streams.append(opened.unary_stream(watch)(request, timeout=60))
            next(streams[-1])
        own = send(first, watch, request)
        assert (own.code, own.message) == (
            "busy",
            "2 calls of yours are open already; try again later",
        )
        with channel(rig, "clinic") as third:
            everybody = send(third, watch, request)
            assert everybody.message == "3 streams are open already; try again later"
            assert send(third, f"{WIRE}Server/GetServer", b"").code == "ok"
        streams.pop(0).cancel()
        # The server notices within a second that nobody waits any more.
        while send(first, f"{WIRE}Server/GetServer", b"").code == "busy":
            pass
        again = first.unary_stream(watch)(request, timeout=60)
        next(again)
        for stream in (*streams, again):
            stream.cancel()


def test_changes_are_counted_by_caller() -> None:
    now = 0.0
    rate = Rate(burst=3, per_minute=6, clock=lambda: now)
    assert [rate.take("a") for _ in range(4)] == [True, True, True, False]
    assert rate.take("b"), "another's bucket is its own"
    now = 9.9
    assert not rate.take("a")
    now = 10.0
    assert [rate.take("a"), rate.take("a")] == [True, False]
    now = 1e9
    assert [rate.take("a") for _ in range(4)] == [True, True, True, False], "never more than burst"


def test_buckets_do_not_pile_up() -> None:
    rate = Rate(burst=1, per_minute=0, clock=lambda: 0.0)
    tracemalloc.start()
    for i in range(30_000):
        rate.take(str(i))
    before = tracemalloc.get_traced_memory()[0]
    for i in range(30_000, 60_000):
        rate.take(str(i))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < before / 2


def test_too_many_changes_are_refused(rig: Rig) -> None:
    operator = rig.connect("operator")
    rig.control._door._changes = Rate(burst=1, per_minute=0)
    operator.invite_client("one")
    with pytest.raises(RemoteError, match="too many changes") as refused:
        operator.invite_client("two")
    assert refused.value.code == "busy"
    assert operator.list_runs() == [], "reading is not counted"


def test_calls_that_fail_free_their_place() -> None:
    concurrency = Concurrency(max_streams=1, max_calls_per_caller=1)
    with pytest.raises(ZeroDivisionError), concurrency.taken("a", stream=True):
        raise ZeroDivisionError
    with concurrency.taken("a", stream=True):
        for caller, stream in (("a", False), ("b", True)):
            with pytest.raises(RemoteError), concurrency.taken(caller, stream=stream):
                pass
        with concurrency.taken("b", stream=False):
            pass
    assert not concurrency._by_caller
    assert threading.active_count() >= 1

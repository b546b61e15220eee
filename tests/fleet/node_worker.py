"""A node in a process of its own; `python node_worker.py PORT AUTHORITY KEY hang|answer`."""

import sys
import threading
from pathlib import Path

from flwr.app import RecordDict

from fedpeft.identity.keys import read_key
from fedpeft.wire.records import to_record
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.flower_app import Incoming


def hang(incoming: Incoming) -> RecordDict:
    print("working", incoming.round, flush=True)
    threading.Event().wait()
    raise AssertionError


def answer(incoming: Incoming) -> RecordDict:
    return to_record(f"answer to round {incoming.round}".encode(), b"s", b"tensors")


def main() -> None:
    port, authority, key, what = sys.argv[1:]
    node = FleetNode(
        f"127.0.0.1:{port}", authority=Path(authority).read_bytes(), key=read_key(Path(key))
    )
    node.serve(hang if what == "hang" else answer)


if __name__ == "__main__":
    main()

"""A coordinator killed with -9 after each transaction of a removal, whatever it was."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft_server.records import RemovalState
from tests.server.removal_requests import trained
from tests.server.removals.parts import Bench
from tests.server.removals.test_engine import check_published

_MOST = 40


def coordinate(bench: Bench, request_id: str, last: int = 0) -> int | None:
    """Runs a coordinator to the request's end, or to its last transaction; how many they were."""
    job = bench.folder / "job.json"
    server = bench.rig.folder
    content = {
        "folder": str(server),
        "identity": str(bench.rig.holders.folder / "coordinator"),
        "request_id": request_id,
        "last": last,
    }
    job.write_text(json.dumps(content))
    script = Path(__file__).with_name("coordinator.py")
    done = subprocess.run(
        [sys.executable, str(script), str(job)], capture_output=True, text=True, timeout=120
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def deployed(bench: Bench) -> str:
    adapter = trained(bench.rig)
    bench.rig.connect("operator").deploy_adapter(adapter, "production")
    return adapter


def check_between(bench: Bench, request_id: str, adapter: str) -> None:
    """Whatever moment it was: what is in use is the old version, or the new one, and whole."""
    state = bench.rig.state
    alias, removal = state.alias("production"), state.removal(request_id)
    in_use = state.adapter(alias.digest)
    assert in_use.status == "published"
    if removal.state is RemovalState.PUBLISHED:
        check_published(bench, request_id, adapter)
    else:
        assert alias.digest == adapter
        assert removal.receipt_json is None
        assert [a for a in state.adapters() if a.run_id == request_id] == []


@pytest.mark.timeout(600)
def test_killed_after_every_transaction(bench: Bench) -> None:
    """Requests follow each other; each begins from the successor of the one before."""
    adapter = deployed(bench)
    total = coordinate(bench, first := bench.ask("production"))
    check_published(bench, first, adapter)
    assert total is not None
    assert 8 <= total <= _MOST
    for last in range(1, total + 1):
        adapter = bench.rig.state.alias("production").digest
        request_id = bench.ask("production")
        assert coordinate(bench, request_id, last) is None, "it was not killed"
        check_between(bench, request_id, adapter)
        coordinate(bench, request_id)
        check_published(bench, request_id, adapter)
        bench.rig.state.verify_audit()


def test_killed_again_and_again(bench: Bench) -> None:
    """It ends all the same, once."""
    adapter = deployed(bench)
    request_id = bench.ask("production")
    for last in (1, 2, 3, 2, 1, 4):
        coordinate(bench, request_id, last)
        check_between(bench, request_id, adapter)
    coordinate(bench, request_id)
    check_published(bench, request_id, adapter)

"""What monitoring reads: calls, refusals, runs, rounds, clients; and whether it is ready."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedpeft.errors import ConfigError, RemoteError, UnavailableError
from fedpeft_server.telemetry.pages import Pages
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol
from tests.server.raw_calls import WIRE, channel, send
from tests.server.runs import play_round, submitted


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path) as opened:
        yield opened


def page(rig: Rig, name: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{rig.control.metrics_port}{name}"
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(rig: Rig) -> dict[tuple[str, ...], float]:
    """Name and the values of the labels, in order of label → value."""
    _, text = page(rig, "/metrics")
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_calls_are_counted_by_method_and_code(rig: Rig) -> None:
    reader = rig.connect("reader")
    for _ in range(3):
        reader.get_server()
    with pytest.raises(RemoteError):
        reader.get_adapter("a" * 8)
    with channel(rig, "reader") as opened:
        send(opened, f"{WIRE}Runs/SubmitRun", b"")
        for i in range(5):
            send(opened, f"/made.up/{i}", b"")
    found = metrics(rig)
    assert found["fedpeft_calls_total", "ok", f"{WIRE}Server/GetServer"] == 3
    assert found["fedpeft_calls_total", "no-such-adapter", f"{WIRE}Adapters/GetAdapter"] == 1
    assert found["fedpeft_calls_total", "not-allowed", f"{WIRE}Runs/SubmitRun"] == 1
    assert found["fedpeft_call_seconds_count", f"{WIRE}Server/GetServer"] == 3
    assert found["fedpeft_refusals_total", "not-allowed"] == 1
    # A caller who makes up methods makes up no metrics.
    assert found["fedpeft_calls_total", "unknown-method", "unknown"] == 5
    assert not [name for name in found if "/made.up/0" in name]


def test_handshakes_that_no_call_follows_are_counted(rig: Rig) -> None:
    before = metrics(rig)["fedpeft_handshakes_total",]
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", rig.control.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            raw.recv(100)
    found = metrics(rig)
    assert found["fedpeft_handshakes_total",] == before + 3
    assert not [name for name in found if name[0] == "fedpeft_calls_total"]


def test_runs_rounds_and_clients(rig: Rig) -> None:
    play_round(rig, submitted(rig), 1)
    second = submitted(rig)
    play_round(rig, second, 1)
    play_round(rig, second, 2)
    rig.connect("operator").stop_run(second)
    for name in ("clinic", "hospital"):
        enrol(rig, name)
    rig.nodes.connected = {"clinic"}
    rig.connect("operator").revoke_client("hospital", "left")
    found = metrics(rig)
    assert found["fedpeft_runs", "running"] == 1
    assert found["fedpeft_runs", "stopped"] == 1
    assert found["fedpeft_runs", "failed"] == 0
    assert found[("fedpeft_rounds_finished",)] == 3
    assert found["fedpeft_clients", "enrolled"] == 1
    assert found["fedpeft_clients", "revoked"] == 1
    assert found["fedpeft_clients", "online"] == 1
    assert found[("fedpeft_database_up",)] == 1


def test_nobody_is_named(rig: Rig) -> None:
    enrol(rig, "clinic")
    _, text = page(rig, "/metrics")
    assert "clinic" not in text


def test_ready_and_alive(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page(rig, "/alive") == (200, "alive\n")
    assert page(rig, "/ready") == (200, "ready\n")
    assert page(rig, "/../../etc/passwd")[0] == 404

    def down(*_: object) -> None:
        raise UnavailableError("down")

    monkeypatch.setattr(rig.state, "audit_head", down)
    monkeypatch.setattr(rig.state, "runs", down)
    assert page(rig, "/ready") == (503, "not ready\n")
    assert page(rig, "/alive") == (200, "alive\n")
    found = metrics(rig)
    assert found[("fedpeft_database_up",)] == 0
    assert not [name for name in found if name[0] == "fedpeft_runs"]


def test_a_port_that_is_taken(rig: Rig) -> None:
    from prometheus_client import CollectorRegistry

    with pytest.raises(ConfigError, match="cannot be bound"):
        Pages("127.0.0.1", rig.control.metrics_port, CollectorRegistry(), lambda: True)

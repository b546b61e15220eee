"""Commands that call a server, against one that listens in this process."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from fedpeft.cli.main import run
from fedpeft_server import events
from fedpeft_server.records import RunStatus
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol
from tests.server.runs import config, export, play_round, submitted

Fedpeft = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened


@pytest.fixture
def fedpeft(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fedpeft:
    """Runs a command as the operator and returns exit code, output and errors."""
    monkeypatch.setenv("FEDPEFT_SERVER", rig.address)
    monkeypatch.setenv("FEDPEFT_IDENTITY", str(rig.holders.folder / "operator"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err.strip()

    return call


def written(folder: Path, **sections: dict[str, object]) -> Path:
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(config(**sections)))
    return path


def test_a_run_from_file_to_end(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"text": "a", "label": "x"}\n')
    path = written(tmp_path, data={"test": str(held_out)}, output={"name": "trial 7"})
    code, out, _ = fedpeft(
        "run", "submit", path, "--set", "federation.num_rounds=3", "--key", "k", "--json"
    )
    submitted_run = json.loads(out)
    run_id = submitted_run["run_id"]
    assert (code, submitted_run["num_rounds"], submitted_run["name"]) == (0, 3, "trial 7")
    kept = rig.state.run(run_id)
    assert kept.held_out is not None
    assert rig.artifacts.get(kept.held_out) == held_out.read_bytes()
    again = fedpeft("run", "submit", path, "--set", "federation.num_rounds=3", "--key", "k")
    assert again[0] == 0
    assert run_id in again[1]
    for number in (1, 2):
        play_round(rig, run_id, number)
    code, out, _ = fedpeft("run", "show", run_id)
    assert "2 of 3" in out
    assert "accuracy 70.0 %" in out
    assert re.search(r"clinic +100 +1.5 +2/2 +1.00", out)
    assert json.loads(fedpeft("run", "show", run_id, "--json")[1])["rounds"][1]["round"] == 2
    assert run_id in fedpeft("run", "list")[1]
    assert fedpeft("run", "stop", run_id, "--reason", "enough")[1].count("stopped: enough") == 1
    assert "submitted" in fedpeft("run", "resume", run_id)[1]
    assert fedpeft("run", "resume", run_id)[0] == 4


@pytest.mark.parametrize(
    ("status", "expected"),
    [(RunStatus.FINISHED, 0), (RunStatus.FAILED, 3), (RunStatus.STOPPED, 130)],
)
def test_watching_a_run_that_ends(
    rig: Rig, fedpeft: Fedpeft, status: RunStatus, expected: int
) -> None:
    run_id = submitted(rig)
    body = {"metrics": {"accuracy": 0.815}, "max_epsilon": 1.234, "missing": {}, "seconds": 61.0}
    rig.state.add_event(run_id, events.ROUND_FINISHED, round=1, body=body)
    rig.engine.turn(run_id, status, "because" if status is RunStatus.FAILED else "")
    code, _, err = fedpeft("run", "watch", run_id)
    assert code == expected
    assert "round 1: accuracy 81.5 %, largest ε 1.24, 1 min 01 s" in err
    code, out, _ = fedpeft("run", "watch", run_id, "--json")
    assert code == expected
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["kind"] for line in lines] == ["status", "round-finished", "status"]
    assert lines[1]["body"] == body
    assert lines[2]["body"]["status"] == status


def test_a_run_that_goes_on_from_a_version(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    before = submitted(rig)
    adapter = play_round(rig, before, 1)
    path = written(tmp_path)
    code, out, err = fedpeft("run", "submit", path, "--from", before, "--json")
    assert code == 0, err
    assert rig.state.run(json.loads(out)["run_id"]).start_from == adapter
    code, _, err = fedpeft("run", "submit", path, "--from", adapter, "--set", "adapter.alpha=9")
    assert code == 4
    assert "use those of the adapter" in err
    code, _, err = fedpeft("run", "submit", path, "--from", "nothing")
    assert code == 4
    assert "nothing" in err


def test_submit_and_watch_in_one(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    path = written(tmp_path, output={"name": "watched"})
    ending = threading.Thread(target=finish_when_there, args=(rig, "watched"))
    ending.start()
    code, out, _ = fedpeft("run", "submit", path, "--watch", "--json")
    ending.join()
    assert code == 0
    assert json.loads(out.splitlines()[-1])["body"]["status"] == "finished"


def finish_when_there(rig: Rig, name: str) -> None:
    while True:
        for run_record in rig.state.runs():
            if run_record.name == name and run_record.status is RunStatus.RUNNING:
                rig.engine.turn(run_record.run_id, RunStatus.FINISHED)
                return


def test_clients(rig: Rig, fedpeft: Fedpeft) -> None:
    code, out, err = fedpeft("client", "invite", "hospital", "--hours", "2")
    assert code == 0
    assert re.fullmatch(r"[\w-]{43}\n", out), "the token alone: scripts read it"
    assert "for hospital, once, until" in err
    enrol(rig, "hospital")
    rig.nodes.connected = {"hospital"}
    assert re.search(r"hospital +online", fedpeft("client", "list")[1])
    code, out, err = fedpeft("client", "revoke", "hospital", "--reason", "left", "--json")
    assert json.loads(out)["revoked_at"] is not None
    assert re.search(r"hospital +revoked", fedpeft("client", "list")[1])
    assert fedpeft("client", "revoke", "nobody", "--reason", "x")[0] == 4


def test_adapters_and_budgets(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    run_id = submitted(rig)
    adapter = play_round(rig, run_id, 1)
    export(rig, run_id, adapter, {"adapter_config.json": b"{}"})
    assert adapter[:12] in fedpeft("adapter", "list", "--run", run_id)[1]
    assert "clinic" in fedpeft("adapter", "show", run_id)[1]
    assert json.loads(fedpeft("adapter", "show", adapter[:8], "--json")[1])["digest"] == adapter
    code, out, _ = fedpeft("adapter", "export", run_id, "-o", tmp_path / "a")
    assert (code, out.strip()) == (0, str(tmp_path / "a" / "adapter_config.json"))
    assert fedpeft("adapter", "export", run_id, "-o", tmp_path / "a")[0] == 2
    code, out, _ = fedpeft("budget", "mirrored", "clinic")
    assert code == 0
    assert re.search(r"clinic +\w{12} +\d\.\d\d +6\.00", out)
    assert json.loads(fedpeft("budget", "mirrored", "--json")[1])[0]["client_id"] == "clinic"


def test_the_server_and_its_log(rig: Rig, fedpeft: Fedpeft) -> None:
    code, out, _ = fedpeft("server", "status")
    assert code == 0
    assert "you are operator: operator" in out
    info = json.loads(fedpeft("server", "status", "--json")[1])
    assert info["caller_roles"] == ["operator"]
    assert abs(info["clocks_apart_s"]) < 60
    fedpeft("client", "invite", "somebody")
    assert "Clients/InviteClient" in fedpeft("server", "audit", "list")[1]
    head = fedpeft("server", "audit", "verify")[1].strip()
    assert re.fullmatch(r"\d+:[0-9a-f]{64}", head)
    fedpeft("client", "invite", "another")
    assert fedpeft("server", "audit", "verify", "--expect", head)[0] == 0
    forged = head[:-8] + "deadbeef"
    code, out, _ = fedpeft("server", "audit", "verify", "--expect", forged, "--json")
    assert code == 3
    assert json.loads(out)["sound"] is False
    entries = json.loads(fedpeft("server", "audit", "list", "--after", "1", "--json")[1])
    assert entries[0]["position"] == 2


def test_what_was_forgotten_is_said(
    rig: Rig, fedpeft: Fedpeft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDPEFT_IDENTITY", str(tmp_path / "none"))
    assert "there is no folder" in fedpeft("run", "list")[2]
    monkeypatch.delenv("FEDPEFT_IDENTITY")
    assert fedpeft("run", "list") == (
        2,
        "",
        "error: name the folder with your certificate: --identity, or FEDPEFT_IDENTITY",
    )
    monkeypatch.delenv("FEDPEFT_SERVER")
    assert "name the server with --server" in fedpeft("run", "list")[2]
    reader = rig.holders.folder / "reader"
    code, _, err = fedpeft("run", "stop", "0" * 16, "--server", rig.address, "--identity", reader)
    assert (code, err) == (4, "error: this needs one of the roles operator")


def test_help_answers_at_once() -> None:
    """Nothing that a command may need is loaded for the list of commands."""
    code = (
        "import sys; import fedpeft.cli.main; heavy = {'grpc', 'google.protobuf', 'cryptography', "
        "'torch', 'flwr', 'ray', 'sqlalchemy', 'structlog', 'prometheus_client'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


def test_a_servers_ray_cluster_may_be_named_where_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedpeft_server import main as server_main
    from fedpeft_server.config import ServerConfig, write_server_config

    seen: list[str] = []

    def serve(config: ServerConfig, **_: object) -> None:
        seen.append(config.removals.ray)

    monkeypatch.setattr(server_main, "serve", serve)
    path = write_server_config(tmp_path / "server")
    text = path.read_text()
    assert text.count('#!ray = ""') == 1
    path.write_text(text.replace('#!ray = ""', 'ray = "here:6379"'))
    for more in ((), ("--ray", "elsewhere:6379")):
        command = ["fedpeft", "server", "start", "--config", str(path), *more]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit_info:
            run()
        assert not exit_info.value.code
    assert seen == ["here:6379", "elsewhere:6379"]

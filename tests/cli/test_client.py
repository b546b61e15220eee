"""`fedpeft client init|join|status` and `fedpeft model digest`, as far as they need no server."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.cli.client_output import Lines, output
from fedpeft.cli.main import run
from fedpeft_client import events
from fedpeft_client.events import Event
from fedpeft_client.policy import ClientPolicy
from tests.federated.client_rounds import base_digest

Fedpeft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedpeft(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Fedpeft:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("FEDPEFT_SERVER", "FEDPEFT_IDENTITY", "FEDPEFT_LEDGER"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            run()
        said = capsys.readouterr()
        return int(exit_info.value.code or 0), said.out, said.err.strip()

    return call


def test_init_makes_a_folder_that_status_can_show(fedpeft: Fedpeft, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    code, out, _ = fedpeft("client", "init", folder)
    assert code == 0
    assert str(folder / "policy.toml") in out
    assert ClientPolicy.read(folder / "policy.toml") == ClientPolicy()
    code, out, err = fedpeft("client", "init", folder)
    assert code == 2
    assert "already holds something" in err
    code, out, _ = fedpeft("client", "status", "--state", folder, "--json")
    shown = json.loads(out)
    assert (code, shown["running"], shown["membership"]) == (0, False, None)
    assert shown["policy"]["min_noise_multiplier"] == 0.3
    code, out, _ = fedpeft("client", "status", "--state", folder)
    assert code == 0
    assert "has not joined a federation yet" in out
    assert "not running" in out


def test_status_without_a_client_says_where_it_looked(fedpeft: Fedpeft, tmp_path: Path) -> None:
    code, _, err = fedpeft("client", "status")
    assert (code, "there are 0 clients in" in err) == (2, True)
    root = tmp_path / "home" / "fedpeft" / "clients"
    for name in ("one", "two"):
        fedpeft("client", "init", root / name)
    code, _, err = fedpeft("client", "status")
    assert code == 2
    assert f"{root / 'one'}, {root / 'two'}; name one with --state" in err
    code, _, err = fedpeft("client", "status", "--state", tmp_path / "nothing")
    assert (code, "there is no client in" in err) == (2, True)


@pytest.mark.parametrize(
    "budget", ["6", "6:", ":1e-5", "six:1e-5", "nan:1e-5", "-1:1e-5", "6:0", "6:1", "6:1e-5:2"]
)
def test_a_budget_that_means_nothing(fedpeft: Fedpeft, tmp_path: Path, budget: str) -> None:
    arguments = ("--identity", tmp_path, "--data", "rows.jsonl", "--state", tmp_path / "state")
    code, _, err = fedpeft("client", "join", "localhost", *arguments, f"--budget={budget}")
    assert code == 2
    assert "budget" in err
    assert not (tmp_path / "state").exists()


def test_join_without_an_identity(fedpeft: Fedpeft, tmp_path: Path) -> None:
    code, _, err = fedpeft("client", "join", "localhost", "--data", "rows.jsonl")
    assert (code, "--identity" in err) == (2, True)
    arguments = ("--identity", tmp_path / "nobody", "--data", "rows.jsonl")
    code, _, err = fedpeft("client", "join", "localhost", *arguments)
    assert code == 2
    assert err.startswith("error: there is no folder")


def test_a_models_digest(fedpeft: Fedpeft, tiny_bert: Path, tmp_path: Path) -> None:
    code, out, _ = fedpeft("model", "digest", tiny_bert)
    assert (code, out) == (0, f"{base_digest(tiny_bert)}  classification\n")
    code, out, _ = fedpeft("model", "digest", tiny_bert, "--json")
    assert json.loads(out) == {"classification": base_digest(tiny_bert)}
    code, _, err = fedpeft("model", "digest", tmp_path / "nothing")
    assert (code, "there is no model folder" in err) == (2, True)


RUN = {"client_id": "clinic", "run_id": "ab" * 8}
STORY = [
    Event(
        kind=events.READY,
        client_id="clinic",
        body={
            "num_rows": 5145,
            "epsilon_budget": 6.0,
            "epsilon_spent": 1.234,
            "delta": 1e-5,
            "folder": "/state",
        },
    ),
    Event(kind=events.CONNECTED, client_id="clinic"),
    Event(kind=events.OFFERED, body={"name": "a \x1b[31m run", "num_rounds": 5}, **RUN),
    Event(kind=events.ACCEPTED, body={"remaining_epsilon": 4.7}, **RUN),
    Event(kind=events.ROUND_STARTED, round=1, body={"num_rounds": 5}, **RUN),
    Event(kind=events.STEP, round=1, body={"step": 1, "num_steps": 5}, **RUN),
    Event(
        kind=events.ROUND_FINISHED,
        round=1,
        body={
            "num_rounds": 5,
            "train_seconds": 12.3,
            "epsilon_spent": 2.001,
            "epsilon_budget": 6.0,
            "delta": 1e-5,
        },
        **RUN,
    ),
    Event(kind=events.REFUSED, round=2, body={"code": "policy"}, **RUN),
    Event(kind=events.NOTE, client_id="clinic", body={"text": "one\ntwo \x1b[2J"}),
    Event(kind=events.STOPPED, client_id="clinic"),
]


def test_a_person_reads_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show = Lines(named=True)
    for event in STORY:
        show(event)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = [re.sub(r"^\d\d:\d\d:\d\d  clinic: ", "", line) for line in out.splitlines()]
    assert lines[0] == "5,145 rows; ε 1.24 of 6.00 is spent at δ 1×10⁻⁵; state in /state"
    assert r"a \x1b[31m run, 5 rounds" in lines[2]
    assert lines[5] == (
        f"run {'ab' * 8} round 1 of 5: trained in 12 s, answered; ε 2.01 of 6.00 is spent at δ "
        "1×10⁻⁵"
    )
    assert lines[6] == f"run {'ab' * 8} round 2: refused (policy)"
    assert [line.strip() for line in lines[7:9]] == ["one", r"two \x1b[2J"]
    assert lines[-1] == "stopped"


def test_a_program_reads_json(capsys: pytest.CaptureFixture[str]) -> None:
    show = output(as_json=True, num_clients=1)
    for event in STORY:
        show(event)
    read = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["kind"] for entry in read] == [event.kind for event in STORY]
    assert read[6]["body"]["epsilon_spent"] == 2.001

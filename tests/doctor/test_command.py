"""The command: table, JSON, exit code."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpeft.cli.main import app
from tests.server.control_rig import listening


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n')
    path.chmod(0o600)
    return path


def test_a_machine_that_is_ready(tmp_path: Path, rows: Path) -> None:
    with listening(tmp_path / "server") as rig:
        words = [rig.address, "--identity", str(rig.holders.folder / "clinic")]
        words += ["--data", str(rows), "--state", str(tmp_path / "state"), "--json"]
        done = CliRunner().invoke(app, ["doctor", *words])
    # The server's log goes to the same standard output here.
    report, _ = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{\n"))
    grades = {finding["check"]: finding["grade"] for finding in report["findings"]}
    # Nobody listens where the rig says that its fleet is.
    assert grades.pop("fleet port") == "fail"
    assert "fail" not in grades.values(), report
    assert (report["ready"], done.exit_code) == (False, 2)


def test_ready(rows: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--data", str(rows), "--columns", "text, label"])
    assert done.exit_code == 0
    assert done.stdout.endswith("ready\n")
    assert re.search(r"^rows +ok +1 in ", done.stdout, re.MULTILINE)


def test_not_ready(rows: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--data", str(rows), "--columns", "diagnosis"])
    assert done.exit_code == 2
    assert "→ correct the file" in done.stdout
    assert "not ready" in done.stdout


def test_what_a_file_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"\\u001b[31m[bold]red": "a"}\n')
    done = CliRunner().invoke(app, ["doctor", "--data", str(path)])
    assert "\x1b[31m" not in done.stdout
    assert "[bold]red" in done.stdout

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import DataError
from fedpeft.report.schema import Report
from fedpeft.report.write import read_report, to_json, write_report
from tests.report.factory import make_report

NAN, INF = float("nan"), float("inf")


def _refuse(constant: str) -> None:
    raise AssertionError(constant)


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
@pytest.mark.parametrize("private", [True, False])
def test_round_trip(task: Any, private: bool, tmp_path: Path) -> None:
    report = make_report(task=task, private=private, num_rounds=2)
    write_report(report, tmp_path / "new" / "folder")
    assert read_report(tmp_path / "new" / "folder") == report
    assert read_report(tmp_path / "new" / "folder" / "report.json") == report
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "report.html",
        "report.json",
    }


def test_same_report_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(make_report(num_rounds=2), tmp_path / name)
    for file in ("report.json", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_crash_leaves_whole_files(
    call: str, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(make_report(num_rounds=1, name="old"), tmp_path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real, calls = getattr(os, call), []

    def crash(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError("power cut")
        real(*arguments)

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(OSError, match="power cut"):
        write_report(make_report(num_rounds=1, name="new"), tmp_path)
    monkeypatch.undo()
    now = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert now.keys() == old.keys()
    assert now["report.html"] == old["report.html"]
    replaced = fails_at == 2  # the second sync is that of the folder, after the first replacement
    assert read_report(tmp_path).name == ("new" if replaced else "old")


def test_diverged_measurements_are_left_out_with_a_note(tmp_path: Path) -> None:
    report = make_report(task="causal_lm", num_rounds=2)
    last = report.rounds[-1]
    worse = last.model_copy(
        update={
            "metrics": {"loss": 800.0, "perplexity": INF},
            "update_norms": {**last.update_norms, "client-00": NAN},
            "diagnostics": {"aggregation_error": NAN},
        }
    )
    evaluation = report.evaluation.model_copy(
        update={"metrics": {"loss": 800.0, "perplexity": INF}}
    )
    write_report(
        report.model_copy(update={"rounds": [report.rounds[0], worse], "evaluation": evaluation}),
        tmp_path,
    )
    json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=_refuse)
    read = read_report(tmp_path)
    assert read.rounds[1].metrics == {"loss": 800.0}
    assert read.rounds[1].diagnostics == {}
    assert "client-00" not in read.rounds[1].update_norms
    assert read.evaluation.metrics == {"loss": 800.0}
    assert "rounds.1.metrics.perplexity (inf)" in read.notes[-1]
    assert "rounds.1.update_norms.client-00 (nan)" in read.notes[-1]
    assert read.rounds[1].metrics is not None
    assert read.notes[:-1] == report.notes


def _with_epsilon(report: Report, value: float) -> Report:
    client = report.clients[0].model_copy(update={"epsilon": value})
    return report.model_copy(update={"clients": [client, *report.clients[1:]]})


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_other_numbers_must_be_finite(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clients\.0\.epsilon is"):
        write_report(_with_epsilon(make_report(num_rounds=1), value), tmp_path)
    with pytest.raises(ValueError, match=r"config\.rounds\.metrics\.x is"):
        write_report(make_report(config={"rounds": {"metrics": {"x": value}}}), tmp_path)
    round_ = make_report(num_rounds=1).rounds[0].model_copy(update={"epsilon": {"metrics": value}})
    with pytest.raises(ValueError, match=r"rounds\.0\.epsilon\.metrics is"):
        to_json(make_report().model_copy(update={"rounds": [round_]}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"schema_version": 1', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": NaN}', "NaN is not JSON"),
        (b"[]", "no whole schema_version"),
        (b'{"schema_version": true}', "no whole schema_version"),
        (b'{"schema_version": 2}', "install a newer fedpeft"),
        (b'{"schema_version": 0}', "schema_version"),
        (b'{"schema_version": 1}', "problems in all"),
    ],
)
def test_unusable_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_report(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "nowhere" / "report.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path)


def test_unknown_and_mistyped_fields_are_refused(tmp_path: Path) -> None:
    content = json.loads(to_json(make_report(num_rounds=1)))
    for change in ({"surprise": 1}, {"uplink_bytes": "12"}):
        (tmp_path / "report.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=next(iter(change))):
            read_report(tmp_path)

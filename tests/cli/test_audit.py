"""`fedpeft audit` as a user runs it: exit codes, what is printed, what is left behind."""

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tomli_w
from rich.console import Console

from fedpeft.cli import simulate as simulate_command
from fedpeft.cli.audit import summary
from fedpeft.cli.config import _without_none
from fedpeft.cli.main import run
from fedpeft.config import RunConfig
from fedpeft.dp import checks, mechanism
from fedpeft.federated import audit_mechanism
from fedpeft.federated.run_folder import RunFolder
from fedpeft.report.audit import AuditReport, audit_html, lower
from fedpeft.types import tensor_digest
from tests.federated.small_runs import OFF, SmallRun
from tests.federated.test_audit_run import STRICT, no_noise, tiny_config

Fedpeft = Callable[..., tuple[int, str, str]]
DIRECT = ("--mechanism", "--sampling-prob", 0.5, "--noise-multiplier", 1, "--steps", 2)


@pytest.fixture
def fedpeft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedpeft:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            run()
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), printed.out, printed.err.strip()

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few canary gradients and no black-box check, which have tests of their own."""
    monkeypatch.setattr(audit_mechanism, "NUM_CANARIES", 500)
    monkeypatch.setattr(checks, "CHECKS", {})


def write_config(config: RunConfig, path: Path) -> Path:
    path.write_text(tomli_w.dumps(_without_none(config.model_dump(mode="json"))))
    return path


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.banners: list[str] = []
        self.in_banner = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.in_banner |= ("role", "alert") in attrs
        assert tag != "script"
        for name, value in attrs:
            assert name not in ("src", "onload")
            assert name != "href" or (value or "").startswith("#")

    def handle_data(self, data: str) -> None:
        if self.in_banner:
            self.banners.append(data)
            self.in_banner = False


def sound_page(page: str) -> _Page:
    start = page.index("<svg")
    for part in page[start:].split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part[: part.index("</svg>") + 6])
    return _Page(page)


@pytest.mark.usefixtures("quick")
def test_run_is_audited(fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path):
    config = write_config(tiny_config(tiny_llama, tmp_path), tmp_path / "run.toml")
    out = tmp_path / "out"
    code, printed, err = fedpeft("audit", config, "-o", out, "--canaries", 60, "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert found == json.loads((out / "audit.json").read_text())
    assert found["failures"] == []
    assert found["mechanism"]["epsilon_upper"] == pytest.approx(0.5, rel=0.02)
    assert found["run"]["epsilon_upper"] == pytest.approx(0.5, rel=0.02)
    assert len(found["run"]["included"]) == len(found["run"]["attacks"][0]["scores"]) == 60
    page = sound_page((out / "audit.html").read_text())
    assert page.tags.count("svg") == 5  # bars, three histograms, ROC
    assert page.banners == ["INSECURE NOISE: sampling and noise came from a seed"]
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "audit.json"]


@pytest.mark.usefixtures("quick")
def test_refuted_claim_is_exit_3_with_a_report(
    fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mechanism, "add_gaussian_noise", no_noise)
    config = write_config(tiny_config(tiny_llama, tmp_path), tmp_path / "run.toml")
    out = tmp_path / "out"
    code, printed, err = fedpeft("audit", config, "-o", out, "--canaries", 60, "-q")
    assert code == 3
    assert "the privacy claim does not hold" in err.splitlines()[-1]
    assert "canaries in the run" in err
    assert "Do not release" in err
    assert "refuted" in printed
    assert "nothing contradicts" not in printed
    page = sound_page((out / "audit.html").read_text())
    assert "The privacy claim does not hold" in page.banners
    assert json.loads((out / "audit.json").read_text())["failures"]


def test_mechanism_alone_by_numbers(
    fedpeft: Fedpeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_mechanism, "NUM_CANARIES", 500)
    code, printed, err = fedpeft("audit", *DIRECT, "-o", tmp_path / "out")
    assert code == 0, err
    assert "8 of 8 passed" in " ".join(printed.split())
    assert "nothing contradicts the claim" in " ".join(printed.split())
    assert err == "mechanism ..."
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["run"] is found["adapter"] is None
    assert found["config"] == {}


@pytest.mark.usefixtures("quick")
def test_mechanism_alone_of_a_configuration(fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path):
    config = write_config(tiny_config(tiny_llama, tmp_path), tmp_path / "run.toml")
    code, printed, err = fedpeft(
        "audit", config, "--mechanism", "--canaries", 100, "--json", "-o", tmp_path / "out"
    )
    assert code == 0, err
    found = json.loads(printed)
    assert found["run"] is None
    assert len(found["mechanism"]["included"]) == 100
    assert found["mechanism"]["num_steps"] == 10
    off = write_config(tiny_config(tiny_llama, tmp_path, OFF), tmp_path / "off.toml")
    code, _, err = fedpeft("audit", off, "--mechanism", "-o", tmp_path / "other")
    assert code == 2
    assert "privacy is off" in err


def test_adapter_of_a_finished_run(fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path):
    config, folder = tiny_config(tiny_llama, tmp_path, OFF), tmp_path / "finished"
    finished = SmallRun(config=config, folder=folder)
    assembly = finished.assemble()
    digests = {"base_digest": assembly.base_digest, "data_digest": assembly.data_digest}
    RunFolder.create(folder, {"config": config.model_dump(mode="json"), **digests})
    code, _, err = fedpeft("audit", "--adapter", folder, "-o", tmp_path / "early", "-q")
    assert code == 2
    assert f"not finished; go on with: fedpeft simulate --resume {folder}" in err
    simulation = finished.finished()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out = tmp_path / "out"
    code, printed, err = fedpeft("audit", "--adapter", folder, "-o", out, "-q")
    assert code == 0, err
    assert "NO PRIVACY" in printed
    assert "membership, all clients" in printed
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    found = json.loads((out / "audit.json").read_text())
    assert found["adapter"]["digest"] == tensor_digest(simulation.tensors)
    assert sound_page((out / "audit.html").read_text()).tags.count("svg") == 1
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text().replace("the", "a"))
    code, _, err = fedpeft("audit", "--adapter", folder, "-o", tmp_path / "other", "-q")
    assert code == 2
    assert "not what it was trained with" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "name a configuration file"),
        (("nowhere.toml",), "there is no configuration file nowhere.toml"),
        (("--adapter", "nowhere"), "holds no run"),
        (("--adapter", "nowhere", "--canaries", 5), "as it was"),
        (("run.toml", "--steps", 3), "override it with --set"),
        (("--mechanism", "--steps", 3), "takes --sampling-prob"),
        ((*DIRECT, "--client", "a"), "neither --client nor --set"),
        ((*DIRECT, "--canaries", 10), "40 canaries"),
        ((*DIRECT, "--confidence", 1.5), "--confidence must lie"),
        ((*DIRECT[:-1], 3, "--delta", 2), "delta must lie"),
        (("--mechanism", "--sampling-prob", 2, "--noise-multiplier", 1, "--steps", 2), "(0, 1]"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    fedpeft: Fedpeft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    expected: str,
):
    monkeypatch.chdir(tmp_path)
    code, _, err = fedpeft("audit", *arguments, "-q")
    assert code == 2, err
    assert err.startswith("error: ")
    assert expected in err
    assert "\n" not in err
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused_before_any_work(fedpeft: Fedpeft, tmp_path: Path):
    (tmp_path / "kept").write_text("mine")
    code, _, err = fedpeft("audit", *DIRECT, "-o", tmp_path, "-q")
    assert code == 2
    assert "already holds something" in err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_interrupted_audit_leaves_nothing(
    fedpeft: Fedpeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_mechanism, "_rehearse", interrupted)
    code, _, err = fedpeft("audit", *DIRECT, "-o", tmp_path / "out", "-q")
    assert code == simulate_command._STOPPED
    assert "nothing was written" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_names_are_escaped_and_plain_consoles_get_ascii(
    fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path
):
    private = {**STRICT, "insecure_seeded_noise": False}
    config = write_config(tiny_config(tiny_llama, tmp_path, private), tmp_path / "run.toml")
    code, printed, err = fedpeft("audit", config, "-o", tmp_path / "o", "--canaries", 40, "--json")
    assert code == 0, err
    content = json.loads(printed)
    del content["failures"]
    report = AuditReport.model_validate({**content, "name": "<script>x</script>"})
    page = audit_html(report)
    assert "<script" not in page
    assert audit_html(report) == page
    console = Console(record=True, width=100)
    console.print(summary(report, ascii_only=True))
    assert console.export_text().isascii()


def test_lower_bounds_are_rounded_down():
    assert [lower(value) for value in (0.0, 0.999, 1.0, 2.3456)] == ["0.00", "0.99", "1.00", "2.34"]

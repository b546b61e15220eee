"""`fedpeft serve` as a process, against a control plane that listens."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fedpeft.cli.main import run
from fedpeft.models.base_digest import base_digest
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.registry.folder import read_folder
from fedpeft.registry.manifest import FILE_NAME
from fedpeft.remote.records import Adapter
from tests.server.control_rig import Rig, listening
from tests.serving.exports import stories_config, write_export

pytestmark = pytest.mark.e2e
FEDPEFT = [sys.executable, "-c", "from fedpeft.cli.main import run; run()"]


@dataclass(kw_only=True)
class Registry:
    """A server with versions of one adapter."""

    rig: Rig
    model: str
    versions: list[Adapter]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    config = stories_config(shared_models)
    digest = base_digest(config.name, "causal-lm")
    with listening(folder) as rig:
        versions = []
        for seed in range(3):
            write_export(folder / f"export{seed}", config, seed=seed)
            contents, _ = read_folder(folder / f"export{seed}")
            versions.append(
                rig.connect("operator").import_adapter(
                    contents,
                    name=f"version {seed}",
                    base_model="stories260k",
                    base_digest=digest,
                    idempotency_key=f"key{seed}",
                )
            )
        yield Registry(rig=rig, model=config.name, versions=versions)


@contextmanager
def serving(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process, and its URL once it listens."""
    command = [*FEDPEFT, "serve", "--device", "cpu", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, json.loads(line)["url"]
        finally:
            process.terminate()
            process.communicate(timeout=60)


def ask(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def identity(registry: Registry) -> list[str]:
    folder = registry.rig.holders.folder / "reader"
    return ["--server", registry.rig.address, "--identity", str(folder)]


def test_an_alias_is_served_and_swapped(registry: Registry) -> None:
    operator = registry.rig.connect("operator")
    first, second = (version.digest for version in registry.versions[:2])
    operator.deploy_adapter(first, "production")
    arguments = ["--model", registry.model, "--alias", "production", "--poll", "0.05"]
    with serving(*arguments, *identity(registry)) as (process, url):
        found = ask(url, "production")
        assert found.json()["system_fingerprint"] == first
        (replica,) = operator.list_replicas("production")
        assert (replica.adapter, replica.problem) == (first, "")
        before = Fingerprint.from_json(replica.fingerprint_json)
        assert replica.operated_by == "reader"

        operator.deploy_adapter(second, "production")
        answers = {first: found.json()["choices"][0]["text"]}
        while second not in answers:
            found = ask(url, "production")
            assert found.status_code == 200, found.text
            body = found.json()
            text = body["choices"][0]["text"]
            assert answers.setdefault(body["system_fingerprint"], text) == text
        assert set(answers) == {first, second}
        assert answers[first] != answers[second]
        while (replica := operator.list_replicas("production")[0]).adapter != second:
            assert replica.problem == ""
        assert Fingerprint.from_json(replica.fingerprint_json).distance(before) > 1e-2

        operator.withdraw_adapter(first, "it should not be known any more")
        assert ask(url, first).status_code == 404
        assert ask(url, "production").json()["system_fingerprint"] == second
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_version_and_a_folder_are_served_by_name(registry: Registry, tmp_path: Path) -> None:
    second = registry.versions[2]
    reader = registry.rig.connect("reader")
    export = tmp_path / "export"
    reader.download_adapter(second.digest, export)
    (export / FILE_NAME).write_text(reader.get_adapter(second.digest).manifest_json)
    arguments = ["--model", registry.model, "--adapter", second.digest[:12], "--poll", "0.05"]
    arguments += ["--folder", f"mine={export}"]
    with serving(*arguments, *identity(registry)) as (_, url):
        found = [ask(url, name).json() for name in (second.digest, "mine")]
        assert found[0]["choices"] == found[1]["choices"]
        assert ask(url, "export").status_code == 404
        registry.rig.connect("operator").withdraw_adapter(second.digest)
        while (refused := ask(url, second.digest)).status_code == 200:
            pass
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "withdrawn")
        assert ask(url, "mine").status_code == 200  # nobody is asked about a folder


def test_a_folder_is_served_without_a_server(registry: Registry, tmp_path: Path) -> None:
    second = registry.versions[1]
    reader = registry.rig.connect("reader")
    reader.download_adapter(second.digest, tmp_path / "export")
    authority = registry.rig.holders.folder / "reader" / "authority.cert.pem"
    arguments = ["--model", registry.model, "--folder", str(tmp_path / "export")]
    arguments += ["--authority", str(authority), "--precision", "bfloat16"]
    unsigned = subprocess.run(
        [*FEDPEFT, "serve", *arguments, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unsigned.returncode == 3
    assert "is not signed" in unsigned.stderr
    manifest = reader.get_adapter(second.digest).manifest_json
    (tmp_path / "export" / FILE_NAME).write_text(manifest)
    with serving(*arguments) as (_, url):
        assert ask(url, "export").json()["system_fingerprint"] == second.digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "a"], "name what to serve"),
        (["--model", "a", "--alias", "production"], "name --server and --identity"),
        (["--model", "a", "--folder", "b"], "name whom to believe"),
        (["--model", "a", "--folder", "b", "--tls-key", "c"], "a certificate and its key"),
        (["--model", "a", "--folder", "b", "--folder", "b"], "can be served once"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedpeft", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_options_are_checked() -> None:
    program = (
        "import sys; from fedpeft.cli.main import run; sys.argv = ['fedpeft', 'serve', '--model', "
        "'a', '--folder', 'b', '--tls-key', 'c']\n"
        "try: run()\nexcept SystemExit: print({'torch', 'grpc', 'starlette'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"

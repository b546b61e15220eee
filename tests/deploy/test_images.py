"""The images: linted, built from files that there are, run by nobody special."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedpeft import __version__
from fedpeft_server.config import ServerConfig, load_server_config
from tests.deploy.commands import commands, problem
from tests.deploy.conftest import ROOT

_LISTEN = ServerConfig().listen


@pytest.fixture(scope="module")
def stages(deploy: Path) -> dict[str, str]:
    """Name of a stage → its instructions, one a line."""
    text = (deploy / "docker" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", text, flags=re.MULTILINE)
    found = {"": parts[0]}
    for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found[name] = f"FROM {base}\n{body}"
    return found


def test_hadolint_has_nothing_to_say(deploy: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [hadolint, "--no-color", deploy / "docker" / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_image_is_pinned(stages: dict[str, str]) -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11-slim-\w+$", stages[""], re.MULTILINE)
    for name, text in stages.items():
        if name:
            base = text.split("\n")[0].removeprefix("FROM ")
            assert base == "${PYTHON_IMAGE}" or base in stages, name


def test_what_is_copied_is_there_and_not_ignored(stages: dict[str, str]) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "**", "everything is left out but what follows"
    kept = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source
        for text in stages.values()
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == kept
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_extras_are_in_the_project(stages: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for stage in ("build-server", "build-client"):
        (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", stages[stage])
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", ["server", "client"])
def test_no_root_no_tools_no_shell(stages: dict[str, str], name: str) -> None:
    text = stages[name]
    assert text.startswith("FROM runtime")
    assert "RUN" not in text
    assert "USER" not in text
    assert re.search(r"^USER 10001:10001$", stages["runtime"], re.MULTILINE)
    assert "pip uninstall" in stages["runtime"]
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "fedpeft"]' in stages["runtime"]


@pytest.mark.parametrize("name", ["server", "client"])
def test_commands(stages: dict[str, str], name: str) -> None:
    (line,) = re.findall(r"^CMD (\[.+\])$", stages[name], re.MULTILINE)
    assert problem(json.loads(line)) is None


def test_health_checks(stages: dict[str, str]) -> None:
    pattern = r"^HEALTHCHECK .*CMD (\[.+\])$"
    (server,) = re.findall(pattern, stages["server"], re.MULTILINE)
    (client,) = re.findall(pattern, stages["client"], re.MULTILINE)
    page = f"http://{_LISTEN.metrics_host}:{_LISTEN.metrics_port}/ready"
    assert f"'{page}'" in json.loads(server)[-1]
    (words,) = commands(json.loads(client)[-1])
    assert problem(words) is None
    (state,) = re.findall(r"--state (\S+)", json.loads(client)[-1])
    assert state == "/var/lib/fedpeft/state"


def test_ports(stages: dict[str, str]) -> None:
    (ports,) = re.findall(r"^EXPOSE (.+)$", stages["server"], re.MULTILINE)
    assert ports.split() == [str(_LISTEN.port), str(_LISTEN.fleet_port)]
    assert "EXPOSE" not in stages["client"]


def test_version(stages: dict[str, str]) -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in stages["runtime"]


@pytest.mark.parametrize("name", ["server.toml", "compose/server.toml"])
def test_configuration(deploy: Path, name: str) -> None:
    config = load_server_config(deploy / name)
    assert config.storage.folder == Path("/var/lib/fedpeft/state")
    assert {path.parent for _, path in config.identity} == {Path("/etc/fedpeft/identity")}
    assert config.listen == _LISTEN

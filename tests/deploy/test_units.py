"""The systemd units: what systemd itself says of them, and that they agree with each other."""

import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft_server.config import load_server_config
from tests.deploy.commands import commands, problem

_UNITS = ("fedpeft-server.service", "fedpeft-client@.service")
_EACH = pytest.mark.parametrize("name", _UNITS)


def _read(path: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        found[key].append(value)
    return found


@_EACH
def test_systemd_verifies_it(
    deploy: Path, name: str, tmp_path: Path, program: Callable[[str, str], str]
) -> None:
    analyze = program("systemd-analyze", "systemd")
    text = (deploy / "systemd" / name).read_text(encoding="utf-8")
    # verify asks whether the program is there.
    (tmp_path / name).write_text(text.replace("/opt/fedpeft/bin/fedpeft", "/bin/true"))
    command = [analyze, "verify", "--man=no", tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [
        line
        for line in done.stderr.splitlines()
        # Known from systemd 254 on; the unit says what older ones do.
        if str(tmp_path) in line and not re.search("RestartSteps|RestartMaxDelaySec", line)
    ]
    assert said == []


@_EACH
def test_exposure(deploy: Path, name: str, program: Callable[[str, str], str]) -> None:
    analyze = program("systemd-analyze", "systemd")
    unit = deploy / "systemd" / name
    command = [analyze, "security", "--offline=yes", "--threshold=15", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


@_EACH
def test_it_is_always_started_again(deploy: Path, name: str) -> None:
    unit = _read(deploy / "systemd" / name)
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"], "systemd must not give up"
    assert "RestartPreventExitStatus" not in unit
    assert float(unit["RestartSec"][0].removesuffix("s")) > 0
    assert unit["KillMode"] == ["mixed"]
    (words,) = commands((deploy / "systemd" / name).read_text(encoding="utf-8"))
    assert problem(words) is None


def test_both_are_hardened_alike(deploy: Path) -> None:
    pattern = re.compile(r"^# What it may do to the machine.*?(?=^\[Install\])", re.M | re.DOTALL)
    first, second = (
        pattern.findall((deploy / "systemd" / name).read_text(encoding="utf-8")) for name in _UNITS
    )
    assert first == second
    assert len(first) == 1


def test_paths_are_those_that_the_unit_may_write(deploy: Path) -> None:
    unit = _read(deploy / "systemd" / "fedpeft-server.service")
    state = Path("/var/lib", unit["StateDirectory"][0])
    config = load_server_config(deploy / "server.toml")
    assert state in config.storage.folder.parents
    assert "--config /etc/fedpeft/server.toml" in unit["ExecStart"][0]


def test_example_of_a_client_has_what_its_unit_uses(deploy: Path) -> None:
    unit = _read(deploy / "systemd" / "fedpeft-client@.service")
    example = _read(deploy / "systemd" / "client.env.example")
    used = set(re.findall(r"\$\{?([A-Z]+)", unit["ExecStart"][0]))
    assert set(example) == used | {"FEDPEFT_SERVER", "FEDPEFT_TOKEN"}
    options = example["OPTIONS"][0].split()
    words = ["client", "join", "server", "--identity", "i", "--data", "d", *options]
    assert problem(words) is None


@pytest.mark.parametrize(
    ("name", "tool"), [("sysusers", "systemd-sysusers"), ("tmpfiles", "systemd-tmpfiles")]
)
def test_users_and_folders_can_be_made(
    deploy: Path, tmp_path: Path, name: str, tool: str, program: Callable[[str, str], str]
) -> None:
    users = deploy / "systemd" / "fedpeft.sysusers.conf"
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for command in (
        [program("systemd-sysusers", "systemd"), f"--root={root}", users],
        [program(tool, "systemd"), f"--root={root}", *(["--create"] if name == "tmpfiles" else []),
         deploy / "systemd" / f"fedpeft.{name}.conf"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    accounts = (root / "etc" / "passwd").read_text(encoding="utf-8")
    units = [_read(deploy / "systemd" / unit) for unit in _UNITS]
    made = set(re.findall(r"^(fedpeft[\w-]*):", accounts, re.MULTILINE))
    assert made == {unit["User"][0] for unit in units}
    if name == "tmpfiles":
        assert (root / "var" / "lib" / "fedpeft-client").stat().st_mode & 0o777 == 0o700
        assert (root / "etc" / "fedpeft" / "identity").stat().st_mode & 0o777 == 0o700

"""deploy/compose.yaml: valid, hardened, and its clients reach two ports and nothing else."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from fedpeft_server.config import ServerConfig, load_server_config

_LISTEN = ServerConfig().listen
_CLINICS = ("clinic-a", "clinic-b", "clinic-c")
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):-([^}]*)\}")


@pytest.fixture(scope="module")
def text(deploy: Path) -> str:
    return (deploy / "compose.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose(text: str) -> dict[str, Any]:
    """The file as Compose sees it without an .env: defaults filled in, anchors merged."""
    loaded = yaml.safe_load(_VARIABLE.sub(lambda match: match[2], text))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = compose["services"]
    return found


def test_it_follows_the_specification(compose: dict[str, Any]) -> None:
    parsed = PyCompose.from_json(json.dumps(compose))
    assert set(_CLINICS) < set(parsed.service_names())


def test_the_parser_refuses_what_is_wrong(compose: dict[str, Any]) -> None:
    wrong = compose["services"]["server"] | {"restart": "sometimes"}
    with pytest.raises(ValueError, match="sometimes"):
        PyCompose.from_json(json.dumps({"services": {"server": wrong}}))


def test_what_is_named_is_there(deploy: Path, compose: dict[str, Any]) -> None:
    used = {
        entry.split(":")[0]
        for service in compose["services"].values()
        for entry in service.get("volumes", [])
    }
    files = {name for name in used if name.startswith(".")}
    assert [name for name in files if not (deploy / name).exists()] == []
    assert used - files == set(compose["volumes"])
    networks = {n for service in compose["services"].values() for n in service.get("networks", [])}
    assert networks == set(compose["networks"])


def test_clients_reach_the_server_alone(
    compose: dict[str, Any], services: Mapping[str, Mapping[str, Any]]
) -> None:
    for network in ("federation", "database"):
        assert compose["networks"][network] == {"internal": True}
    for clinic in _CLINICS:
        assert services[clinic]["networks"] == ["federation"]
        assert "ports" not in services[clinic]
    names = {name for name in services if "federation" in services[name].get("networks", [])}
    assert names == {"server", "operator", "invitations", *_CLINICS}
    assert services["database"]["networks"] == ["database"]
    assert "ports" not in services["database"]


def test_ports(deploy: Path, services: Mapping[str, Mapping[str, Any]]) -> None:
    ports = [f"127.0.0.1:{port}:{port}" for port in (_LISTEN.port, _LISTEN.fleet_port)]
    assert services["server"]["ports"] == ports
    listen = load_server_config(deploy / "compose" / "server.toml").listen
    assert listen.metrics_host == "127.0.0.1", "the metrics are on no network"


def test_nobody_sees_the_secrets_of_another(services: Mapping[str, Mapping[str, Any]]) -> None:
    for clinic in _CLINICS:
        mounted = {entry.split(":")[0] for entry in services[clinic]["volumes"]}
        assert mounted == {f"{clinic}-{what}" for what in ("identity", "state", "rows", "token")}
    holders = [
        name
        for name, service in services.items()
        if any(entry.startswith("authority:") for entry in service.get("volumes", []))
    ]
    assert holders == ["setup"]
    assert services["setup"]["network_mode"] == "none"


def test_services_are_hardened(services: Mapping[str, Mapping[str, Any]]) -> None:
    for name, service in services.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        assert not re.search(r":latest$|^[^:@]+$", service["image"]), name
        if name not in ("database", "setup"):
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"], name
            assert "cap_add" not in service, name
            assert "user" not in service, name
            assert service["deploy"]["resources"]["limits"]["memory"], name


def test_order_of_starting(services: Mapping[str, Mapping[str, Any]]) -> None:
    healthy = {"condition": "service_healthy"}
    done = {"condition": "service_completed_successfully"}
    assert services["server"]["depends_on"] == {"setup": done, "database": healthy}
    for clinic in _CLINICS:
        assert services[clinic]["depends_on"] == {"server": healthy, "invitations": done}


def test_example_of_settings_is_whole(deploy: Path, text: str) -> None:
    example = (deploy / ".env.example").read_text(encoding="utf-8")
    given = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    defaults = dict(_VARIABLE.findall(text))
    assert set(given) == set(defaults)
    for name, value in given.items():
        assert value in ("", defaults[name]), name


@pytest.mark.parametrize("name", ["setup.sh", "invite.sh"])
def test_scripts(deploy: Path, name: str, program: Callable[[str, str], str]) -> None:
    path = deploy / "compose" / name
    subprocess.run(["sh", "-n", path], check=True)
    shellcheck = program("shellcheck", "shellcheck")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.stdout == ""

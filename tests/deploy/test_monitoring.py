"""Alerts and dashboard: they parse, they fire, and every metric that they name is one of ours."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from fedpeft.wire.catalogue import BY_CODE
from fedpeft_server import events
from fedpeft_server.config import IdentityConfig
from fedpeft_server.records import RunStatus
from fedpeft_server.state import State
from fedpeft_server.telemetry.expiry import ExpiryMetrics
from fedpeft_server.telemetry.metrics import CallMetrics, StateMetrics
from fedpeft_server.telemetry.run_log import RunLog
from tests.deploy.conftest import ROOT

_VALUES = {
    "code": set(BY_CODE),
    "kind": set(events.KINDS),
    "status": set(RunStatus),
    "state": {"enrolled", "revoked", "online"},
    "of": {"certificate", "authority", "revocations"},
    "job": {"fedpeft"},
}


class _Nobody:
    """Nodes, none of them online."""

    def register(self, client_id: str, public_key: bytes) -> None:
        raise NotImplementedError

    def unregister(self, client_id: str) -> None:
        raise NotImplementedError

    def online(self) -> frozenset[str]:
        return frozenset()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    """Every metric that a server exposes."""
    registry = CollectorRegistry()
    with State.open(tmp_path_factory.mktemp("state") / "server.db") as state:
        registry.register(StateMetrics(state, _Nobody()))
        registry.register(ExpiryMetrics(IdentityConfig()))
        CallMetrics(registry).ended("method", "internal", 0.1)
        RunLog(registry)("status", {})
        return list(registry.collect())


def _rules(deploy: Path) -> list[dict[str, Any]]:
    loaded = yaml.safe_load((deploy / "prometheus" / "fedpeft.rules.yml").read_text("utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def _dashboard(deploy: Path) -> dict[str, Any]:
    found = json.loads((deploy / "prometheus" / "dashboard.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def _selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None:
            yield from _selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from _selectors(child)


def test_expressions_name_metrics_that_there_are(deploy: Path, families: list[Metric]) -> None:
    expressions = [rule["expr"] for rule in _rules(deploy)]
    panels = _dashboard(deploy)["panels"]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    used = set()
    for expression in expressions:
        found = list(_selectors(promql_parser.parse(expression)))
        assert found, expression
        for selector in found:
            used.add(selector.name)
            for matcher in selector.matchers.matchers:
                if matcher.name in _VALUES:
                    assert set(matcher.value.split("|")) <= _VALUES[matcher.name], expression
    assert used <= {"up"} | {sample.name for family in families for sample in family.samples}
    looked_at = {re.sub("_(total|bucket)$", "", name) for name in used}
    assert {family.name for family in families} <= looked_at, "a metric that nobody looks at"


def test_every_alert_says_what_to_do(deploy: Path) -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    headings = set(re.findall(r"^#+ (.+)$", runbook, re.MULTILINE))
    for rule in _rules(deploy):
        assert rule["labels"]["severity"] in ("warning", "critical")
        action = rule["annotations"]["action"]
        for heading in re.findall(r"docs/runbook\.md, '([^']+)'", action):
            assert heading in headings, action


def test_promtool_sees_the_alerts_fire(deploy: Path, program: Callable[[str, str], str]) -> None:
    promtool = program("promtool", "prometheus")
    folder = deploy / "prometheus"
    tests = yaml.safe_load((folder / "fedpeft.test.yml").read_text("utf-8"))["tests"]
    fired = {
        case["alertname"] for test in tests for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }  # fmt: skip
    assert fired == {rule["alert"] for rule in _rules(deploy)}
    for command in (["check", "rules", "fedpeft.rules.yml"], ["test", "rules", "fedpeft.test.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_has_each_panel_once_and_on_the_grid(deploy: Path) -> None:
    panels = _dashboard(deploy)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells

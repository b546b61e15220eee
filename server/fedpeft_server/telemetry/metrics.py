"""Prometheus metrics of calls as they end, and of the state of record when they are asked for."""

from collections import Counter as Count
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedpeft.errors import UnavailableError
from fedpeft.wire.catalogue import BY_CODE
from fedpeft_server.ports import ClientNodes
from fedpeft_server.records import RunStatus
from fedpeft_server.state import State

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class CallMetrics:
    """Counts calls by method and code, how long they took, and the handshakes before them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the metrics."""
        self._calls = Counter(
            "fedpeft_calls", "Calls that ended", ["method", "code"], registry=registry
        )
        self._refusals = Counter(
            "fedpeft_refusals", "Calls that were refused", ["code"], registry=registry
        )
        self._seconds = Histogram(
            "fedpeft_call_seconds",
            "Seconds that calls took",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._handshakes = Counter(
            "fedpeft_handshakes",
            "TLS handshakes that began; one that fails is followed by no call",
            registry=registry,
        )

    def handshake_began(self) -> None:
        """Counts a handshake; gRPC says nothing of how it ends."""
        self._handshakes.inc()

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Counts a call. `method` is one of the table of rules, or "unknown"."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)
        if code in BY_CODE:
            self._refusals.labels(code).inc()


class StateMetrics(Collector):
    """Reads runs, rounds and clients from the state of record whenever they are asked for."""

    def __init__(self, state: State, nodes: ClientNodes) -> None:
        """Takes what is read."""
        self._state, self._nodes = state, nodes

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; while the database is down, only that it is."""
        try:
            families = list(self._families())
        except UnavailableError:
            families = []
        up = GaugeMetricFamily("fedpeft_database_up", "Whether the database answers")
        up.add_metric([], float(bool(families)))
        yield up
        yield from families

    def _families(self) -> Iterator[Metric]:
        found = self._state.runs()
        by_status = Count(run.status for run in found)
        runs = GaugeMetricFamily("fedpeft_runs", "Runs", labels=["status"])
        for status in RunStatus:
            runs.add_metric([status], by_status[status])
        yield runs
        newest = [self._state.newest_adapter(run.run_id) for run in found]
        rounds = GaugeMetricFamily("fedpeft_rounds_finished", "Finished rounds of all runs")
        rounds.add_metric([], sum(adapter.round for adapter in newest if adapter is not None))
        yield rounds
        clients = self._state.clients()
        enrolled = GaugeMetricFamily("fedpeft_clients", "Clients", labels=["state"])
        enrolled.add_metric(["enrolled"], sum(client.revoked_at is None for client in clients))
        enrolled.add_metric(["revoked"], sum(client.revoked_at is not None for client in clients))
        enrolled.add_metric(["online"], len(self._nodes.online()))
        yield enrolled

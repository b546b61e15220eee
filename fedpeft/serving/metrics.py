"""What a serving process counts, in Prometheus' text format."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedpeft.serving.served import Served

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ServingMetrics:
    """Counters of one process."""

    def __init__(self, served: Served) -> None:
        """Takes what it reads gauges from."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fedpeft_serving_requests",
            "Requests by path and HTTP status",
            ["path", "status"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "fedpeft_serving_tokens",
            "Tokens of prompts and answers",
            ["of"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fedpeft_serving_request_seconds",
            "Time from a request to the end of its answer",
            ["path"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Gauges(served))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def tokens(self, prompt: int, answer: int) -> None:
        """Counts tokens."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("answer").inc(answer)

    def text(self) -> bytes:
        """Returns everything."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Read when they are asked for."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """Yields rows, waiting requests, adapters and names."""
        served = self._served
        for name, help_text, value in (
            ("rows", "Requests that are being answered", served.answering.num_rows),
            ("waiting", "Requests that no step has begun", served.answering.num_waiting),
            ("adapters", "Versions in memory", len(served.model.bank.digests)),
        ):
            yield GaugeMetricFamily(f"fedpeft_serving_{name}", help_text, value=value)
        family = GaugeMetricFamily(
            "fedpeft_serving_name_up", "Whether a version answers under the name", labels=["name"]
        )
        for name, state in served.catalogue.names().items():
            family.add_metric([name], float(state.version is not None and not state.is_held))
        yield family

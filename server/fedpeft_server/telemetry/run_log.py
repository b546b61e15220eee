"""What runs tell, as log lines with run, round and client, and as counters."""

from collections.abc import Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter

_LOG = structlog.get_logger("runs")


class RunLog:
    """The engine's `watch`: is told of every event of every run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the counter."""
        self._events = Counter(
            "fedpeft_run_events", "Events of all runs", ["kind"], registry=registry
        )

    def __call__(self, kind: str, body: Mapping[str, Any]) -> None:
        """Takes an event of `events.KINDS`, "error" with the exception, or "unavailable"."""
        self._events.labels(kind).inc()
        told = {key: value for key, value in body.items() if value is not None}
        error = told.pop("error", None)
        if isinstance(error, BaseException):
            _LOG.error("run failed", exc_info=error, **told)
        else:
            _LOG.info(kind, **told)

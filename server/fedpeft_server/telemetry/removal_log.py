"""What removal requests tell, as log lines with the request, and as counters; never a row."""

from collections.abc import Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter

_LOG = structlog.get_logger("removals")


class RemovalLog:
    """The removal engine's `watch`: is told of every event of every request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the counter."""
        self._events = Counter(
            "fedpeft_removal_events", "Events of all removals", ["kind"], registry=registry
        )

    def __call__(self, kind: str, body: Mapping[str, Any]) -> None:
        """Takes an event of `removals.events.KINDS`; or "error", "failed", "lost", "unavailable".

        With "error" comes the exception.
        """
        self._events.labels(kind).inc()
        told = dict(body)
        error = told.pop("error", None)
        if isinstance(error, BaseException):
            _LOG.error("removals failed", exc_info=error, **told)
        else:
            _LOG.info(kind, **told)

"""Until when the server's papers hold: on the day after, nobody is let in any more."""

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedpeft.errors import IdentityError
from fedpeft.identity.certificates import read_certificate, read_revocations
from fedpeft_server.config import IdentityConfig


class ExpiryMetrics(Collector):
    """Reads the files whenever it is asked, as the server does when they change."""

    def __init__(self, files: IdentityConfig) -> None:
        """Takes where they are."""
        self._files = files

    def collect(self) -> Iterator[Metric]:
        """Yields the last moment of each; 0, long ago, for one that cannot be read."""
        family = GaugeMetricFamily(
            "fedpeft_expiry_timestamp_seconds",
            "When certificates and the revocation list expire, seconds since 1970",
            labels=["of"],
        )
        for of, expiry in (
            ("certificate", self._certificate),
            ("authority", self._authority),
            ("revocations", self._revocations),
        ):
            try:
                family.add_metric([of], expiry())
            except IdentityError:
                family.add_metric([of], 0.0)
        yield family

    def _certificate(self) -> float:
        return read_certificate(self._files.certificate).not_valid_after_utc.timestamp()

    def _authority(self) -> float:
        return read_certificate(self._files.authority).not_valid_after_utc.timestamp()

    def _revocations(self) -> float:
        until = read_revocations(self._files.revocations).next_update_utc
        return until.timestamp() if until is not None else 0.0

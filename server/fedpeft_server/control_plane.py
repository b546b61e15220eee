"""The control plane: every service behind one door, on one port in mutual TLS."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from fedpeft.errors import ConfigError, UnavailableError
from fedpeft.identity.credentials import Credentials
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.wire.v1 import (
    adapters_pb2_grpc,
    budgets_pb2_grpc,
    clients_pb2_grpc,
    removals_pb2_grpc,
    runs_pb2_grpc,
    server_pb2_grpc,
)
from fedpeft_server.about import About
from fedpeft_server.access.door import Door
from fedpeft_server.access.guard import Guard
from fedpeft_server.access.limits import Concurrency, Rate
from fedpeft_server.access.rules import RULES
from fedpeft_server.access.signatures import SignatureCheck
from fedpeft_server.access.trail import AuditTrail
from fedpeft_server.access.trust import ServerIdentity, Trust
from fedpeft_server.config import ListenConfig, ServerConfig
from fedpeft_server.enrolment import Enrolment
from fedpeft_server.imports import Imports
from fedpeft_server.ports import ClientNodes, RemovalEngine, RunEngine
from fedpeft_server.removals.requests import Requests
from fedpeft_server.services.adapters import AdaptersService
from fedpeft_server.services.budgets import BudgetsService
from fedpeft_server.services.clients import ClientsService
from fedpeft_server.services.health import HealthService
from fedpeft_server.services.removals import RemovalsService
from fedpeft_server.services.runs import RunsService
from fedpeft_server.services.server import ServerService
from fedpeft_server.state import State
from fedpeft_server.submission import Submissions
from fedpeft_server.telemetry.metrics import CallMetrics, StateMetrics
from fedpeft_server.telemetry.pages import Pages

_NUM_SHORT_CALLS = 16
"""Threads for calls that are no streams."""
_FIRST_CHANGES = 1000


class ControlPlane:
    """Listens, and answers. It composes the services; it does no work of its own."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        state: State,
        artifacts: ArtifactStore,
        imports: Imports,
        engine: RunEngine,
        nodes: ClientNodes,
        trust: Trust,
        about: About,
        registry: CollectorRegistry,
        removal_engine: RemovalEngine,
    ) -> None:
        """Binds the ports; nobody is answered before `start`.

        Args:
            config: Addresses and limits.
            state: The database of record.
            artifacts: Where weights and held-out rows are kept.
            imports: Takes in versions from elsewhere.
            engine: Brings runs forward.
            nodes: Clients' nodes.
            trust: Whose certificate holds.
            about: What the server says of itself.
            registry: Where metrics are registered.
            removal_engine: Brings removal requests forward.

        Raises:
            ConfigError: If a port cannot be bound.
        """
        self._limits = limits = config.limits
        self._state = state
        self._closing = threading.Event()
        enrolment = Enrolment(state, nodes, max_clients=limits.max_clients)
        trail = AuditTrail(state)
        self._door = Door(
            trust=trust,
            is_revoked=enrolment.is_revoked,
            signatures=SignatureCheck(
                is_called=about.identity.is_called, use_nonce=state.use_nonce
            ),
            changes=Rate(burst=_FIRST_CHANGES, per_minute=limits.changes_per_minute),
        )
        metrics = CallMetrics(registry)
        guard = Guard(
            door=self._door,
            concurrency=Concurrency(
                max_streams=limits.max_streams, max_calls_per_caller=limits.max_calls_per_caller
            ),
            trail=trail,
            metrics=metrics,
        )
        registry.register(StateMetrics(state, nodes))
        self._threads = ThreadPoolExecutor(limits.max_streams + _NUM_SHORT_CALLS, "call")
        self._server = grpc.server(
            self._threads, interceptors=[guard], options=_options(limits.max_message_bytes)
        )
        submissions = Submissions(state, artifacts, config.runs.folders)
        runs = RunsService(state, submissions, engine, max_held_out_bytes=limits.max_held_out_bytes)
        services = frozenset(path.split("/")[1] for path in RULES)
        server = self._server
        runs_pb2_grpc.add_RunsServicer_to_server(runs, server)
        clients = ClientsService(state, enrolment, nodes, about)
        clients_pb2_grpc.add_ClientsServicer_to_server(clients, server)
        budgets_pb2_grpc.add_BudgetsServicer_to_server(BudgetsService(state), server)
        adapters = AdaptersService(state, artifacts, imports)
        adapters_pb2_grpc.add_AdaptersServicer_to_server(adapters, server)
        requests = Requests(
            state,
            artifacts,
            removal_engine,
            max_open=limits.max_open_removals,
            max_records_bytes=limits.max_records_bytes,
        )
        removals = RemovalsService(state, requests, removal_engine)
        removals_pb2_grpc.add_RemovalsServicer_to_server(removals, server)
        server_pb2_grpc.add_ServerServicer_to_server(ServerService(state, about), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(services, self.is_ready), server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.ReflectionServicer(services), server
        )
        self._pages = Pages(
            config.listen.metrics_host, config.listen.metrics_port, registry, self.is_ready
        )
        self.port = _bind(server, config.listen, about.identity, metrics)

    @property
    def metrics_port(self) -> int:
        """Where /metrics is."""
        return self._pages.port

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()
        self._pages.start()

    def stop(self) -> None:
        """Takes no new calls, ends streams, lets open calls end within `shutdown_s`."""
        self._closing.set()
        self._door.close()
        self._server.stop(self._limits.shutdown_s).wait()
        self._threads.shutdown()
        self._pages.stop()

    def is_ready(self) -> bool:
        """Returns whether the server can do its work now."""
        if self._closing.is_set():
            return False
        try:
            self._state.audit_head()
        except UnavailableError:
            return False
        return True


def _options(max_message_bytes: int) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        # A small message that unpacks into a large one cannot be sent at all.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", 16 * 2**10),
        # A caller that is gone without a word is noticed, and keeps no thread.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        # Two servers on one port would share the calls out without a word.
        ("grpc.so_reuseport", 0),
    )


def _bind(
    server: grpc.Server, listen: ListenConfig, identity: ServerIdentity, metrics: CallMetrics
) -> int:
    host = f"[{listen.host}]" if ":" in listen.host else listen.host

    def at_each_handshake() -> grpc.ServerCertificateConfiguration:
        metrics.handshake_began()
        return _tls(identity.current())  # so that a renewed certificate needs no restart

    credentials = grpc.dynamic_ssl_server_credentials(
        _tls(identity.current()), at_each_handshake, require_client_authentication=True
    )
    try:
        return server.add_secure_port(f"{host}:{listen.port}", credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"listen.port: {host}:{listen.port} cannot be bound; is another server running?"
        ) from error


def _tls(held: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(held.key_pem, held.certificate_pem)], root_certificates=held.authority_pem
    )

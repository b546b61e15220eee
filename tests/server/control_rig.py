"""A control plane that listens, with real TLS, database and artifact store; no run ever trains."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from fedpeft.errors import AdapterError, IdentityError
from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY
from fedpeft.identity.roles import Role
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from fedpeft.remote import Connection
from fedpeft_server import events
from fedpeft_server.about import About
from fedpeft_server.access.trust import ServerIdentity, Trust
from fedpeft_server.config import LimitsConfig, ListenConfig, RunsConfig, ServerConfig
from fedpeft_server.control_plane import ControlPlane
from fedpeft_server.imports import Imports
from fedpeft_server.manifests import Manifests
from fedpeft_server.records import RemovalRecord, RemovalState, RunRecord, RunStatus
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State
from fedpeft_server.state.removals import OPEN
from tests.server.holders import Holders

OPERATOR, AUDITOR, READER = "operator", "auditor", "reader"
ROLE_OF = {
    OPERATOR: Role.OPERATOR,
    AUDITOR: Role.AUDITOR,
    READER: Role.READER,
    "clinic": Role.DATA_OWNER,
    "hospital": Role.DATA_OWNER,
}


@dataclass
class StandingEngine:
    """Takes runs up and leaves them there: training is not what these tests are about."""

    state: State
    started: list[str] = field(default_factory=list)

    def start(self, run_id: str) -> None:
        self.started.append(run_id)
        if self.state.run(run_id).status is RunStatus.SUBMITTED:
            self.turn(run_id, RunStatus.RUNNING)

    def stop(self, run_id: str, reason: str) -> RunRecord:
        return self.turn(run_id, RunStatus.STOPPED, reason, UNDER_WAY)

    def resume(self, run_id: str) -> RunRecord:
        ended = (RunStatus.STOPPED, RunStatus.FAILED)
        return self.turn(run_id, RunStatus.SUBMITTED, "", ended)

    def turn(
        self,
        run_id: str,
        status: RunStatus,
        reason: str = "",
        expected: tuple[RunStatus, ...] | None = None,
    ) -> RunRecord:
        """Changes a run's status as the engine does: first in the run, then as an event."""
        run = self.state.set_run_status(run_id, status, reason=reason, expected=expected)
        body = {"status": status.value, "reason": reason}
        self.state.add_event(run_id, events.STATUS, body=body)
        return run


@dataclass
class StandingRemovals:
    """Takes removal requests up and leaves them there: jobs are not what these tests are about."""

    state: State
    started: list[str] = field(default_factory=list)
    submitted: list[tuple[str, bytes, dict[str, Any], dict[str, bytes]]] = field(
        default_factory=list
    )

    def start(self, request_id: str) -> None:
        assert self.state.removal(request_id).state is not RemovalState.RECEIVED
        self.started.append(request_id)

    def cancel(self, request_id: str, reason: str) -> RemovalRecord:
        return self.turn(request_id, RemovalState.CANCELLED, reason=reason)

    def submit(
        self,
        request_id: str,
        adapter: bytes,
        result: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> RemovalRecord:
        if not adapter:
            raise AdapterError("expected the tensors of an adapter, got none")
        self.submitted.append((request_id, adapter, dict(result), dict(files)))
        self.turn(request_id, RemovalState.RUNNING)
        return self.turn(request_id, RemovalState.VERIFYING)

    def turn(self, request_id: str, state: RemovalState, **changes: Any) -> RemovalRecord:
        """Brings a request forward, as the engine does."""
        return self.state.advance(request_id, state, expected=OPEN, **changes)

    def publish(self, request_id: str, **changes: Any) -> RemovalRecord:
        """Brings a planned request to its good end."""
        for state in (RemovalState.RUNNING, RemovalState.VERIFYING):
            self.turn(request_id, state)
        return self.turn(request_id, RemovalState.PUBLISHED, **changes)


@dataclass
class ListedNodes:
    """Remembers which key each client's node may connect with."""

    keys: dict[str, bytes] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)
    taken_out: set[bytes] = field(default_factory=set)

    def register(self, client_id: str, public_key: bytes) -> None:
        if public_key in self.taken_out:
            raise IdentityError("this key was unregistered")
        self.keys[client_id] = public_key

    def unregister(self, client_id: str) -> None:
        if client_id in self.keys:
            self.taken_out.add(self.keys.pop(client_id))
        self.connected.discard(client_id)

    def online(self) -> Mapping[str, object]:
        return dict.fromkeys(self.connected)


@dataclass(kw_only=True)
class Rig:
    """A listening control plane and everybody who may call it."""

    folder: Path
    holders: Holders
    state: State
    artifacts: ArtifactStore
    engine: StandingEngine
    removals: StandingRemovals
    nodes: ListedNodes
    manifests: Manifests
    control: ControlPlane
    _opened: list[Connection] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"localhost:{self.control.port}"

    def connect(self, name: str, **settings: float) -> Connection:
        """A connection of one holder, closed when the rig is."""
        settings = {"patience_s": 0.0, "timeout_s": 30.0} | settings
        connection = Connection.open(self.address, self.holders.folder / name, **settings)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._opened:
            connection.close()
        self.control.stop()


def _quiet_logs() -> None:
    """Only what went wrong, without local variables: a failure's output should be readable."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )


@contextmanager
def listening(folder: Path, database: str | None = None, **limits: float) -> Iterator[Rig]:
    """Opens everything and listens on free ports."""
    _quiet_logs()
    holders = Holders(folder)
    server = holders.server()
    for name, role in ROLE_OF.items():
        holders.issue(name, role)
    data = folder / "data"
    data.mkdir()
    config = ServerConfig(
        listen=ListenConfig(host="127.0.0.1", port=0, metrics_port=0),
        limits=LimitsConfig.model_validate({"shutdown_s": 5.0, **limits}),
        runs=RunsConfig(folders=(data,)),
    )
    with State.open(database or folder / "server.db", busy_timeout_s=1.0) as state:
        artifacts = ArtifactStore(folder / "artifacts")
        engine, nodes = StandingEngine(state), ListedNodes()
        removals = StandingRemovals(state)
        identity = ServerIdentity(server / KEY, server / CERTIFICATE, server / AUTHORITY)
        authority, held = read_certificate(server / AUTHORITY), identity.current()
        signer = RegistrySigner.open(folder, server_key=held.key, certificate=held.certificate)
        manifests = Manifests(state=state, signer=signer)
        control = ControlPlane(
            config,
            state=state,
            artifacts=artifacts,
            imports=Imports(state, artifacts, manifests, RegistryTrust.of_authority(authority)),
            engine=engine,
            nodes=nodes,
            trust=Trust(read_certificate(server / AUTHORITY), holders.revocations),
            about=About(identity=identity, fleet_address=":7444", bundle_digest="b" * 64),
            registry=CollectorRegistry(),
            removal_engine=removals,
        )
        control.start()
        rig = Rig(
            folder=folder,
            holders=holders,
            state=state,
            artifacts=artifacts,
            engine=engine,
            removals=removals,
            nodes=nodes,
            manifests=manifests,
            control=control,
        )
        try:
            yield rig
        finally:
            rig.close()

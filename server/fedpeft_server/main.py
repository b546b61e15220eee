"""The coordinator's process: its parts are put together here and nowhere else."""

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from fedpeft import __version__
from fedpeft.errors import ConfigError
from fedpeft.identity.certificates import read_revocations
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from fedpeft_server.about import About
from fedpeft_server.access.trust import ServerIdentity, Trust
from fedpeft_server.config import ServerConfig
from fedpeft_server.control_plane import ControlPlane
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.engine import Engine
from fedpeft_server.fleet import Fleet, FleetConfig, build_bundle
from fedpeft_server.fleet_post import open_fleet_post
from fedpeft_server.imports import Imports
from fedpeft_server.manifests import Manifests
from fedpeft_server.nodes import Nodes
from fedpeft_server.removals.assembly import removal_jobs
from fedpeft_server.state import State
from fedpeft_server.telemetry.expiry import ExpiryMetrics
from fedpeft_server.telemetry.logs import configure_logs
from fedpeft_server.telemetry.removal_log import RemovalLog
from fedpeft_server.telemetry.run_log import RunLog

_LOG = structlog.get_logger("server")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens, once it does.

    Attributes:
        port: Of the control plane.
        fleet_port: That nodes connect to.
        metrics_port: Of /metrics, /ready and /alive.
    """

    port: int
    fleet_port: int
    metrics_port: int


def serve(
    config: ServerConfig, *, announce: Callable[[Listening], None], stop: threading.Event
) -> None:
    """Runs a server until it is asked to stop.

    Runs that were under way go on at once, and are left under way at the end.

    Args:
        config: Everything about it.
        announce: Is told where it listens, when it does.
        stop: Set to stop: calls that are open end, then the runs' threads, then the fleet.

    Raises:
        ConfigError: If a port cannot be bound, or another server uses the folder.
        IdentityError: If key, certificate or revocation list cannot be used.
        UnavailableError: If the database cannot be reached.
    """
    configure_logs(config.log)
    folder = config.storage.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = config.identity
    registry = CollectorRegistry()
    registry.register(ExpiryMetrics(files))
    with ExitStack() as stack:
        stack.enter_context(_the_only_one(folder))
        identity = ServerIdentity(files.key, files.certificate, files.authority)
        held = identity.current()
        read_revocations(files.revocations)
        trust = Trust(held.authority, files.revocations)
        state = stack.enter_context(State.open(config.database))
        artifacts = ArtifactStore(config.artifacts)
        signer = RegistrySigner.open(folder, server_key=held.key, certificate=held.certificate)
        manifests = Manifests(state=state, signer=signer)
        bundle = build_bundle()
        fleet = Fleet(
            FleetConfig(
                certificate=files.certificate,
                key=files.key,
                host=config.listen.fleet_host,
                port=config.listen.fleet_port,
            )
        )
        nodes = Nodes(fleet, state)
        stack.callback(fleet.stop)
        engine = Engine(
            state,
            artifacts,
            Correspondence(key=held.key, certificate=held.certificate, identify=trust.identify),
            manifests,
            lambda run_id: open_fleet_post(fleet, nodes, bundle),
            folder=folder / "runs",
            watch=RunLog(registry),
        )
        stack.callback(engine.close)
        removals = removal_jobs(
            config.removals,
            state=state,
            artifacts=artifacts,
            manifests=manifests,
            signer=signer,
            engine=engine,
            folder=folder / "runs",
            watch=RemovalLog(registry),
        )
        stack.callback(removals.close)
        fleet.start()
        control = ControlPlane(
            config,
            state=state,
            artifacts=artifacts,
            imports=Imports(
                state, artifacts, manifests, RegistryTrust.of_authority(held.authority)
            ),
            engine=engine,
            removal_engine=removals,
            nodes=nodes,
            trust=trust,
            about=About(
                identity=identity,
                fleet_address=config.listen.public_fleet_address or f":{fleet.port}",
                bundle_digest=bundle.hash,
            ),
            registry=registry,
        )
        stack.callback(control.stop)
        recovered = engine.recover()
        removals.recover()
        control.start()
        listening = Listening(
            port=control.port, fleet_port=fleet.port, metrics_port=control.metrics_port
        )
        _LOG.info("listening", version=__version__, runs_recovered=recovered, **vars(listening))
        announce(listening)
        stop.wait()
        _LOG.info("stopping")
    _LOG.info("stopped")


@contextmanager
def _the_only_one(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, however it ends: two coordinators would both write."""
    with (folder / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another server is running on {folder}; stop it first") from error
        yield

"""A serving process, from its parts."""

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from fedpeft.errors import ConfigError
from fedpeft.federated.export import MANIFEST_FILE
from fedpeft.registry.trust import RegistryTrust
from fedpeft.remote import Connection
from fedpeft.serving.app import ServingApp
from fedpeft.serving.config import ServeConfig, Task
from fedpeft.serving.following import Follower, Following
from fedpeft.serving.http_server import HttpServer
from fedpeft.serving.remote_source import PinnedSource, RemoteSource
from fedpeft.serving.served import Served
from fedpeft.serving.served_model import ServedModel
from fedpeft.serving.trusted import read_trusted


def serve(
    config: ServeConfig,
    connection: Connection | None,
    trust: RegistryTrust,
    *,
    announce: Callable[[int], object],
    stop: threading.Event,
) -> None:
    """Serves until it is told to stop; then open requests end.

    Args:
        config: What to serve.
        connection: To the server with its aliases and versions; None: folders alone.
        trust: Whose signatures are believed.
        announce: Hears of the port once requests are answered.
        stop: Set to end it.

    Raises:
        AdapterError: If a folder holds a version that does not fit.
        ConfigError: If it cannot listen, or the task is not known.
        ModelError: If the base model cannot be loaded.
        RemoteError: If the server does not know a version that was named.
        VerificationError: If a folder's version is not signed, or altered.
    """
    import torch

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    pinned = _resolved(config.adapters, connection)
    model = ServedModel(
        config.model,
        config.task or _task_of(config, connection),
        revision=config.revision,
        precision=config.precision,
        device=config.device,
        longest=config.longest,
    )
    with ExitStack() as stack:
        served = stack.enter_context(
            Served(model, max_rows=config.max_rows, max_waiting=config.max_waiting)
        )
        for name, folder in config.folders:
            served.catalogue.declare(name)
            served.swap(name, read_trusted(folder, trust, base_digest=model.digest))
        followers: list[Follower] = []
        if connection is not None:
            aliases, versions = RemoteSource(connection), PinnedSource(connection)
            followers += [Follower(name, aliases, served, trust) for name in config.aliases]
            followers += [Follower(digest, versions, served, trust) for digest in pinned]
        for follower in followers:
            follower.tick()
        stack.enter_context(Following(followers, poll_s=config.poll_s))
        server = HttpServer(
            ServingApp(served, config.app).asgi,
            host=config.host,
            port=config.port,
            certificate=config.certificate,
            key=config.key,
        )
        stack.enter_context(server)
        announce(server.port)
        stop.wait()


def _resolved(adapters: Sequence[str], connection: Connection | None) -> list[str]:
    if connection is None:
        return []
    return list(dict.fromkeys(connection.get_adapter(name).digest for name in adapters))


def _task_of(config: ServeConfig, connection: Connection | None) -> Task:
    """Of the first version; nothing else of it is believed yet."""
    if config.folders:
        return _task_in(config.folders[0][1])
    assert connection is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "export")
        connection.download_adapter((*config.aliases, *config.adapters)[0], folder)
        return _task_in(folder)


def _task_in(folder: Path) -> Task:
    path = folder / MANIFEST_FILE
    try:
        task = json.loads(path.read_bytes()).get("task")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} does not say the task ({error}); name it with --task") from error
    if task not in get_args(Task):
        raise ConfigError(f"{path} names the task {task!r}; expected one of {get_args(Task)}")
    found: Task = task
    return found

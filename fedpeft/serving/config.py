"""What a serving process is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedpeft.errors import ConfigError
from fedpeft.serving.adapter_files import Task
from fedpeft.serving.app import AppConfig
from fedpeft.serving.served_model import Precision


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Which base model answers, with which versions, and where.

    Attributes:
        model: A folder, 'package:<distribution>' or a hub id.
        revision: Of a hub id.
        task: None: that of the first version.
        aliases: Names at the server that are followed.
        adapters: Versions at the server that are served under their digests.
        folders: Name → exported version on this machine.
        longest: Tokens of a row, at most.
        max_rows: Answered at once.
        max_waiting: Requests that may wait.
        num_threads: Of the processor; None: all.
        poll_s: How often aliases are asked for.

    Raises:
        ConfigError: If there is nothing to serve, or a name twice.
    """

    model: str
    revision: str | None = None
    task: Task | None = None
    precision: Precision = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    folders: tuple[tuple[str, Path], ...] = ()
    longest: int = 2048
    max_rows: int = 32
    max_waiting: int = 1024
    num_threads: int | None = None
    poll_s: float = 1.0
    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    app: AppConfig = field(default_factory=AppConfig)

    def __post_init__(self) -> None:
        names = [*self.aliases, *self.adapters, *(name for name, _ in self.folders)]
        if not names:
            raise ConfigError("name what to serve: --alias, --adapter or --folder")
        if len(set(names)) != len(names):
            raise ConfigError(f"each name can be served once, got {', '.join(sorted(names))}")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS needs a certificate and its key, or neither")

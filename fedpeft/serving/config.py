"""What a serving process is told; nothing heavy is imported, so that errors are told at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedpeft.errors import ConfigError

Task = Literal["classification", "causal-lm"]
Precision = Literal["float32", "bfloat16", "int8", "int4"]
ChatFormat = Literal["auto", "template", "question-answer"]


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """How requests are taken.

    Attributes:
        api_key: That callers must send as `Authorization: Bearer …`; None: none is asked for.
        chat_format: See `fedpeft.serving.prompts.Prompts`.
        hold_s: How long requests wait for the successor of a withdrawn version.
        max_body_bytes: Of a request.
    """

    api_key: str | None = None
    chat_format: ChatFormat = "auto"
    hold_s: float = 60.0
    max_body_bytes: int = 2**20


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

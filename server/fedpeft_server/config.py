"""How a server is set up: one TOML file; relative paths are taken from its folder."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedpeft.errors import ConfigError, InputError
from fedpeft.files import write_text
from fedpeft.remote.address import DEFAULT_PORT, ServerAddress
from fedpeft.settings import read_toml, validate

FILE_NAME = "server.toml"

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LARGEST_PORT = 65535


class ListenConfig(BaseModel):
    """Where the server listens; port 0 takes a free one."""

    model_config = _FROZEN

    host: str = Field(default="0.0.0.0", description="Address of the control plane.")  # noqa: S104
    port: int = Field(default=DEFAULT_PORT, ge=0, le=_LARGEST_PORT, description="Its port.")
    fleet_host: str = Field(
        default="0.0.0.0",  # noqa: S104
        description="Address that clients' nodes connect to.",
    )
    fleet_port: int = Field(default=7444, ge=0, le=_LARGEST_PORT, description="Its port.")
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of /metrics, /ready and /alive: without TLS, so keep it inside.",
    )
    metrics_port: int = Field(default=7445, ge=0, le=_LARGEST_PORT, description="Its port.")
    public_fleet_address: str = Field(
        default="",
        description="host:port that clients' nodes are told to connect to. Empty: the host that "
        "they called, and fleet_port.",
    )

    @field_validator("public_fleet_address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value:
            try:
                ServerAddress.parse(value)
            except InputError as error:
                raise ValueError(str(error)) from error
        return value


class StorageConfig(BaseModel):
    """What the server keeps, and where."""

    model_config = _FROZEN

    folder: Path = Field(default=Path("state"), description="For all that is not named below.")
    database: str = Field(
        default="",
        description="postgresql://USER@HOST/DATABASE, its password in ~/.pgpass; or a file. Empty: "
        "SQLite in the folder.",
    )
    artifacts: str = Field(
        default="",
        description="Where weights are kept: a folder, or a URL that fsspec reads. Empty: in the "
        "folder.",
    )

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        # Not a validator of the field: its message would quote the value.
        if urlsplit(self.database).password is not None:
            raise ValueError("database must not hold a password; use PGPASSFILE or ~/.pgpass")
        return self


class IdentityConfig(BaseModel):
    """The server's key and certificate, and whom it trusts; each file is read again as it changes.

    The authority's certificate alone is read once.
    """

    model_config = _FROZEN

    key: Path = Field(default=Path("identity/key.pem"), description="Its private key.")
    certificate: Path = Field(
        default=Path("identity/cert.pem"),
        description="Its certificate, with the role server and all hosts it is called by.",
    )
    authority: Path = Field(
        default=Path("identity/authority.cert.pem"),
        description="Certificate of the authority that issued it and everybody else's.",
    )
    revocations: Path = Field(
        default=Path("identity/revoked.crl.pem"),
        description="The authority's revocation list. Missing or expired: nobody is let in.",
    )


class LogConfig(BaseModel):
    """What is written to standard error."""

    model_config = _FROZEN

    format: Literal["json", "console"] = Field(
        default="json", description="'json': one object a line. 'console': for people."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is written."
    )


class LimitsConfig(BaseModel):
    """What one caller, and all of them together, may ask for."""

    model_config = _FROZEN

    max_message_bytes: int = Field(
        default=64 * 2**20,
        ge=2**16,
        lt=2**31,
        description="Of one request. gRPC refuses a larger one before it is in memory.",
    )
    max_held_out_bytes: int = Field(
        default=48 * 2**20, ge=0, description="Of the held-out file that comes with a run."
    )
    max_records_bytes: int = Field(
        default=48 * 2**20, ge=0, description="Of the sealed records of a removal request."
    )
    max_open_removals: int = Field(
        default=20, ge=1, description="Removal requests about one client's data at a time."
    )
    max_clients: int = Field(
        default=1000, ge=1, description="Enrolled and not revoked; invitations beyond are refused."
    )
    max_streams: int = Field(
        default=64, ge=1, le=4096, description="Runs watched and adapters downloaded at once."
    )
    max_calls_per_caller: int = Field(
        default=16, ge=1, description="Calls of one certificate's name at once, streams included."
    )
    changes_per_minute: int = Field(
        default=60,
        ge=1,
        description="Calls that change something, by caller, after a first 1000: each leaves a "
        "line in the audit log, which must not fill the disk.",
    )
    shutdown_s: float = Field(
        default=10.0, ge=0, allow_inf_nan=False, description="For open calls to end when it stops."
    )


class RunsConfig(BaseModel):
    """What runs may use of this machine."""

    model_config = _FROZEN

    folders: tuple[Path, ...] = Field(
        default=(Path("data"),),
        description="A run may name data files and base models in these folders and nowhere else.",
    )


class RemovalsConfig(BaseModel):
    """Where the jobs of removal requests run, on Ray."""

    model_config = _FROZEN

    ray: str = Field(
        default="",
        description="Address of a Ray cluster, such as 'ray.example.org:6379'; it can read the "
        "records of jobs that it runs. Empty: Ray is started on this machine with the first job.",
    )
    max_jobs: int = Field(default=1, ge=1, description="At a time; others wait.")
    num_cpus_per_job: int = Field(default=1, ge=1, description="Processors of one job.")
    num_gpus_per_job: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="GPUs of one job, or a share of one."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Of one request whose workers are lost, before it fails."
    )
    replica_timeout_s: float = Field(
        default=60.0,
        ge=0,
        allow_inf_nan=False,
        description="For what serves an alias to follow a publication, before it is reported.",
    )


class ServerConfig(BaseModel):
    """A whole server."""

    model_config = _FROZEN

    listen: ListenConfig = ListenConfig()
    storage: StorageConfig = StorageConfig()
    identity: IdentityConfig = IdentityConfig()
    log: LogConfig = LogConfig()
    limits: LimitsConfig = LimitsConfig()
    runs: RunsConfig = RunsConfig()
    removals: RemovalsConfig = RemovalsConfig()

    @property
    def database(self) -> str:
        """Path or URL of the database."""
        return self.storage.database or str(self.storage.folder / "server.db")

    @property
    def artifacts(self) -> str:
        """Path or URL of the artifact store."""
        return self.storage.artifacts or str(self.storage.folder / "artifacts")


def load_server_config(path: Path) -> ServerConfig:
    """Reads a server's configuration; its paths become absolute.

    Raises:
        ConfigError: If the file is missing or no TOML, a key does not exist, or a value is wrong;
            all that is wrong is listed, with the nearest existing key.
    """
    config = validate(ServerConfig, read_toml(path), str(path))
    base = path.absolute().parent
    identity = {name: base / value for name, value in config.identity}
    storage = {
        "folder": base / config.storage.folder,
        "database": _below(base, config.storage.database),
        "artifacts": _below(base, config.storage.artifacts),
    }
    return config.model_copy(
        update={
            "identity": config.identity.model_copy(update=identity),
            "storage": config.storage.model_copy(update=storage),
            "runs": RunsConfig(folders=tuple(base / folder for folder in config.runs.folders)),
        }
    )


def _below(base: Path, location: str) -> str:
    return location if not location or "://" in location else str(base / location)


def write_server_config(folder: Path) -> Path:
    """Writes a configuration with every key, its meaning and its default, in a new file.

    Returns:
        Its path.

    Raises:
        ConfigError: If there is one already, or the folder cannot be written.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise ConfigError(f"there is a configuration at {path} already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(_commented()) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _commented() -> Iterator[str]:
    """The lines of the file: defaults are commented out, so that newer ones take effect."""
    yield "# A fedpeft server. Lines that begin with #! are defaults; remove the #! to change one."
    yield "# Relative paths are taken from the folder of this file."
    for name, section in ServerConfig.model_fields.items():
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        yield ""
        yield f"# {(kind.__doc__ or '').splitlines()[0]}"
        yield f"[{name}]"
        for key, field in kind.model_fields.items():
            yield from _wrapped(field.description or "")
            yield f"#!{key} = {_toml(field.default)}"


def _wrapped(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, 96))


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps([str(entry) for entry in value])
    return json.dumps(str(value) if isinstance(value, Path) else value)

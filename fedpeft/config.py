"""One validated configuration from one TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ConfigError
from fedpeft.federated.config import FederationConfig
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig
from fedpeft.settings import read_toml, validate


class OutputConfig(BaseModel):
    """The `[output]` section: what the run is called and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="fedpeft run", description="Title of the report.")
    directory: str | None = Field(
        default=None, description="New or empty folder for report and adapter; --output wins."
    )


class RunConfig(BaseModel):
    """A whole run. Relative paths are taken from the folder the command is started in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig
    federation: FederationConfig
    privacy: PrivacyConfig = PrivacyConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _rows_have_a_place(self) -> Self:
        data = self.data
        if self.federation.clients == "simulated":
            if data.train is None and not data.client_files:
                raise ValueError(f"data.partition = '{data.partition}' needs data.train")
            return self
        named = {"train", "client_files", "partition", "partition_column", "partition_groups"}
        if named & data.model_fields_set:
            raise ValueError(
                "remote clients bring rows of their own; leave out "
                + ", ".join(f"data.{name}" for name in sorted(named & data.model_fields_set))
            )
        if data.test is None:
            raise ValueError("remote clients keep their rows; name held-out rows with data.test")
        if self.privacy.mechanism != "dp-sgd":
            raise ValueError(
                "client-level privacy is for simulated clients: remote ones add their own noise "
                "and need not trust the coordinator; use privacy.mechanism = 'dp-sgd'"
            )
        if self.privacy.ledger is not None or self.privacy.insecure_seeded_noise:
            raise ValueError(
                "remote clients keep ledgers of their own and draw their own noise; leave out "
                "privacy.ledger and privacy.insecure_seeded_noise"
            )
        return self

    @model_validator(mode="after")
    def _rows_have_owners(self) -> Self:
        if self.privacy.ledger is not None and self.data.partition in ("iid", "dirichlet"):
            raise ValueError(
                f"privacy.ledger keeps budgets by client, and a client of a {self.data.partition} "
                "partition owns nothing: another seed gives its rows to others; use partition "
                "'column' or 'files', or leave out privacy.ledger"
            )
        return self

    @model_validator(mode="after")
    def _noise_fits_the_sum(self) -> Self:
        privacy, combine = self.privacy, self.federation.combine
        if privacy.enabled and privacy.mechanism == "client-level" and combine != "weighted-mean":
            raise ValueError(
                f"federation.combine = '{combine}' cannot be private at client level: the noise "
                "fits the sum of clipped updates and nothing else; use 'weighted-mean', whose "
                "clients privacy.l2_clip_norm already bounds, or mechanism 'dp-sgd'"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and validates a configuration.

    Args:
        path: A TOML file.
        overrides: `section.key=value`, the value as TOML or, failing that, as a plain string.

    Raises:
        ConfigError: If the file is missing or no TOML, a key does not exist, or a value is wrong;
            all that is wrong is listed, with the nearest existing key.
    """
    content = read_toml(path)
    for override in overrides:
        apply_override(content, override)
    return validate_config(content, str(path))


def validate_config(content: Mapping[str, Any], source: str) -> RunConfig:
    """Validates what a TOML file holds.

    Raises:
        ConfigError: See `load_config`.
    """
    return validate(RunConfig, content, source)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets `section.key=value` in the content of a file; the value as TOML, or as plain text.

    Raises:
        ConfigError: If it is written otherwise.
    """
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name:
        raise ConfigError(f"--set takes section.key=value, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    table[name] = value

"""One validated configuration from one TOML file."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ConfigError
from fedpeft.federated.config import FederationConfig
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig


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
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"expected a TOML file, but {path} is a folder") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error
    for override in overrides:
        _apply(content, override)
    return validate_config(content, str(path))


def validate_config(content: Mapping[str, Any], source: str) -> RunConfig:
    """Validates what a TOML file holds.

    Raises:
        ConfigError: See `load_config`.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        problems = [_describe(detail) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error


def _apply(content: dict[str, Any], override: str) -> None:
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


def _describe(detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"{key} does not exist{_nearest(location)}"
    if detail["type"] == "missing":
        what = "section" if len(location) == 1 else "key"
        return f"the {what} {key} is required"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if isinstance(detail["input"], Mapping) else f", got {detail['input']!r}"
    return f"{key}: {message}{shown}"


def _nearest(location: Sequence[str]) -> str:
    known: dict[str, str] = {}
    for section, field in RunConfig.model_fields.items():
        known[section] = section
        if len(location) > 1:
            assert isinstance(field.annotation, type)
            assert issubclass(field.annotation, BaseModel)
            known |= {name: f"{section}.{name}" for name in field.annotation.model_fields}
    if len(location) > 1:
        own = RunConfig.model_fields[location[0]].annotation
        assert isinstance(own, type)
        assert issubclass(own, BaseModel)
        close = difflib.get_close_matches(location[1], own.model_fields, n=1)
        if close:
            return f"; did you mean {location[0]}.{close[0]}?"
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""

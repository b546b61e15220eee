"""TOML files as validated settings, and everything that is wrong with one in a single message."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedpeft.errors import ConfigError

_M = TypeVar("_M", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: If it is missing, cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"expected a TOML file, but {path} is a folder") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error


def validate(model: type[_M], content: Mapping[str, Any], source: str) -> _M:
    """Validates settings.

    Args:
        model: What they should be.
        content: What a file holds.
        source: Its name, for the message.

    Raises:
        ConfigError: If a key does not exist or a value is wrong; all that is wrong is listed, with
            the nearest existing key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_describe(model, detail) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error


def _describe(model: type[BaseModel], detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"{key} does not exist{_nearest(model, location)}"
    if detail["type"] == "missing":
        section = len(location) == 1 and _section(model, location[0]) is not None
        return f"the {'section' if section else 'key'} {key} is required"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if isinstance(detail["input"], Mapping) else f", got {detail['input']!r}"
    return f"{key}: {message}{shown}" if key else message + shown


def _nearest(model: type[BaseModel], location: Sequence[str]) -> str:
    """The key that was probably meant: first of the same section, then of any other."""
    own = model if len(location) == 1 else _section(model, location[0])
    prefix = "" if len(location) == 1 else f"{location[0]}."
    if own is not None:
        close = difflib.get_close_matches(location[-1], own.model_fields, n=1)
        if close:
            return f"; did you mean {prefix}{close[0]}?"
    known = {name: name for name in model.model_fields}
    if len(location) > 1:
        for name in model.model_fields:
            section = _section(model, name)
            known |= {key: f"{name}.{key}" for key in (section.model_fields if section else ())}
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a section; None where the name is a plain key, or nothing."""
    field = model.model_fields.get(name)
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None

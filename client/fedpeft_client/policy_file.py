"""The text of a policy: written once with every key explained, and added to at its end."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedpeft.errors import ConfigError
from fedpeft.files import write_private_text
from fedpeft_client.policy import AllowedModel, ClientPolicy

_WIDTH = 98
_HEAD = """\
# What this client does for a server, and what not. The server can neither read nor change it.
# A line that begins with '#' shows the default. After a change start the client again.
"""


def template() -> str:
    """Returns a policy in which every key stands with what it means and its default."""
    parts = [_HEAD]
    for name, field in ClientPolicy.model_fields.items():
        if name == "base_models":
            continue
        parts.append(_comment(field.description or ""))
        default: Any = field.default
        shown = "" if default is None else tomli_w.dumps({name: default}).strip()
        parts.append(f"# {shown}\n" if shown else f"# {name} = 6.0   (not set)\n")
    parts.append(_comment(ClientPolicy.model_fields["base_models"].description or ""))
    return "\n".join(parts)


def allow_models(path: Path, models: Mapping[str, AllowedModel]) -> ClientPolicy:
    """Adds base models at the end of a policy; those that are allowed already stay as they are.

    Raises:
        ConfigError: If the file cannot be read, or would not hold what it should afterwards.
    """
    before = ClientPolicy.read(path)
    missing = {digest: m for digest, m in models.items() if digest not in before.base_models}
    if not missing:
        return before
    tables = {digest: m.model_dump(exclude_none=True) for digest, m in missing.items()}
    text = path.read_text(encoding="utf-8")
    added = f"{text.rstrip()}\n\n{tomli_w.dumps({'base_models': tables})}"
    scratch = path.with_name(f".{path.name}.new")
    write_private_text(scratch, added)
    try:
        after = ClientPolicy.read(scratch)
    except ConfigError as error:
        raise ConfigError(
            f"the base models cannot be added to {path} as it is written; add them by hand:\n"
            f"{tomli_w.dumps({'base_models': tables})}"
        ) from error
    finally:
        scratch.unlink()
    write_private_text(path, added)
    return after


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")

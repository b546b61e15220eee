"""`fedpeft config`: what a configuration may hold, and what one means."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedpeft.config import RunConfig, load_config

app = typer.Typer(no_args_is_help=True, help="Document and check configurations.")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON Schema.")] = False,
) -> None:
    """Show every key with its type, default and meaning."""
    if as_json:
        typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        console.print(f"\\[{section}]  {(kind.__doc__ or '').splitlines()[0]}", style="bold")
        for name, key in kind.model_fields.items():
            console.print(Text.assemble(("  " + name, "cyan"), "  ", (_type(key), "dim")))
            console.print(Padding(Text(key.description or ""), (0, 0, 0, 6)))
        console.print()


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="Configuration (TOML).")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check a configuration and show it with its defaults filled in."""
    resolved = load_config(config, overrides or []).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(resolved, indent=2))
        return
    import tomli_w

    typer.echo(tomli_w.dumps(_without_none(resolved)), nl=False)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    name = name.replace("typing.", "").replace("Literal", "one of ")
    limits = ", ".join(str(item) for item in field.metadata if not isinstance(item, type))
    bounds = f" ({limits})" if limits else ""
    default = "required" if field.is_required() else f"default {_toml(field.default)}"
    return f"{name}{bounds}, {default}"


def _toml(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }

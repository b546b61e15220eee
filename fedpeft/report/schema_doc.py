"""The schema of report.json for programs (JSON Schema) and for people (Markdown tables).

`python -m fedpeft.report.schema_doc` in a checkout writes both files anew.
"""

import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fedpeft.report.schema import Report

SCHEMA_NAME = "report.schema.json"
BEGIN, END = "<!-- schema: begin -->", "<!-- schema: end -->"


def schema_json() -> str:
    """The JSON Schema of what `write_report` writes, as the package ships it."""
    schema = Report.model_json_schema(mode="serialization")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def schema_markdown() -> str:
    """Every field of report.json, one table a section, in the order of the file."""
    sections: list[tuple[str, type[BaseModel]]] = []
    _collect("", Report, sections)
    parts = []
    for path, model in sections:
        title = f"`{path}`" if path else "The report"
        parts.append(f"### {title}\n\n{(model.__doc__ or '').strip()}\n\n{_table(model)}")
    return "\n\n".join(parts) + "\n"


def insert_markdown(document: str) -> str:
    """A document with the tables between its two marker comments made fresh.

    Raises:
        ValueError: A marker is missing.
    """
    if BEGIN not in document or END not in document:
        raise ValueError(f"expected the markers {BEGIN} and {END} in the document")
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{schema_markdown()}\n{END}{after}"


def _collect(
    path: str, model: type[BaseModel], sections: list[tuple[str, type[BaseModel]]]
) -> None:
    sections.append((path, model))
    for name, field in model.model_fields.items():
        inner, suffix = field.annotation, ""
        if get_origin(inner) is list:
            inner, suffix = get_args(inner)[0], "[]"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            _collect(f"{path}.{name}{suffix}" if path else f"{name}{suffix}", inner, sections)


def _table(model: type[BaseModel]) -> str:
    lines = ["| Field | Type | Meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field.annotation)} | {meaning} |")
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"object: name → {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return {**names, type(None): "null", Any: "any"}[annotation]


def main() -> None:
    """Write report.schema.json beside this file, and the tables into docs/report.md."""
    here = Path(__file__).parent
    (here / SCHEMA_NAME).write_text(schema_json(), encoding="utf-8")
    document = here.parents[1] / "docs" / "report.md"
    if document.exists():
        text = document.read_text(encoding="utf-8")
        document.write_text(insert_markdown(text), encoding="utf-8")


if __name__ == "__main__":
    main()

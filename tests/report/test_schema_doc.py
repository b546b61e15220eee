import importlib.resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedpeft.report import schema
from fedpeft.report.schema_doc import SCHEMA_NAME, insert_markdown, schema_json, schema_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "report.md"
HINT = "stale: run `python -m fedpeft.report.schema_doc`"


def test_json_schema_is_fresh() -> None:
    shipped = importlib.resources.files("fedpeft.report").joinpath(SCHEMA_NAME)
    assert shipped.read_text(encoding="utf-8") == schema_json(), HINT


def test_document_is_fresh() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert insert_markdown(document) == document, HINT


def test_every_field_is_explained() -> None:
    models = [m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    for model in models:
        for name, field in model.model_fields.items():
            if field is not None and model.__module__ == schema.__name__:
                assert field.description, f"{model.__name__}.{name}"
                assert f"`{name}`" in schema_markdown()


def test_markers_are_needed() -> None:
    with pytest.raises(ValueError, match="markers"):
        insert_markdown("# nothing")

"""report.json and report.html on disk: complete or not there, and strict JSON.

JSON has no NaN and no infinity, and null means "off" in this schema, so neither may stand for a
number that is not finite. A measurement that came out so (a diverged loss) is left out, and a
note says which and what it was: the report of a long run is not lost. Anywhere else, above all
in an epsilon, such a number is a bug, and nothing is written.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from fedpeft.errors import DataError
from fedpeft.files import write_text
from fedpeft.report.html import render_html
from fedpeft.report.schema import SCHEMA_VERSION, Report

JSON_NAME = "report.json"
HTML_NAME = "report.html"

_MEASUREMENTS = ("metrics", "initial_metrics", "diagnostics", "update_norms")
_MEASURED_SECTIONS = ("rounds", "evaluation", "reload")


def write_report(report: Report, directory: str | Path) -> None:
    """Write report.json and report.html into a folder, which is made if it is missing.

    Each file is replaced as a whole: after a crash it is the old one or the new one.

    Args:
        report: The run. Measured numbers that are not finite (metrics, diagnostics, update
            norms) are left out of both files, with a note in `notes`.
        directory: Where to.

    Raises:
        ValueError: Another number is NaN or infinite; nothing was written.
        OSError: The disk is full, or the folder cannot be written.
    """
    report = finite(report)
    contents = {JSON_NAME: to_json(report), HTML_NAME: render_html(report)}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_text(directory / name, content)


def read_report(path: str | Path) -> Report:
    """Read a report.json.

    Args:
        path: The file, or the folder that holds it.

    Returns:
        The report, every field checked.

    Raises:
        DataError: The file is missing or unreadable, no JSON, written by a newer fedpeft, or
            not a report.
    """
    path = Path(path)
    if path.is_dir():
        path = path / JSON_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(
            f"expected a report at {path}, which cannot be read ({error.strerror}); "
            f"give a {JSON_NAME} or its folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); write the report again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise DataError(f"{path} is not a fedpeft report: it has no whole schema_version")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema_version {version}, this fedpeft reads up to {SCHEMA_VERSION}; "
            "install a newer fedpeft"
        )
    try:
        return Report.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} is not a fedpeft report of schema_version {SCHEMA_VERSION}: "
            f"{where}: {first['msg']} ({error.error_count()} problems in all)"
        ) from error


def to_json(report: Report) -> str:
    """The report as strict JSON, two spaces deep, ending in a line break.

    Raises:
        ValueError: A number is NaN or infinite, or the configuration holds what JSON cannot.
    """
    # Before pydantic prepares the values for JSON: it would make these numbers null.
    found = _nonfinite(report.model_dump())
    wrong = [f"{'.'.join(map(str, where))} is {value}" for where, value in found]
    if wrong:
        raise ValueError(f"expected finite numbers in the report, but {', '.join(wrong)}")
    content = report.model_dump(mode="json")
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(report: Report) -> Report:
    """The report without those measurements that are not finite, each mentioned in a note."""
    content = report.model_dump()
    found = [(where, value) for where, value in _nonfinite(content) if _is_measurement(where)]
    if not found:
        return report
    for where, _ in found:
        parent: Any = content
        for key in where[:-1]:
            parent = parent[key]
        del parent[where[-1]]
    left_out = ", ".join(f"{'.'.join(map(str, where))} ({value})" for where, value in found)
    content["notes"] = [
        *report.notes,
        f"Left out because they are not finite numbers: {left_out}.",
    ]
    return Report.model_validate(content)


def _is_measurement(where: tuple[str | int, ...]) -> bool:
    return where[0] in _MEASURED_SECTIONS and len(where) > 2 and where[-2] in _MEASUREMENTS


def _nonfinite(
    value: Any, where: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nonfinite(item, (*where, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nonfinite(item, (*where, index))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

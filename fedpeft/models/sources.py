"""Reading rows from a JSONL, CSV or Parquet file, a Hugging Face URL or the synthetic set.

Nothing is skipped or repaired: a row that cannot be used is a DataError that names its line.
Only blank lines at the end of a text file are allowed.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from fedpeft.errors import DataError
from fedpeft.models import synthetic
from fedpeft.models.table import Table, concat_tables, did_you_mean, listed, shown

__all__ = ["Table", "concat_tables", "read_table", "unique_keys"]

_SYNTHETIC = {"synthetic:messages/train": "train", "synthetic:messages/test": "test"}


def read_table(location: str, required_columns: Sequence[str]) -> Table:
    """Read all rows of one source into memory.

    A CSV cell stays the text it is ("3", not 3), and an empty cell of a required column counts
    as missing; `Table.categories` makes labels of both kinds of file comparable. A JSONL key
    that is not required and that a row lacks becomes None. Text is UTF-8, with or without a
    byte order mark.

    Args:
        location: A .jsonl, .csv or .parquet path, an `hf://` URL of such a file, or
            `synthetic:messages/train` or `synthetic:messages/test`.
        required_columns: Columns in which every row must have a value.

    Returns:
        A table with at least one row and all columns of the source.

    Raises:
        DataError: the source is missing, unreadable, malformed or empty, or a row lacks a value
            in a required column (null, NaN, text that is no valid Unicode).
    """
    if location.startswith("synthetic:"):
        table = _read_synthetic(location)
    else:
        data = _read_hub(location) if "://" in location else _read_file(location)
        table = _parser(location)(location, data, required_columns)
    if table.num_rows == 0:
        raise DataError(f"{location} holds no rows; expected at least one")
    for name in required_columns:
        _check_values(table, name)
    return table


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of `json` that refuses an object with the same key twice.

    Raises:
        ValueError: a key comes twice; plain `json` would keep the last one silently.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key '{twice}' comes twice")
    return found


# --- getting at the bytes


def _read_synthetic(location: str) -> Table:
    match _SYNTHETIC.get(location):
        case "train":
            return synthetic.generate("train")
        case "test":
            return synthetic.generate("test")
    raise DataError(
        f"there is no synthetic data set '{location}': there are {listed(_SYNTHETIC)}"
        f"{did_you_mean(location, _SYNTHETIC)}"
    )


def _read_file(location: str) -> bytes:
    path = Path(location)
    if not path.exists():
        raise DataError(_missing(path))
    if path.is_dir():
        inside = [p.name for p in sorted(path.iterdir()) if p.suffix.lower() in _PARSERS]
        raise DataError(
            f"{location} is a folder, but a data file was expected; name one file, "
            f"the data files in it are: {listed(inside)}"
        )
    _parser(location)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{location} could not be read ({error.strerror}); check its permissions"
        ) from error


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no data file {path}, nor a folder {folder}; correct the path"
    names = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in _PARSERS]
    near = did_you_mean(path.name, names)
    return f"there is no data file {path}{near or f'; data files in {folder}: {listed(names)}'}"


def _read_hub(location: str) -> bytes:
    if not location.startswith("hf://"):
        raise DataError(
            f"{location} is a URL of a kind that is not supported: expected an hf:// URL or a "
            "path; download the file and give its path"
        )
    _parser(location)
    try:
        with fsspec.open(location, "rb") as file:
            data: bytes = file.read()
    except ImportError as error:
        raise DataError(
            f"{location} needs the package huggingface_hub, which is not installed; "
            "install it, or download the file and give its path"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{location} was not found on the Hugging Face Hub; check the URL "
            "(hf://datasets/OWNER/NAME/FILE) and your access to it"
        ) from error
    except Exception as error:  # the libraries below raise error classes of their own
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise DataError(
            f"{location} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {reason.rstrip('.')}); check the URL, the network "
            "and HF_HUB_OFFLINE, or download the file and give its path"
        ) from error
    return data


# --- from bytes to rows


def _read_jsonl(location: str, data: bytes, required: Sequence[str]) -> Table:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    names: dict[str, None] = {}
    for number, line in _lines(location, data):
        place = f"{location}:{number}"
        row = _json_object(place, line)
        for name in required:
            if name not in row:
                raise DataError(
                    f"{place} has no column '{name}': it has {listed(row)}{did_you_mean(name, row)}"
                )
        rows.append(row)
        places.append(place)
        names.update(dict.fromkeys(row))
    return Table(location, {n: [row.get(n) for row in rows] for n in names}, tuple(places))


def _json_object(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} should be one JSON object on one line, but is not valid JSON ({error}); "
            "correct that line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f'{place} should be a JSON object such as {{"text": "...", "label": "..."}}, '
            f"but is {shown(row)}; correct that line"
        )
    return row


def _read_csv(location: str, data: bytes, required: Sequence[str]) -> Table:
    # newline="" leaves line ends inside quoted cells, and the line count, to the csv module.
    rows = list(_csv_rows(location, io.StringIO(_decoded(location, data), newline="")))
    if not rows:
        return Table(location, {})
    (header_line, header), body = rows[0], rows[1:]
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f"{location}:{header_line} names the column '{twice}' twice; rename one of them"
        )
    for name in required:
        if name not in header:
            separator = next((c for c in ";\t|" if len(header) == 1 and c in header[0]), None)
            hint = f"; separate cells with ',' and not {separator!r}" if separator else ""
            raise DataError(
                f"{location} has no column '{name}': its header, line {header_line}, has "
                f"{listed(header)}{hint}{did_you_mean(name, header)}"
            )
    for line, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{location}:{line} has {len(cells)} cells, but the header has {len(header)}; "
                "put quotes around a cell that holds a comma, or correct that line"
            )
    columns: dict[str, list[Any]] = {
        name: [cells[i] or (None if name in required else "") for _, cells in body]
        for i, name in enumerate(header)
    }
    return Table(location, columns, tuple(f"{location}:{line}" for line, _ in body))


def _csv_rows(location: str, file: io.StringIO) -> Iterator[tuple[int, list[str]]]:
    """Yield every row with the physical line on which it starts."""
    reader = csv.reader(file, strict=True)
    blank: int | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{location}:{line} is not valid CSV ({error}); correct the quotes on that line"
            ) from error
        if cells is None:
            return
        if not cells:
            blank = blank or line
        elif blank:
            raise DataError(_blank_line(location, blank))
        else:
            yield line, cells


def _read_parquet(location: str, data: bytes, required: Sequence[str]) -> Table:
    if not data:
        return Table(location, {})
    import pyarrow as pa  # imported here: it takes longer than reading a small file
    import pyarrow.parquet as pq

    try:
        # ParquetFile, because read_table would invent columns from folders named "key=value".
        content = pq.ParquetFile(io.BytesIO(data)).read()
        names: list[str] = content.column_names
        columns = [column.to_pylist() for column in content.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise DataError(
            f"{location} is not a readable Parquet file ({reason}); write or download it again"
        ) from error
    if len(set(names)) != len(names):
        raise DataError(f"{location} has two columns of one name: {listed(names)}; rename one")
    table = Table(location, dict(zip(names, columns, strict=True)))
    for name in required:
        table.column(name)
    return table


def _lines(location: str, data: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without the blank ones at the end."""
    # Not splitlines: it would also cut at characters that JSON allows inside a string.
    lines = _decoded(location, data).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(_blank_line(location, number))
        yield number, line


def _blank_line(location: str, line: int) -> str:
    return f"{location}:{line} is blank, but a row was expected; remove that line"


def _decoded(location: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{location}:{line} holds bytes that are not UTF-8 text ({error.reason}); "
            "save the file as UTF-8"
        ) from error


_Parser = Callable[[str, bytes, Sequence[str]], Table]
_PARSERS: dict[str, _Parser] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _parser(location: str) -> _Parser:
    suffix = Path(location).suffix
    if suffix.lower() not in _PARSERS:
        hint = " (one JSON object on each line)" if suffix.lower() == ".json" else ""
        raise DataError(
            f"{location} has the extension '{suffix}', but a data file ends in "
            f"{listed(_PARSERS)}; convert it to .jsonl{hint}"
        )
    return _PARSERS[suffix.lower()]


def _check_values(table: Table, name: str) -> None:
    for row, value in enumerate(table.column(name)):
        if value is None or value != value:  # NaN alone differs from itself
            raise DataError(
                f"{table.locate(row)} has no value in column '{name}' "
                f"({'null or empty' if value is None else 'NaN'}); fill it in or remove the row"
            )
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{table.locate(row)}: column '{name}' holds half of a UTF-16 pair "
                    f"({error.object[error.start]!a}), which is no character; correct that text"
                ) from error

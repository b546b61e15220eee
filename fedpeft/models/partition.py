"""Splitting the rows of a data set over clients.

Every split is disjoint. It is complete too, except that 'column' with fewer clients than
values leaves the rows of the smallest out.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedpeft.errors import DataError
from fedpeft.models.data_config import DataConfig
from fedpeft.models.sources import unique_keys
from fedpeft.models.table import Table, concat_tables, listed, nearest

_MAX_DRAWS = 100
_MAX_ID_LENGTH = 64

Parts = dict[str, list[int]]


def partition(
    table: Table | Sequence[Table],
    config: DataConfig,
    *,
    num_clients: int | None,
    seed: int,
    min_rows: int = 1,
) -> Parts:
    """Say which client holds which rows.

    Args:
        table: The training rows; with partition = 'files', a table for each of the files.
        config: How to split, and by which columns.
        num_clients: Number of clients. Needed for 'iid' and 'dirichlet'; for 'column' and
            'files' None takes as many as there are.
        seed: Seed of the random splits, at least 0. Equal seeds give equal splits under one
            version of numpy.
        min_rows: Fewest rows that a client of a random split may hold, at least 1.

    Returns:
        Client id -> its row indices, ascending, at least one. An id consists of
        [A-Za-z0-9._-], does not begin with '.' or '-', and differs from every other in more
        than case, so that it can name a file. With 'files' the indices count the rows of
        `concat_tables(table)`.

    Raises:
        DataError: the split asked for does not exist; the message says what to change.
    """
    if num_clients is not None and num_clients < 1:
        raise DataError(f"num_clients should be at least 1, got {num_clients}")
    if config.partition == "files":
        return split_by_file([table] if isinstance(table, Table) else table, num_clients)
    rows = table if isinstance(table, Table) else concat_tables(table)
    if config.partition == "column":
        assert config.partition_column is not None
        values = rows.categories(config.partition_column)
        path = config.partition_groups
        return split_by_value(values, num_clients, None if path is None else read_groups(path))
    if num_clients is None:
        raise DataError(f"partition = '{config.partition}' needs num_clients; set it")
    rng = np.random.default_rng(seed)
    if config.partition == "iid":
        return split_iid(rows.num_rows, num_clients, rng, min_rows=min_rows)
    labels = rows.categories(config.label_column)
    return split_dirichlet(labels, num_clients, config.dirichlet_alpha, rng, min_rows=min_rows)


def split_iid(
    num_rows: int, num_clients: int, rng: np.random.Generator, *, min_rows: int = 1
) -> Parts:
    """Deal shuffled rows out evenly: sizes differ by at most 1.

    Raises:
        DataError: fewer than `min_rows` rows for each client.
    """
    _check_enough(num_rows, num_clients, min_rows)
    order = rng.permutation(num_rows)
    return _numbered([part.tolist() for part in np.array_split(order, num_clients)])


def split_dirichlet(
    labels: Sequence[str],
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    min_rows: int = 1,
) -> Parts:
    """Split by label, skewed: each label's rows in proportions p ~ Dirichlet(alpha, ..., alpha).

    A draw that leaves a client with fewer than `min_rows` rows is repeated, 100 times at most.
    Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution", 2019.

    Args:
        labels: One label for each row.
        num_clients: Number of clients.
        alpha: Concentration, above 0. Large approaches 'iid', small gives each label to few.
        rng: Source of randomness.
        min_rows: Fewest rows that a client may hold, at least 1.

    Raises:
        DataError: fewer than `min_rows` rows for each client, or no draw gave every client that.
    """
    _check_enough(len(labels), num_clients, min_rows)
    rows_of: dict[str, list[int]] = {name: [] for name in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    for _ in range(_MAX_DRAWS):
        parts: list[list[int]] = [[] for _ in range(num_clients)]
        for rows in rows_of.values():
            shares = rng.dirichlet(np.full(num_clients, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rng.permutation(rows), cuts), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= min_rows:
            return _numbered(parts)
    raise DataError(
        f"none of {_MAX_DRAWS} Dirichlet splits with alpha {alpha:g} gave each of {num_clients} "
        f"clients at least {min_rows} of {len(labels)} rows; raise dirichlet_alpha or lower "
        "num_clients"
    )


def split_by_value(
    values: Sequence[str],
    num_clients: int | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Parts:
    """Give each value of a column, or each group of values, a client.

    With fewer clients than values or groups, those with the most rows take part (of equal
    ones, the first in sorted order) and the rows of the rest are left out.

    Args:
        values: One value for each row.
        num_clients: Number of clients; None for all.
        groups: Client -> values, each value in one group; None for a client per value.

    Raises:
        DataError: more clients asked for than there are, a value in no group or in two, or a
            group without rows.
    """
    owner = _owners(groups) if groups is not None else {value: value for value in values}
    parts: Parts = {name: [] for name in sorted(groups if groups is not None else owner)}
    for row, value in enumerate(values):
        if value not in owner:
            raise DataError(
                f"the value '{value}' of the partition column is in no group of partition_groups"
                f"{_similar(value, owner)}; add it to one"
            )
        parts[owner[value]].append(row)
    if num_clients is None:
        num_clients = len(parts)
    if num_clients > len(parts):
        kind = "groups in partition_groups" if groups is not None else "values of partition_column"
        raise DataError(
            f"num_clients is {num_clients}, but there are {len(parts)} {kind}; "
            f"set it to at most {len(parts)}, or leave it out for all"
        )
    # `parts` is in sorted order already, and the sort is stable.
    chosen = set(sorted(parts, key=lambda name: -len(parts[name]))[:num_clients])
    empty = [name for name in parts if name in chosen and not parts[name]]
    if empty:
        raise DataError(
            f"no row of the data belongs to the group {listed(empty)} of partition_groups; "
            "remove it, or correct its values"
        )
    return _safe_keys({name: rows for name, rows in parts.items() if name in chosen})


def split_by_file(tables: Sequence[Table], num_clients: int | None = None) -> Parts:
    """Give each table a client, named by the stem of its file; rows count through all tables.

    Raises:
        DataError: a table without rows, two files of one stem, or another number of clients.
    """
    if num_clients is not None and num_clients != len(tables):
        raise DataError(
            f"num_clients is {num_clients}, but client_files names {len(tables)} files; "
            "leave num_clients out with partition = 'files'"
        )
    parts: Parts = {}
    start = 0
    for table in tables:
        stem = Path(table.location).stem
        if table.num_rows == 0:
            raise DataError(f"client file {table.location} holds no rows; expected at least one")
        if stem in parts:
            raise DataError(
                f"two of client_files are named '{stem}', which would be one client; "
                "give each file a name of its own, and name each file once"
            )
        parts[stem] = list(range(start, start + table.num_rows))
        start += table.num_rows
    return _safe_keys(parts)


def read_groups(path: str) -> dict[str, list[str]]:
    """Read a `partition_groups` file: a JSON object {client: [values]}.

    Whole numbers and booleans become their `str`, as in the column.

    Raises:
        DataError: the file is missing, is not JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=unique_keys)
    except FileNotFoundError as error:
        raise DataError(f"there is no partition_groups file {path}; correct the path") from error
    except OSError as error:
        raise DataError(
            f"the partition_groups file {path} could not be read ({error.strerror}); "
            "name a readable JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the partition_groups file {path} is not valid JSON ({error}); correct it"
        ) from error
    if not isinstance(content, dict) or not content or not all(map(_is_group, content.values())):
        raise DataError(
            f"the partition_groups file {path} should be a JSON object that gives each client a "
            'list of values, {"client": ["value", ...]}, with at least one value in each list; '
            "correct it"
        )
    return {client: [str(value) for value in values] for client, values in content.items()}


def label_histogram(
    table: Table, parts: Mapping[str, Sequence[int]], label_column: str
) -> dict[str, dict[str, int]]:
    """Count each client's rows of each label, for plots and reports.

    Returns:
        Client -> label -> number of rows. Every client has every label of the table, in sorted
        order, with 0 where it has none.

    Raises:
        DataError: no such column, or a value that is no label.
    """
    labels = table.categories(label_column)
    names = sorted(set(labels))
    counts = {client: Counter(labels[row] for row in rows) for client, rows in parts.items()}
    return {client: {name: count[name] for name in names} for client, count in counts.items()}


def _check_enough(num_rows: int, num_clients: int, min_rows: int) -> None:
    if num_clients < 1 or min_rows < 1:
        raise DataError(
            f"num_clients and min_rows should be at least 1, got {num_clients} and {min_rows}"
        )
    if num_rows < num_clients * min_rows:
        raise DataError(
            f"{num_rows} rows are too few for {num_clients} clients with at least {min_rows} each; "
            f"lower num_clients to at most {num_rows // min_rows}"
        )


def _numbered(parts: Sequence[list[int]]) -> Parts:
    width = max(2, len(str(len(parts) - 1)))
    return {f"client-{i:0{width}d}": sorted(rows) for i, rows in enumerate(parts)}


def _is_group(values: object) -> bool:
    return (
        isinstance(values, list) and bool(values) and all(isinstance(v, (str, int)) for v in values)
    )


def _owners(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for client, values in groups.items():
        for value in values:
            if value in owner:
                where = f"in the groups '{owner[value]}' and '{client}'"
                if owner[value] == client:
                    where = f"twice in the group '{client}'"
                raise DataError(
                    f"the value '{value}' is {where} of partition_groups; keep it in one place"
                )
            owner[value] = client
    return owner


def _similar(value: str, known: Mapping[str, str]) -> str:
    found = nearest(value, known)
    return f" (the nearest there is '{found}')" if found is not None else ""


# --- client ids


def _safe_keys(parts: Parts) -> Parts:
    ids = client_ids(list(parts))
    return {ids[name]: rows for name, rows in parts.items()}


def client_ids(names: Sequence[str]) -> dict[str, str]:
    """Turn names of any characters into ids that can name a file.

    A name keeps its letters, digits, '.', '_' and '-'; everything else becomes '-'. Names that
    would meet, and names of which nothing is left, get a digest of the name at the end.

    Returns:
        Name -> id, as `partition` describes it, at most 64 characters long.

    Raises:
        DataError: two ids meet all the same.
    """
    slugs = {name: _slug(name) for name in names}
    uses = Counter(slug.casefold() for slug in slugs.values())
    ids = {
        name: slug if slug and uses[slug.casefold()] == 1 else _with_digest(slug, name)
        for name, slug in slugs.items()
    }
    by_id: dict[str, str] = {}
    for name, client in ids.items():
        other = by_id.setdefault(client.casefold(), name)
        if other != name:
            raise DataError(f"'{other}' and '{name}' make the same client id; rename one of them")
    return ids


def _slug(name: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-.")[:_MAX_ID_LENGTH].rstrip("-.")


def _with_digest(slug: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug[: _MAX_ID_LENGTH - 9] or 'client'}-{digest}"

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from fedpeft.errors import DataError
from fedpeft.models.data_config import DataConfig
from fedpeft.models.partition import (
    Parts,
    client_ids,
    label_histogram,
    partition,
    read_groups,
    split_by_file,
    split_by_value,
    split_dirichlet,
    split_iid,
)
from fedpeft.models.sources import Table, concat_tables, read_table

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def config(**values: Any) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "test": "test.jsonl", **values})


def table(labels: list[Any], **columns: list[Any]) -> Table:
    return Table("train.jsonl", {"label": labels, **columns})


def check_split(parts: Parts, num_rows: int, num_clients: int) -> None:
    """Disjoint, complete, ascending, nobody empty, ids safe."""
    assert sorted(row for rows in parts.values() for row in rows) == list(range(num_rows))
    assert len(parts) == num_clients
    for client, rows in parts.items():
        assert rows == sorted(rows)
        assert rows
        assert all(type(row) is int for row in rows)
        assert SAFE_ID.fullmatch(client)


sizes = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


# --- iid


@given(sizes=sizes, seed=st.integers(0, 2**64))
def test_iid_invariants(sizes: tuple[int, int], seed: int) -> None:
    num_rows, num_clients = sizes
    rows = table(["a"] * num_rows)
    parts = partition(rows, config(), num_clients=num_clients, seed=seed)
    check_split(parts, num_rows, num_clients)
    lengths = [len(part) for part in parts.values()]
    assert max(lengths) - min(lengths) <= 1
    assert parts == partition(rows, config(), num_clients=num_clients, seed=seed)


def test_iid_shuffles_by_seed() -> None:
    splits = [
        partition(table(["a"] * 500), config(), num_clients=5, seed=seed) for seed in (0, 1, 2)
    ]
    assert splits[0] != splits[1] != splits[2] != splits[0]
    # In file order, the mean index of the first client would be 49.5 instead of about 249.5.
    for parts in splits:
        assert all(200 < np.mean(rows) < 300 for rows in parts.values())


@pytest.mark.parametrize(("num_clients", "last"), [(3, "client-02"), (101, "client-100")])
def test_numbered_ids(num_clients: int, last: str) -> None:
    parts = split_iid(200, num_clients, np.random.default_rng(0))
    assert list(parts)[-1] == last
    assert list(parts) == sorted(parts)


# --- Dirichlet


@settings(max_examples=50)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=40, max_size=120),
    num_clients=st.integers(1, 4),
    alpha=st.sampled_from([0.5, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_dirichlet_invariants(labels: list[str], num_clients: int, alpha: float, seed: int) -> None:
    choice = config(partition="dirichlet", dirichlet_alpha=alpha)
    parts = partition(table(labels), choice, num_clients=num_clients, seed=seed)
    check_split(parts, len(labels), num_clients)
    assert parts == partition(table(labels), choice, num_clients=num_clients, seed=seed)


NUM_CLIENTS, NUM_LABELS, ROWS_EACH = 10, 20, 400
LABELS = [f"label {i % NUM_LABELS}" for i in range(NUM_LABELS * ROWS_EACH)]


def mean_label_entropy(parts: Parts) -> float:
    """Entropy in nats of a label's shares over the clients, mean over the labels."""
    counts = np.array(
        [
            list(row.values())
            for row in label_histogram(Table("t", {"label": LABELS}), parts, "label").values()
        ]
    )
    shares = counts / counts.sum(axis=0)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return float(-(shares * logs).sum(axis=0).mean())


def expected_entropy(alpha: float) -> float:
    """Of p ~ Dirichlet(alpha, ..., alpha): psi(K alpha + 1) - psi(alpha + 1)."""
    return float(digamma(NUM_CLIENTS * alpha + 1) - digamma(alpha + 1))


def entropies(alpha: float) -> list[float]:
    return [
        mean_label_entropy(split_dirichlet(LABELS, NUM_CLIENTS, alpha, np.random.default_rng(seed)))
        for seed in range(25)
    ]


def fits(measured: list[float], alpha: float) -> bool:
    error = np.std(measured, ddof=1) / math.sqrt(len(measured))
    # 0.005 for the rounding of shares to whole rows.
    return bool(abs(np.mean(measured) - expected_entropy(alpha)) < 4 * error + 0.005)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_dirichlet_has_the_right_concentration(alpha: float) -> None:
    measured = entropies(alpha)
    assert fits(measured, alpha)
    for wrong in (alpha * 2 / 3, alpha * 3 / 2, alpha * 10, 100.0):
        assert not fits(measured, wrong)


def test_dirichlet_with_large_alpha_is_even() -> None:
    measured = entropies(100.0)
    assert fits(measured, 100.0)
    assert math.log(NUM_CLIENTS) - np.mean(measured) < 0.01
    assert not fits(measured, 2.0)


def test_dirichlet_shares_of_different_labels_are_independent() -> None:
    """One draw for all labels would give every client the same label mix, whatever alpha is."""
    parts = split_dirichlet(LABELS, NUM_CLIENTS, 0.5, np.random.default_rng(0))
    counts = np.array(
        [list(h.values()) for h in label_histogram(table(LABELS), parts, "label").values()]
    )
    correlations = np.corrcoef(counts, rowvar=False)[np.triu_indices(NUM_LABELS, 1)]
    assert abs(correlations.mean()) < 0.2


def test_dirichlet_takes_random_rows_of_a_label() -> None:
    parts = split_dirichlet(["a"] * 3000, 3, 5.0, np.random.default_rng(3))
    for rows in parts.values():
        assert abs(np.mean(rows) - 1499.5) < 5 * 866 / math.sqrt(len(rows))


def test_dirichlet_redraws_until_everyone_has_min_rows() -> None:
    for seed in range(20):
        parts = split_dirichlet(["a", "b"] * 20, 4, 0.3, np.random.default_rng(seed), min_rows=3)
        assert min(map(len, parts.values())) >= 3


def test_dirichlet_gives_up() -> None:
    with pytest.raises(DataError, match=r"none of 100 .* alpha 0\.001 .*raise dirichlet_alpha or"):
        split_dirichlet(["a"] * 50, 20, 0.001, np.random.default_rng(0))


# --- by column


def test_column() -> None:
    rows = table(["x"] * 6, site=["b", "a", 7, "b", "7", "a"])
    choice = config(partition="column", partition_column="site")
    parts = partition(rows, choice, num_clients=None, seed=0)
    assert parts == {"7": [2, 4], "a": [1, 5], "b": [0, 3]}
    assert partition(rows, choice, num_clients=3, seed=9) == parts


def test_column_keeps_the_largest_and_breaks_ties_by_name() -> None:
    values = ["d", "c", "b", "a", "d", "c", "b", "a", "d"]
    assert split_by_value(values, 1) == {"d": [0, 4, 8]}
    assert split_by_value(values, 2) == {"a": [3, 7], "d": [0, 4, 8]}
    assert split_by_value(values, 3) == {"a": [3, 7], "b": [2, 6], "d": [0, 4, 8]}


@given(values=st.lists(st.text(min_size=1), min_size=1))
def test_column_invariants_for_any_text(values: list[str]) -> None:
    parts = split_by_value(values)
    check_split(parts, len(values), len(set(values)))
    assert len({client.casefold() for client in parts}) == len(parts)
    for rows in parts.values():
        assert len({values[row] for row in rows}) == 1


def test_groups(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"north": ["a", 1], "south": ["b"], "more": ["c", "unused"]}))
    rows = table(["x"] * 5, site=["a", "b", "1", "c", 1])
    choice = config(partition="column", partition_column="site", partition_groups=str(path))
    parts = partition(rows, choice, num_clients=None, seed=0)
    assert parts == {"more": [3], "north": [0, 2, 4], "south": [1]}
    assert partition(rows, choice, num_clients=1, seed=0) == {"north": [0, 2, 4]}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"n": ["a"], "s": ["b"]}, "value 'colour' of the partition column is in no group"),
        ({"n": ["a", "b", "color"]}, r"in no group .* \(the nearest there is 'color'\)"),
        ({"n": ["a", "b"], "s": ["a", "colour"]}, "'a' is in the groups 'n' and 's'"),
        ({"n": ["a", "b", "colour", "a"]}, "'a' is twice in the group 'n'"),
        ({"n": ["a", "b", "colour"], "s": ["z"]}, "no row of the data belongs to the group 's'"),
    ],
)
def test_bad_groups(groups: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_value(["a", "b", "colour"], groups=groups)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b'{"a": ["x"], "a": ["y"]}', "key 'a' comes twice"),
        (b'["a"]', "should be a JSON object that gives each client a list"),
        (b"{}", "should be a JSON object"),
        (b'{"a": "x"}', "should be a JSON object"),
        (b'{"a": []}', "with at least one value in each list"),
        (b'{"a": [null]}', "should be a JSON object"),
        (b'{"a": [1.5]}', "should be a JSON object"),
        (b'{"a": [["x"]]}', "should be a JSON object"),
    ],
)
def test_bad_groups_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "groups.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_groups(str(path))


def test_groups_file_missing_or_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition_groups file .*none\.json"):
        read_groups(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="could not be read"):
        read_groups(str(tmp_path))


# --- files


def test_files() -> None:
    tables = [
        Table("data/north.csv", {"text": ["a", "b"]}, ("data/north.csv:2", "data/north.csv:5")),
        Table("data/south side.jsonl", {"text": ["c"]}, ("data/south side.jsonl:1",)),
    ]
    choice = DataConfig(test="t.csv", partition="files", client_files=("a.csv", "b.csv"))
    parts = partition(tables, choice, num_clients=None, seed=0)
    assert parts == {"north": [0, 1], "south-side": [2]}
    rows = concat_tables(tables)
    assert rows.take(parts["north"]).locate(1) == "data/north.csv:5"
    assert rows.take(parts["south-side"]).column("text") == ["c"]
    assert partition(tables[0], choice, num_clients=1, seed=0) == {"north": [0, 1]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: split_by_file([t("a/x.csv"), t("b/x.jsonl")]), "two of client_files .*'x'"),
        (lambda t: split_by_file([t("x.csv"), t("x.csv")]), "name each file once"),
        (lambda t: split_by_file([t("x.csv"), Table("y.csv", {})]), "y.csv holds no rows"),
        (lambda t: split_by_file([t("x.csv")], 2), "num_clients is 2, .* names 1 files"),
    ],
)
def test_bad_files(make: Callable[[Callable[[str], Table]], Parts], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(lambda location: Table(location, {"text": ["x"]}))


# --- what cannot be split


@pytest.mark.parametrize(
    ("values", "num_clients", "message"),
    [
        ({}, None, "partition = 'iid' needs num_clients"),
        ({"partition": "dirichlet"}, None, "partition = 'dirichlet' needs num_clients"),
        ({}, 0, "num_clients should be at least 1, got 0"),
        ({}, 5, "4 rows are too few for 5 clients .*lower num_clients to at most 4"),
        ({"partition": "dirichlet"}, 5, "4 rows are too few for 5 clients"),
        ({"partition": "dirichlet", "label_column": "lable"}, 2, "did you mean 'label'"),
        ({"partition": "column", "partition_column": "sit"}, 2, "did you mean 'site'"),
        ({"partition": "column", "partition_column": "bad"}, 2, "row 3: column 'bad' should hold"),
        (
            {"partition": "column", "partition_column": "site"},
            3,
            "num_clients is 3, but there are 2 values of partition_column; set it to at most 2",
        ),
    ],
)
def test_impossible(values: dict[str, Any], num_clients: int | None, message: str) -> None:
    rows = table(["a", "b", "a", "b"], site=["x", "y", "y", "y"], bad=["x", "y", 1.5, "x"])
    with pytest.raises(DataError, match=message):
        partition(rows, config(**values), num_clients=num_clients, seed=0)


def test_more_clients_than_groups() -> None:
    with pytest.raises(DataError, match="num_clients is 2, but there are 1 groups"):
        split_by_value(["a"], 2, {"n": ["a"]})


@pytest.mark.parametrize(
    ("num_clients", "min_rows", "message"),
    [(0, 1, "at least 1"), (2, 0, "at least 1"), (4, 3, "at least 3 each; .* at most 3")],
)
def test_min_rows(num_clients: int, min_rows: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_iid(10, num_clients, np.random.default_rng(0), min_rows=min_rows)


# --- ids and histogram


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("First Citizen", "First-Citizen"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\data", "C-data"),
        ("--help", "help"),
        (".hidden", "hidden"),
        ("München", "Munchen"),
        ("a\x00b\n", "a-b"),
        ("x" * 100, "x" * 64),
        ("x" * 63 + "/y", "x" * 63),
    ],
)
def test_client_id(name: str, client: str) -> None:
    assert client_ids([name]) == {name: client}


@pytest.mark.parametrize("name", ["", ".", "..", "///", "北京", "\ud800"])
def test_client_id_of_a_name_with_nothing_safe(name: str) -> None:
    assert re.fullmatch(r"client-[0-9a-f]{8}", client_ids([name])[name])


def test_names_that_would_meet_get_a_digest() -> None:
    ids = client_ids(["a b", "a/b", "A-B", "c", "y" * 70, "y" * 71])
    assert ids["c"] == "c"
    assert all(re.fullmatch(r"(?i)a-b-[0-9a-f]{8}", ids[name]) for name in ("a b", "a/b", "A-B"))
    assert len({client.casefold() for client in ids.values()}) == 6
    assert max(map(len, ids.values())) == 64
    # What a name becomes does not depend on the order of the others.
    assert client_ids(["a/b", "A-B", "a b"]) == {k: ids[k] for k in ("a/b", "A-B", "a b")}


def test_ids_that_meet_all_the_same() -> None:
    taken = client_ids(["a b", "a/b"])["a b"]
    with pytest.raises(DataError, match=f"'a b' and '{taken}' make the same client id"):
        client_ids(["a b", "a/b", taken])


def test_label_histogram() -> None:
    rows = table([1, 0, 1, 1, "0"])
    histogram = label_histogram(rows, {"n": [0, 1, 2], "s": [3]}, "label")
    assert histogram == {"n": {"0": 1, "1": 2}, "s": {"0": 0, "1": 1}}
    assert list(histogram["s"]) == ["0", "1"]


# --- public data


def test_public_groups(shared_data: Path) -> None:
    folder = shared_data / "clinc150"
    rows = read_table(str(folder / "data_small.train.jsonl"), ["text", "label_name"])
    names = Counter(rows.column("label_name"))
    groups = read_groups(str(folder / "domains.json"))
    known = {value for values in groups.values() for value in values}
    kept = [i for i, name in enumerate(rows.column("label_name")) if name in known]
    parts = split_by_value(rows.take(kept).categories("label_name"), groups=groups)
    assert len(parts) == len(groups) == 10
    assert sum(map(len, parts.values())) == sum(names[name] for name in known)


def test_public_speakers(shared_data: Path) -> None:
    path = str(shared_data / "tinyshakespeare" / "by_speaker.jsonl")
    choice = config(train=path, partition="column", partition_column="speaker")
    rows = read_table(path, ["text", "speaker"])
    parts = partition(rows, choice, num_clients=20, seed=0)
    assert len(parts) == 20
    smallest = min(map(len, parts.values()))
    left_out = Counter(rows.column("speaker"))
    for indices in parts.values():
        del left_out[rows.column("speaker")[indices[0]]]
    assert max(left_out.values()) <= smallest

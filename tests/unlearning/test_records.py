"""The rows of a removal: chosen exactly as asked, named by one digest, and the same on arrival."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import DataError
from fedpeft.models.sources import read_table
from fedpeft.models.table import Table
from fedpeft.unlearning.records import JobRows, records_digest, rows_of, select, text_of

SECRET = "Basil Mahfouz"
SALT = bytes(range(32))


def a_table(**columns: list[Any]) -> Table:
    base: dict[str, list[Any]] = {
        "id": [1, 2, 3, 4, 5],
        "author": ["ann", "bob", "ann", "cem", "bob"],
        "text": ["one", "two", "three", "four", "five"],
    }
    return Table("own.jsonl", {**base, **columns})


def ids(table: Table) -> list[Any]:
    return table.columns["id"]


# --- choosing


def test_rows_by_id() -> None:
    forget, retain = select(a_table(), ids=["4", "2"])
    assert (ids(forget), ids(retain)) == ([2, 4], [1, 3, 5])
    assert forget.locate(1) == "own.jsonl row 4"
    forget, _ = select(a_table(), ids=["three"], id_column="text")
    assert ids(forget) == [3]


def test_rows_by_file() -> None:
    file = Table("gone.csv", {"text": ["five", "one"], "id": ["5", "1"]})
    forget, retain = select(a_table(), file=file)
    assert (ids(forget), ids(retain)) == ([1, 5], [2, 3, 4])
    forget, _ = select(a_table(), file=Table("gone.csv", {"author": ["bob"]}))
    assert ids(forget) == [2, 5], "all rows that agree in the columns that the file has"


def test_rows_by_query() -> None:
    forget, retain = select(a_table(), query=["author=ann"])
    assert (ids(forget), ids(retain)) == ([1, 3], [2, 4, 5])
    assert ids(select(a_table(), query=["author=ann", "id=3"])[0]) == [3]
    table = a_table(text=["a=b", "two", "three", "four", "five"])
    assert ids(select(table, query=["text=a=b"])[0]) == [1]


@pytest.mark.parametrize("value", [3, "3", 3.0])
def test_a_number_is_the_same_in_every_format(value: object) -> None:
    table = a_table(id=[1, 2, value, 4, 5])
    assert select(table, ids=["3"])[0].num_rows == 1
    assert select(table, query=["id=3"])[0].num_rows == 1
    assert select(table, file=Table("f", {"id": ["3"]}))[0].num_rows == 1


def test_files_of_every_format_agree(tmp_path: Path) -> None:
    rows = list(a_table().records())
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.csv").write_text(
        "id,author,text\n" + "".join(f"{r['id']},{r['author']},{r['text']}\n" for r in rows)
    )
    own = {
        suffix: read_table(str(tmp_path / f"own{suffix}"), ["id"]) for suffix in (".jsonl", ".csv")
    }
    (tmp_path / "gone.csv").write_text("id,text\n4,four\n")
    gone = read_table(str(tmp_path / "gone.csv"), ["id"])
    for table in own.values():
        assert [str(found) for found in ids(select(table, file=gone)[0])] == ["4"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "exactly one way.*got none"),
        ({"ids": ["1"], "query": ["id=1"]}, "exactly one way.*got ids and query"),
        ({"ids": ["1", "9", "8"]}, "no row whose 'id' is '9', '8'"),
        ({"ids": ["1", "2", "1"]}, "'1' was named twice"),
        ({"ids": ["ann"], "id_column": "author"}, "2 rows have the 'author' 'ann'.*author=ann"),
        ({"ids": ["1"], "id_column": "nr"}, "no column 'nr'"),
        ({"ids": ["1", "2", "3", "4", "5"]}, "all 5 rows.*were chosen, and none would stay"),
        ({"query": ["author=dora"]}, "no row with 'author=dora'"),
        ({"query": ["author=ann", "id=2"]}, "no row of own.jsonl was chosen"),
        ({"query": ["author"]}, "column=value, got 'author'"),
        ({"query": ["=ann"]}, "column=value"),
        ({"query": ["name=ann"]}, "no column 'name'"),
        ({"file": Table("f.csv", {"text": ["one", "six"]})}, "f.csv row 2 is no row of own"),
        ({"file": Table("f.csv", {"text": ["one", "one"]})}, "row 2 is the same row as f.csv row"),
        ({"file": Table("f.csv", {"name": ["one"]})}, "own.jsonl has no column 'name'"),
        ({"file": Table("f.csv", {"text": []})}, "no row of own.jsonl was chosen"),
    ],
)
def test_what_cannot_be_chosen(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        select(a_table(), **asked)


def test_a_copy_that_would_stay_is_no_removal() -> None:
    """It would teach again what is to be forgotten."""
    table = Table("own.jsonl", {"id": [7, 8, 9], "text": ["a", "b", "a"], "label": [1, 1, "1"]})
    with pytest.raises(DataError, match=r"row 3 would stay and is the same row as own.jsonl row 1"):
        select(table, ids=["7"])
    assert select(table, ids=["7", "9"])[0].num_rows == 2
    assert select(table, ids=["8"])[0].num_rows == 1
    assert select(table, query=["text=a"])[0].num_rows == 2
    assert select(Table("own.jsonl", {"id": [7, 8]}), ids=["7"])[0].num_rows == 1


# --- travelling


def test_rows_arrive_as_they_left() -> None:
    table = a_table(
        text=["größer", "", 'a "b"\n', "\u2028", "😀"],
        score=[0.1 + 0.2, 1e-300, -0.0, 3.0, None],
        answers=[["a", "b"], [], [1, None], {"deep": [True]}, [[]]],
    )
    forget, retain = select(table, ids=["2", "4"])
    rows = JobRows(forget=rows_of(forget), retain=rows_of(retain), held_out=[{"text": "new"}])
    assert JobRows.from_bytes(rows.to_bytes()) == JobRows(
        forget=list(forget.records()), retain=list(retain.records()), held_out=[{"text": "new"}]
    )
    assert rows.to_bytes() == JobRows.from_bytes(rows.to_bytes()).to_bytes()


def test_nothing_to_forget_and_what_is_on_both_sides() -> None:
    with pytest.raises(DataError, match="no rows to be forgotten"):
        JobRows(forget=[], retain=[{"text": "a"}])
    row = {"text": "a", "id": 1}
    same = {"id": 1, "text": "a"}
    with pytest.raises(DataError, match="1 of the rows that stay are to be forgotten too"):
        JobRows(forget=[row, {"text": "b"}], retain=[{"text": "c"}, same])
    with pytest.raises(DataError, match="1 of the rows that were held out"):
        JobRows(forget=[row], held_out=[same])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"forget":[{"text":"a"}],"retain":[]}',
        b'{"forget":[{"text":"a"}],"retain":[],"held_out":[],"more":[]}',
        b'{"forget":{"text":"a"},"retain":[],"held_out":[]}',
        b'{"forget":["a"],"retain":[],"held_out":[]}',
        b'{"forget":[{}],"retain":[],"held_out":[]}',
        b'{"forget":[],"retain":[],"held_out":[]}',
        b'{"forget":[{"text":"a","text":"b"}],"retain":[],"held_out":[]}',
        b'{"forget":[{"text":NaN}],"retain":[],"held_out":[]}',
        b"[" * 200_000,
    ],
    ids=range(13),
)
def test_what_arrives_otherwise(content: bytes) -> None:
    with pytest.raises(DataError):
        JobRows.from_bytes(content)


def test_no_message_quotes_a_row() -> None:
    """Messages end up in logs and in the reason why a job failed."""
    row = {"text": SECRET, "n": float("nan")}
    for wrong in (
        lambda: JobRows(forget=[{"text": SECRET}], retain=[{"text": SECRET}]),
        lambda: JobRows.from_bytes(f'{{"{SECRET}": 1}}'.encode()),
        lambda: JobRows.from_bytes(f'{{"forget": [{{"{SECRET}": 1'.encode()),
        lambda: JobRows.from_bytes(f'{{"{SECRET}": 1, "{SECRET}": 2}}'.encode()),
        lambda: text_of(row),
        lambda: records_digest(SALT, [row]),
        lambda: rows_of(Table("own.jsonl", {"text": [SECRET], "n": [float("nan")]})),
    ):
        with pytest.raises(DataError) as refused:
            wrong()
        told: BaseException | None = refused.value
        while told is not None:
            assert SECRET not in str(told)
            told = told.__cause__


def test_values_that_json_cannot_say_are_named_by_their_place() -> None:
    table = Table("own.parquet", {"text": ["a", "b"], "raw": ["x", b"bytes"]})
    with pytest.raises(DataError, match=r"own.parquet row 2: column 'raw' holds a bytes"):
        rows_of(table)


# --- the digest


def test_the_digest_is_of_the_rows_whatever_their_order() -> None:
    one, two = {"text": "a", "id": 1}, {"id": 2, "text": "b"}
    digest = records_digest(SALT, [one, two])
    assert digest == records_digest(SALT, [{"text": "b", "id": 2}, one])
    others = [
        records_digest(SALT, [one]),
        records_digest(SALT, [one, two, two]),
        records_digest(SALT, [one, {"id": 2, "text": "b "}]),
        records_digest(SALT, [{"text": "a", "id": 1, "more": None}, two]),
        records_digest(bytes(32), [one, two]),
    ]
    assert len({digest, *others}) == 6


def test_without_the_salt_the_digest_says_nothing() -> None:
    """Otherwise whoever reads a receipt could try names against it."""
    rows = [{"name": SECRET}]
    digests = {records_digest(secrets.token_bytes(32), rows) for _ in range(20)}
    assert len(digests) == 20
    for salt in (b"", b"short", bytes(33)):
        with pytest.raises(DataError, match="32 bytes"):
            records_digest(salt, rows)


def test_rows_cannot_be_divided_in_two_ways() -> None:
    one = [{"a": "x\ny"}]
    two = [{"a": "x"}, {"a": "y"}]
    assert records_digest(SALT, one) != records_digest(SALT, two)

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import DataError
from fedpeft.models.sources import Table, concat_tables, read_table
from fedpeft.models.table import listed

COLUMNS = ("text", "label")
ROWS = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


# --- reading


def test_jsonl(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "train.jsonl", jsonl(ROWS)), COLUMNS)
    assert table.columns == {"text": ["good", "bad"], "label": [1, 0]}
    assert table.num_rows == 2
    assert table.locate(1) == f"{tmp_path}/train.jsonl:2"


def test_location_is_kept_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", jsonl(ROWS * 7))
    monkeypatch.chdir(tmp_path)
    assert read_table("train.jsonl", COLUMNS).locate(12) == "train.jsonl:13"


def test_jsonl_optional_key_may_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"text": "x"}, {"text": "y", "extra": 3}]))
    assert read_table(path, ["text"]).columns["extra"] == [None, 3]


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n", "\r\n"])
def test_blank_lines_at_the_end_are_allowed(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\r\n{"text": "y"}' + end)
    assert read_table(path, ["text"]).columns["text"] == ["x", "y"]
    path = write(tmp_path / "a.csv", "text\r\nx\r\ny" + end.replace(" ", ""))
    assert read_table(path, ["text"]).columns["text"] == ["x", "y"]


def test_csv_counts_physical_lines_and_keeps_text(tmp_path: Path) -> None:
    content = 'text,label,more\n"two\nlines, one cell",007,\nplain,1,x\n'
    table = read_table(write(tmp_path / "a.csv", content), COLUMNS)
    assert table.columns == {
        "text": ["two\nlines, one cell", "plain"],
        "label": ["007", "1"],
        "more": ["", "x"],
    }
    assert [table.locate(row) for row in (0, 1)] == [f"{tmp_path}/a.csv:2", f"{tmp_path}/a.csv:4"]


def test_csv_with_bare_carriage_returns(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", "text\rx\ry\r"), ["text"])
    assert table.columns == {"text": ["x", "y"]}
    assert table.locate(1) == f"{tmp_path}/a.csv:3"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"text": "über"}\n'), ("a.csv", "text\nüber\n"), ("A.CSV", "text\nüber\n")],
)
def test_byte_order_mark_and_capital_extension(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content.encode("utf-8-sig"))
    assert read_table(path, ["text"]).columns == {"text": ["über"]}


def test_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "label=7"  # must not become a column
    folder.mkdir()
    table = read_table(parquet(folder / "a.parquet", text=["x", "y"], label=[1, 0]), COLUMNS)
    assert table.columns == {"text": ["x", "y"], "label": [1, 0]}
    assert table.locate(1) == f"{folder}/a.parquet row 2"


@pytest.mark.parametrize("split", ["train", "test"])
def test_synthetic(split: str) -> None:
    table = read_table(f"synthetic:messages/{split}", ["text", "label", "channel"])
    assert table.locate(12) == f"synthetic:messages/{split} row 13"


def test_hub_is_opened_through_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.jsonl", jsonl(ROWS))
    url = "hf://datasets/owner/name/train.jsonl"

    def fetch(asked: str, mode: str) -> Any:
        assert (asked, mode) == (url, "rb")
        return Path(path).open("rb")

    monkeypatch.setattr("fsspec.open", fetch)
    table = read_table(url, COLUMNS)
    assert table.columns["text"] == ["good", "bad"]
    assert table.locate(0) == f"{url}:1"


@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1), min_size=1
    )
)
def test_any_text_survives_every_format(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    rows = [{"text": text, "label": "a"} for text in texts]
    plain = write(folder / "a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    binary = parquet(folder / "a.parquet", text=texts, label=["a"] * len(texts))
    for path in (plain, str(folder / "a.csv"), binary):
        assert read_table(path, COLUMNS).columns["text"] == texts


# --- what cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": }\n', r"a\.jsonl:2 .*not valid JSON"),
        ("a.jsonl", '{"text": "x", "text": "y"}', r"a\.jsonl:1 .*key 'text' comes twice"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1 .*not valid JSON"),
        ("a.jsonl", '{"text": "x", "label": 1}\n["x", 1]', r"a\.jsonl:2 should be a JSON object"),
        ("a.jsonl", '{"text": "x", "label": 1}\n\n{}', r"a\.jsonl:2 is blank"),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "y"}',
            r"a\.jsonl:2 has no column 'label'",
        ),
        ("a.jsonl", '{"Text": "x", "label": 1}', r"no column 'text'.*did you mean 'Text'\?"),
        ("a.jsonl", '{"text": null, "label": 1}', r"a\.jsonl:1 has no value in column 'text'"),
        ("a.jsonl", '{"text": "x", "label": NaN}', r"column 'label' \(NaN\)"),
        ("a.jsonl", '{"text": "\\ud83d", "label": 1}', r"a\.jsonl:1: .*half of a UTF-16 pair"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "\xff"}', r"a\.jsonl:2 .*not UTF-8"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,lable\nx,1\n", r"no column 'label'.*line 1.*did you mean 'lable'\?"),
        ("a.csv", "text;label\nx;1\n", "separate cells with ',' and not ';'"),
        ("a.csv", "text,label,text\nx,1,y\n", r"a\.csv:1 names the column 'text' twice"),
        ("a.csv", "text,label\nx,1\na,b,1\n", r"a\.csv:3 has 3 cells, but the header has 2"),
        ("a.csv", "text,label\nx\n", r"a\.csv:2 has 1 cells, but the header has 2"),
        ("a.csv", "text,label\nx,1\n\ny,0\n", r"a\.csv:3 is blank"),
        ("a.csv", "text,label\nx,\n", r"a\.csv:2 has no value in column 'label'"),
        ("a.csv", 'text,label\nx,1\n"y,0\n', r"a\.csv:3 is not valid CSV"),
        ("a.csv", b"text,label\nx,1\n\xe9,0\n", r"a\.csv:3 .*not UTF-8"),
        ("a.parquet", b"", "holds no rows"),
        ("a.parquet", b"PAR1 this is no such file PAR1", r"a\.parquet is not a readable Parquet"),
        ("a.json", "[]", r"extension '\.json'.*convert it to \.jsonl \(one JSON object"),
        ("a.txt", "x", r"extension '\.txt'.*'\.jsonl', '\.csv', '\.parquet'"),
        ("data", "x", "has the extension ''"),
    ],
)
def test_bad_content(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / name, content), COLUMNS)


def bad_parquet_pages(path: Path) -> str:
    """A file whose footer is whole, but whose data is not."""
    parquet(path, text=["some text that is long enough"] * 50, label=list(range(50)))
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    return write(path, bytes(data))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: parquet(p, text=["x", None], label=[1, 0]), r"a\.parquet row 2 has no value"),
        (lambda p: parquet(p, text=["x"], label=[float("nan")]), r"a\.parquet row 1 .*NaN"),
        (lambda p: parquet(p, texts=["x"], label=[1]), r"no column 'text'.*did you mean 'texts'\?"),
        (lambda p: parquet(p, text=pa.array([], pa.string()), label=[]), "holds no rows"),
        (bad_parquet_pages, "not a readable Parquet file"),
    ],
)
def test_bad_parquet(tmp_path: Path, make: Callable[[Path], str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(make(tmp_path / "a.parquet"), COLUMNS)


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"]), path)
    with pytest.raises(DataError, match="two columns of one name"):
        read_table(str(path), ["text"])


def test_missing_file_offers_the_near_one(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    write(tmp_path / "notes.txt", "")
    with pytest.raises(DataError, match=r"no data file .*trian.jsonl; did you mean 'train.jsonl'"):
        read_table(str(tmp_path / "trian.jsonl"), COLUMNS)
    with pytest.raises(DataError, match=r"data files in .*: 'train.jsonl'$"):
        read_table(str(tmp_path / "zzz.csv"), COLUMNS)
    with pytest.raises(DataError, match="nor a folder"):
        read_table(str(tmp_path / "nowhere" / "train.jsonl"), COLUMNS)


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match=r"is a folder.*'train.jsonl'"):
        read_table(str(tmp_path), COLUMNS)


def test_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"could not be read \(Permission denied\)"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("Install huggingface_hub"), "needs the package huggingface_hub"),
        (FileNotFoundError("no such"), "was not found on the Hugging Face Hub"),
        (ConnectionError("no route"), r"could not be fetched .*ConnectionError: no route\)"),
        (RuntimeError(""), "RuntimeError: no reason given"),
    ],
)
def test_hub_errors(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fsspec.open", fail)
    with pytest.raises(DataError, match=message):
        read_table("hf://datasets/owner/name/train.jsonl", COLUMNS)


def test_hub_offline() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(DataError, match=r"could not be fetched .*HF_HUB_OFFLINE"):
        read_table("hf://datasets/owner/name/train.jsonl", COLUMNS)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://datasets/owner/name/train.txt", r"extension '\.txt'"),
        ("s3://bucket/train.jsonl", "kind that is not supported: expected an hf:// URL"),
        ("synthetic:messages/tran", r"no synthetic data set.*did you mean 'synthetic:messages/tr"),
        ("synthetic:", "no synthetic data set"),
    ],
)
def test_bad_location(location: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(location, COLUMNS)


def test_synthetic_lacks_a_required_column() -> None:
    with pytest.raises(DataError, match=r"no column 'chanel'.*did you mean 'channel'"):
        read_table("synthetic:messages/test", ["chanel"])


# --- the table


def test_take_and_concat_keep_places() -> None:
    first = Table("a.csv", {"text": ["x", "y"], "extra": [1, 2]}, ("a.csv:2", "a.csv:4"))
    second = Table("b.parquet", {"text": ["z"]})
    table = concat_tables([first, second])
    assert table.columns == {"text": ["x", "y", "z"]}
    assert [table.locate(row) for row in range(3)] == ["a.csv:2", "a.csv:4", "b.parquet row 1"]
    taken = table.take([2, 0, 0]).take([0, 2])
    assert taken.columns == {"text": ["z", "x"]}
    assert [taken.locate(row) for row in range(2)] == ["b.parquet row 1", "a.csv:2"]
    assert Table("c", {"text": ["p", "q"]}).take([1]).locate(0) == "c row 2"
    assert table.take([]).num_rows == 0


@pytest.mark.parametrize("row", [-1, 2])
def test_row_that_does_not_exist(row: int) -> None:
    table = Table("a", {"text": ["x", "y"]})
    with pytest.raises(IndexError):
        table.take([row])
    with pytest.raises(IndexError):
        table.locate(row)


def test_unknown_column_names_the_known() -> None:
    table = Table("a.csv", {"text": ["x"], "label": ["1"]})
    with pytest.raises(DataError, match=r"a\.csv has no column 'labels': its columns are 'text', "):
        table.column("labels")
    with pytest.raises(DataError, match=r"'label'$"):
        table.column("zzz")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table("a", {"text": ["x"], "label": []}), "same number of rows"),
        (lambda: Table("a", {"text": ["x"]}, ("a:1", "a:2")), "one place for each of 1 rows"),
        (lambda: concat_tables([]), "at least one table"),
        (lambda: concat_tables([Table("a", {"x": [1]}), Table("b", {"y": [1]})]), "'a', 'b' have"),
    ],
)
def test_bad_table(make: Callable[[], Table], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_long_lists_are_shortened() -> None:
    assert listed(map(str, range(23))).endswith("'19' and 3 more")


def test_public_files(shared_data: Path) -> None:
    table = read_table(str(shared_data / "snips7" / "train.jsonl"), COLUMNS)
    assert table.num_rows > 13_000

from typing import Any

import pytest

from fedpeft.errors import DataError
from fedpeft.models.label_space import LabelSpace, majority_share
from fedpeft.models.sources import Table


def table(*labels: Any, location: str = "test.jsonl") -> Table:
    places = tuple(f"{location}:{i + 1}" for i in range(len(labels)))
    return Table(location, {"label": list(labels)}, places)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((10, 9, 2, 10), ("2", "9", "10")),
        (("10", "9", "2"), ("2", "9", "10")),
        ((10, "9", 2), ("2", "9", "10")),
        ((-1, 3, 0), ("-1", "0", "3")),
        (("b", "a", "B"), ("B", "a", "b")),
        (("10", "9", "x"), ("10", "9", "x")),
        (("010", "9"), ("010", "9")),
        ((True, False), ("False", "True")),
    ],
)
def test_from_test_sorts(labels: tuple[Any, ...], names: tuple[str, ...]) -> None:
    space = LabelSpace.from_test(table(*labels), "label")
    assert space.names == names
    assert space.num_labels == len(names)


def test_encode_is_the_same_for_text_and_numbers() -> None:
    space = LabelSpace.from_test(table(0, 2, 10), "label")
    assert space.encode(table(10, 0, 2), "label") == [2, 0, 1]
    assert space.encode(table("10", "0", "2"), "label") == [2, 0, 1]


@pytest.mark.parametrize("bad", [1.5, 1.0, None, ["a"], {"a": 1}, b"a", ""])
def test_values_that_are_no_label(bad: object) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl:3: column 'label' should hold text"):
        LabelSpace.from_test(table("a", "b", bad), "label")
    with pytest.raises(DataError, match=r"train\.jsonl:1: column 'label' should hold text"):
        LabelSpace(("a", "b")).encode(table(bad, location="train.jsonl"), "label")


def test_whole_float_says_what_to_write() -> None:
    with pytest.raises(DataError, match=r"holds 3\.0 \(float\); write it as 3"):
        LabelSpace.from_test(table(3.0, 1.0), "label")


def test_long_value_is_cut() -> None:
    with pytest.raises(DataError) as caught:
        LabelSpace.from_test(table(["x" * 1000]), "label")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "a"), (1, "1")])
def test_fewer_than_two_labels(labels: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl: .*at least two labels"):
        LabelSpace.from_test(table(*labels), "label")


def test_direct_construction_is_checked() -> None:
    with pytest.raises(DataError, match="at least two labels, got 'a'"):
        LabelSpace(("a",))
    with pytest.raises(DataError, match="a name twice"):
        LabelSpace(("a", "b", "a"))


def test_unknown_training_label() -> None:
    space = LabelSpace(("cancel", "refund"))
    with pytest.raises(DataError) as caught:
        space.encode(table("refund", "refnd", location="train.jsonl"), "label")
    assert str(caught.value) == (
        "train.jsonl:2: the label 'refnd' does not occur in the held-out set, whose labels are "
        "'cancel', 'refund'; correct the label, or add rows with it to the held-out set; did you "
        "mean 'refund'?"
    )


def test_unknown_label_among_many_shortens_the_list() -> None:
    space = LabelSpace.from_test(table(*range(150)), "label")
    with pytest.raises(DataError, match=r"'19' and 130 more"):
        space.encode(table(150), "label")


def test_unknown_column() -> None:
    with pytest.raises(DataError, match=r"no column 'lable'.*did you mean 'label'"):
        LabelSpace.from_test(table("a", "b"), "lable")


def test_majority_share() -> None:
    assert majority_share([0, 1, 1, 2]) == 0.5
    assert majority_share([3]) == 1.0
    with pytest.raises(ValueError, match="at least one label"):
        majority_share([])

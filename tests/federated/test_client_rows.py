"""Whatever terms a coordinator offers, a client's answer says nothing of what is in its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.dp.grad_sample import per_example_grads
from fedpeft.errors import DataError, ModelError
from fedpeft.federated.client_rows import ClientRows, check_fits
from fedpeft.federated.messages import Acceptance, Refusal
from fedpeft.federated.refusals import DATA
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset, collate
from fedpeft.models.table import Table
from fedpeft_client.workplace import Models
from tests.federated.client_rounds import make_client, policy_for, terms_for
from tests.tiny_models import tokenizer

CPU = torch.device("cpu")
NOT_USABLE: list[tuple[Any, Any]] = [
    ("the sky", "tepid"),
    ("the sky", None),
    ("the sky", 1.5),
    ("the sky", ""),
    (None, "warm"),
    (float("nan"), "warm"),
    ("half a pair \ud800", "warm"),
]


def table(rows: Sequence[tuple[Any, Any]]) -> Table:
    texts, labels = [list(column) for column in zip(*rows, strict=True)]
    return Table("rows.jsonl", {"text": texts, "label": labels, "unread": [None] * len(rows)})


def encoded(rows: Sequence[tuple[Any, Any]], bert: Path, **sections: Any) -> tuple[Dataset, int]:
    client = ClientRows(table=table(rows), dataset="ab" * 32, columns=("text",))
    return client.encoded(terms_for(bert, **sections), tokenizer(classifier=True))


def test_rows_that_the_terms_cannot_use_stay_and_teach_nothing(tiny_bert: Path) -> None:
    rows = [("the red sky", "warm"), *NOT_USABLE, ("ice", "cold")]
    dataset, num_unusable = encoded(rows, tiny_bert)
    assert (len(dataset), num_unusable) == (len(rows), len(NOT_USABLE))
    alone, _ = encoded([rows[0], rows[-1]], tiny_bert)
    assert [dataset.input_ids[0], dataset.input_ids[-1]] == list(alone.input_ids)
    assert [dataset.targets[0], dataset.targets[-1]] == list(alone.targets) == [1, 0]
    model, _ = Models(policy_for(tiny_bert)).for_run(terms_for(tiny_bert))
    batch = collate(dataset, range(len(rows)), CPU)
    grads = per_example_grads(model.task_model, len(rows), lambda: model.task_model.losses(batch))
    for name, grad_N in grads.items():
        norms = grad_N.flatten(1).norm(dim=1)
        assert (norms[1:-1] == 0).all(), name
    assert (grads["head.weight"][[0, -1]].flatten(1).norm(dim=1) > 0).all()


def test_causal_rows_without_a_value_teach_nothing(tiny_llama: Path) -> None:
    rows = Table(
        "rows.jsonl",
        {"question": ["which is it ?", None, "which ?"], "answer": ["the sea", "ice", None]},
    )
    terms = terms_for(tiny_llama, task="causal-lm")
    client = ClientRows(table=rows, dataset="ab" * 32, columns=("text",))
    dataset, num_unusable = client.encoded(terms, tokenizer(classifier=False))
    assert num_unusable == 2
    model, _ = Models(policy_for(tiny_llama, task="causal-lm")).for_run(terms)
    losses = model.task_model.losses(collate(dataset, range(3), CPU))
    assert losses[0] > 0
    assert losses[1:].tolist() == [0, 0]


def test_rows_none_of_which_can_be_used(tiny_bert: Path) -> None:
    dataset, num_unusable = encoded(NOT_USABLE, tiny_bert)
    assert len(dataset) == num_unusable == len(NOT_USABLE)


def test_a_missing_column_is_refused_before_any_value_is_read(tiny_bert: Path) -> None:
    with pytest.raises(DataError, match="no column 'diagnosis'"):
        encoded([("the sky", "warm")], tiny_bert, columns={"label": "diagnosis"})


@pytest.mark.parametrize(
    "labels", [["cold", "warm"], ["cold", "hot"], ["no", "yes"], ["", "warm"], ["cold", "None"]]
)
def test_offers_of_other_labels_learn_nothing(
    tmp_path: Path, tiny_bert: Path, labels: list[str]
) -> None:
    client = make_client(tmp_path / "client", tiny_bert)
    answer = client.round().answer_offer(terms_for(tiny_bert, labels=labels)).answer
    assert answer == Acceptance(
        num_examples=12, dataset=client.rows.dataset, remaining_epsilon=20.0
    )


def test_a_column_that_is_not_there_is_told_by_its_code_alone(
    tmp_path: Path, tiny_bert: Path
) -> None:
    client = make_client(tmp_path / "client", tiny_bert)
    terms = terms_for(tiny_bert, columns={"text": "patient"})
    answer = client.round().answer_offer(terms).answer
    assert isinstance(answer, Refusal)
    assert (answer.code, "patient" in answer.message) == (DATA, False)
    assert "no column 'patient'" in client.notes.notes[0]
    assert str(tmp_path) in client.notes.notes[0]
    assert str(tmp_path) not in answer.message


def test_whether_rows_are_too_long_is_asked_of_the_terms_and_not_of_the_rows(
    tiny_bert: Path,
) -> None:
    config = policy_for(tiny_bert).model_config_of(terms_for(tiny_bert))
    base, tokens = load_base_model(config), load_tokenizer(config)
    check_fits(40, base, tokens)
    with pytest.raises(ModelError, match="at 41 tokens, but its base model was made for 40"):
        check_fits(41, base, tokens)
    tokens.add_tokens(["another"])
    with pytest.raises(ModelError, match="do not belong together"):
        check_fits(16, base, tokens)

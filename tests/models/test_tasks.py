import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedpeft.errors import DataError
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Batch, Dataset, collate
from fedpeft.models.evaluation import evaluate
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import (
    CausalLanguageModel,
    ClassifierHead,
    Score,
    SequenceClassifier,
    metrics,
)
from tests.tiny_models import random_dataset

CPU = torch.device("cpu")


@pytest.fixture
def classifier(tiny_bert: Path) -> SequenceClassifier:
    base = load_base_model(ModelConfig(name=str(tiny_bert), task="classification"))
    model = SequenceClassifier(base, 3)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model.head.bias, generator=torch.Generator().manual_seed(1))
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def language_model(request: pytest.FixtureRequest) -> CausalLanguageModel:
    folder: Path = request.getfixturevalue(request.param)
    return CausalLanguageModel(
        load_base_model(ModelConfig(name=str(folder), task="causal-lm"))
    ).requires_grad_(False)


def rows_for_lm(num_rows: int, seed: int) -> Dataset:
    plain = random_dataset(num_rows, seed)
    targets = [1 + n % (len(ids) - 1) if n % 3 else 1 for n, ids in enumerate(plain.input_ids)]
    return Dataset(input_ids=plain.input_ids, targets=targets, pad_id=0)


def padded(batch: Batch, columns: int, token: int) -> Batch:
    """The batch with more padding, of another token."""
    extra = torch.full((batch.num_rows, columns), token)
    return Batch(
        input_ids_NT=torch.cat(
            [batch.input_ids_NT.where(batch.attention_mask_NT == 1, token), extra], 1
        ),
        attention_mask_NT=torch.cat([batch.attention_mask_NT, torch.zeros_like(extra)], 1),
        targets_N=batch.targets_N,
    )


def test_logits_are_the_head_of_the_mean_of_the_real_tokens(classifier: SequenceClassifier) -> None:
    dataset = random_dataset(5, seed=2)
    found = classifier.logits(collate(dataset, range(5), CPU))
    for row, ids in enumerate(dataset.input_ids):
        hidden_TH = classifier.base(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
        expected = classifier.head.weight @ hidden_TH.mean(0) + classifier.head.bias
        assert torch.allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(classifier: SequenceClassifier) -> None:
    batch = collate(random_dataset(5, seed=2), range(5), CPU)
    for columns, token in ((0, 7), (3, 0), (9, 11)):
        other = classifier.logits(padded(batch, columns, token))
        assert torch.allclose(other, classifier.logits(batch), rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_row_does_not_depend_on_its_batch(classifier: SequenceClassifier) -> None:
    dataset = random_dataset(7, seed=3, num_classes=3)
    together = classifier.losses(collate(dataset, range(7), CPU))
    assert together.shape == (7,)
    alone = torch.cat([classifier.losses(collate(dataset, [n], CPU)) for n in range(7)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    expected = functional.cross_entropy(
        classifier.logits(collate(dataset, range(7), CPU)), torch.tensor(dataset.targets)
    )
    assert torch.allclose(together.mean(), expected)


def test_lm_loss_is_the_mean_over_the_rows_own_answer(language_model: CausalLanguageModel) -> None:
    dataset = rows_for_lm(7, seed=3)
    together = language_model.losses(collate(dataset, range(7), CPU))
    for row, ids in enumerate(dataset.input_ids):
        log_probs = (
            language_model.base(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(1)
        )
        first = dataset.targets[row]
        by_hand = [-log_probs[t - 1, ids[t]] for t in range(first, len(ids))]
        assert float(together[row]) == pytest.approx(float(sum(by_hand)) / len(by_hand), rel=1e-4)


def test_lm_loss_ignores_padding_and_other_rows(language_model: CausalLanguageModel) -> None:
    batch = collate(rows_for_lm(7, seed=3), range(7), CPU)
    expected = language_model.losses(batch)
    for columns, token in ((0, 7), (3, 0), (9, 11)):
        found = language_model.losses(padded(batch, columns, token))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_without_a_token_to_predict_has_loss_zero(
    language_model: CausalLanguageModel,
) -> None:
    dataset = Dataset(input_ids=[[7], [7, 8]], targets=[1, 1], pad_id=0)
    losses = language_model.losses(collate(dataset, [0, 1], CPU))
    assert losses[0] == 0
    assert losses[1] > 0
    assert language_model.score(collate(dataset, [0, 1], CPU)).count == 1


def test_the_head_starts_without_a_preference() -> None:
    head = ClassifierHead(6, 4)
    assert not head(torch.randn(5, 6)).any()
    assert all(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize(("num_features", "num_classes"), [(6, 4), (4, 4), (3, 7), (2, 2)])
def test_a_frozen_head_is_orthonormal_and_repeatable(num_features: int, num_classes: int) -> None:
    heads = [ClassifierHead(num_features, num_classes) for _ in range(3)]
    for head, seed in zip(heads, (0, 0, 1), strict=True):
        head.freeze_random(torch.Generator().manual_seed(seed))
    weight = heads[0].weight
    gram = weight @ weight.T if num_classes <= num_features else weight.T @ weight
    assert torch.allclose(gram, torch.eye(min(num_classes, num_features)), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in heads[0].parameters())
    assert not heads[0].bias.any()
    assert torch.equal(weight, heads[1].weight)
    assert not torch.equal(weight, heads[2].weight)


def test_a_head_given_per_row_uses_each_rows_own_copy() -> None:
    head = ClassifierHead(6, 4)
    nn.init.normal_(head.weight)
    pooled, weights, biases = torch.randn(5, 6), torch.randn(5, 4, 6), torch.randn(5, 4)
    plain = head(pooled)
    head.row_parameters = {"weight": weights, "bias": biases}
    found = head(pooled)
    for row in range(5):
        assert torch.allclose(found[row], weights[row] @ pooled[row] + biases[row], atol=1e-5)
    head.row_parameters = {
        "weight": head.weight.expand(5, 4, 6),
        "bias": head.bias.expand(5, 4),
    }
    assert torch.allclose(head(pooled), plain, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_held_out_metrics_do_not_depend_on_the_batches(
    classifier: SequenceClassifier, max_tokens: int
) -> None:
    dataset = random_dataset(11, seed=4, num_classes=3)
    batch = collate(dataset, range(11), CPU)
    logits, targets = classifier.logits(batch), batch.targets_N
    seen: list[int] = []
    found = evaluate(
        classifier, dataset, task="classification", max_tokens=max_tokens, advanced=seen.append
    )
    assert found == pytest.approx(
        {
            "loss": float(functional.cross_entropy(logits, targets)),
            "accuracy": float((logits.argmax(1) == targets).float().mean()),
        },
        rel=1e-4,
    )
    assert sum(seen) == 11


def test_held_out_metrics_of_a_language_model_count_tokens(
    language_model: CausalLanguageModel,
) -> None:
    dataset = rows_for_lm(9, seed=5)
    total = correct = count = 0.0
    for ids, first in zip(dataset.input_ids, dataset.targets, strict=True):
        logits = language_model.base(input_ids=torch.tensor([list(ids)])).logits[0]
        for t in range(first, len(ids)):
            total -= float(logits[t - 1].log_softmax(0)[ids[t]])
            correct += float(logits[t - 1].argmax() == ids[t])
            count += 1
    found = evaluate(language_model, dataset, task="causal-lm", max_tokens=30)
    assert found == pytest.approx(
        {
            "loss": total / count,
            "perplexity": math.exp(total / count),
            "token_accuracy": correct / count,
        },
        rel=1e-4,
    )


def test_scores_add_up() -> None:
    total = Score() + Score(loss=3.0, correct=1, count=2) + Score(loss=1.0, correct=2, count=2)
    assert metrics(total, "classification") == {"loss": 1.0, "accuracy": 0.75}


def test_a_perplexity_that_no_float_holds_stays_finite() -> None:
    found = metrics(Score(loss=1e6, count=1), "causal-lm")
    assert math.isfinite(found["perplexity"])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        metrics(Score(), "causal-lm")

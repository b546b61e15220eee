"""Objectives against their formulas, written out row by row."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fedpeft.errors import DataError
from fedpeft.models.dataset import Dataset, collate
from fedpeft.unlearning.objectives import OBJECTIVES, Objective
from fedpeft.unlearning.objectives.answers import Answers, answers_of
from fedpeft.unlearning.objectives.gradient_ascent import GradientAscent
from fedpeft.unlearning.objectives.preference import Npo, SimNpo

V = 11
DATASET = Dataset(
    input_ids=[[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 1, 2, 3]], targets=[1, 2, 4], pad_id=0
)


def logits_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(3, 6, V, generator=generator, dtype=torch.float64)


def answers(seed: int, *, reference: int | None = None) -> Answers:
    batch = collate(DATASET, [0, 1, 2], torch.device("cpu"))
    before = None if reference is None else logits_of(reference)
    return answers_of(logits_of(seed), batch, before)


def log_p(seed: int, row: int) -> list[float]:
    """Log probabilities of a row's answer tokens, one after the other."""
    ids, first = DATASET.input_ids[row], DATASET.targets[row]
    table = torch.log_softmax(logits_of(seed)[row], 1)
    return [float(table[t - 1, ids[t]]) for t in range(first, len(ids))]


def all_tokens(seed: int) -> list[float]:
    return [value for row in range(3) for value in log_p(seed, row)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def loss(objective: Objective, forget: Answers, retain: Answers) -> Tensor:
    kept = objective.retain_terms(retain).mean() if objective.keeps else 0.0
    return objective.forget_terms(forget).mean() + kept


def value(name: str) -> float:
    return float(loss(OBJECTIVES[name], answers(1, reference=2), answers(3, reference=4)))


def test_only_answers_count() -> None:
    found = answers(1)
    assert found.targets_K.tolist() == [2, 3, 4, 7, 2, 3]
    assert found.rows_K.tolist() == [0, 0, 0, 1, 2, 2]
    assert (-found.token_losses()).tolist() == pytest.approx(all_tokens(1), rel=1e-5)


def test_gradient_ascent() -> None:
    assert value("gradient-ascent") == pytest.approx(mean(all_tokens(1)), rel=1e-5)


def test_gradient_difference() -> None:
    expected = mean(all_tokens(1)) - mean(all_tokens(3))
    assert value("gradient-difference") == pytest.approx(expected, rel=1e-5)


def test_kl() -> None:
    """The divergence goes from before to now; the other way round is another number."""
    batch = collate(DATASET, [0, 1, 2], torch.device("cpu"))
    counted = batch.labels_NT()[:, 1:] >= 0
    now = torch.log_softmax(logits_of(3)[:, :-1][counted], 1)
    before = torch.log_softmax(logits_of(4)[:, :-1][counted], 1)
    divergence = float((before.exp() * (before - now)).sum(1).mean())
    assert value("kl") == pytest.approx(divergence + mean(all_tokens(1)), rel=1e-5)
    other = float((now.exp() * (now - before)).sum(1).mean())
    assert abs(other - divergence) > 0.1


def test_npo() -> None:
    beta, rows = 0.1, []
    for row in range(3):
        ratio = sum(log_p(1, row)) - sum(log_p(2, row))
        rows.append(2 / beta * math.log(1 + math.exp(beta * ratio)))
    assert value("npo") == pytest.approx(mean(rows) - mean(all_tokens(3)), rel=1e-5)


def test_simnpo() -> None:
    beta, gamma, rows = 2.5, 0.3, []
    for row in range(3):
        rows.append(2 / beta * math.log(1 + math.exp(beta * mean(log_p(1, row)) + gamma)))
    found = float(loss(SimNpo(beta=beta, gamma=gamma), answers(1), answers(3)))
    assert found == pytest.approx(mean(rows) - mean(all_tokens(3)), rel=1e-5)


def test_loku() -> None:
    rows = []
    for row in range(3):
        ids, first = DATASET.input_ids[row], DATASET.targets[row]
        p = torch.softmax(logits_of(1)[row], 1)
        for t in range(first, len(ids)):
            target = float(p[t - 1, ids[t]])
            others = [float(p[t - 1, v]) for v in range(V) if v != ids[t]]
            rows.append(1 + target - max(others))
    assert value("loku") == pytest.approx(mean(rows) - mean(all_tokens(3)), rel=1e-5)


def forget_direction(objective: Npo | GradientAscent) -> Tensor:
    batch = collate(DATASET, [0, 1, 2], torch.device("cpu"))
    logits = logits_of(1).requires_grad_()
    forget = answers_of(logits, batch, logits_of(2))
    gradient: Tensor = torch.autograd.grad(objective.forget_terms(forget).mean(), logits)[0]
    return gradient / gradient.norm()


def test_npo_becomes_ascent_as_beta_goes_to_zero() -> None:
    ascent = forget_direction(GradientAscent())
    distances = [float((forget_direction(Npo(beta=b)) - ascent).norm()) for b in (1.0, 0.1, 1e-4)]
    assert all(near < far / 3 for far, near in pairwise(distances))
    assert distances[-1] < 1e-3


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_it_needs_what_it_says(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.name == name
    seen = 2 if objective.remembers else None
    assert torch.isfinite(objective.forget_terms(answers(1, reference=seen))).all()
    assert (len(objective.retain_terms(answers(3, reference=seen))) > 0) == objective.keeps


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "loku"])
def test_descent_lowers_what_is_to_be_forgotten(name: str) -> None:
    """And a planted sign would raise it. (The hinge has its own test.)"""
    batch = collate(DATASET, [0, 1, 2], torch.device("cpu"))
    logits = logits_of(1).requires_grad_()
    forget = answers_of(logits, batch, logits_of(1))
    gradient = torch.autograd.grad(OBJECTIVES[name].forget_terms(forget).mean(), logits)
    moved = answers_of(logits.detach() - 0.1 * gradient[0], batch)
    assert moved.token_losses().mean() > forget.token_losses().mean()


def test_a_row_without_an_answer_is_refused() -> None:
    dataset = Dataset(input_ids=[[1, 2], [3, 4]], targets=[1, 2], pad_id=0)
    batch = collate(dataset, [0, 1], torch.device("cpu"))
    with pytest.raises(DataError, match="1 rows have no answer"):
        answers_of(torch.zeros(2, 2, V), batch)


def test_a_classifier_answers_with_one_class_a_row() -> None:
    batch = collate(DATASET, [0, 1, 2], torch.device("cpu"))
    found = answers_of(torch.randn(3, 5), batch)
    assert found.targets_K.tolist() == DATASET.targets
    assert found.rows_K.tolist() == [0, 1, 2]

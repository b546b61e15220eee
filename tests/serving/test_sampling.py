"""Tokens are drawn as their probabilities say; other temperatures and bounds are told apart."""

import pytest
import torch
from scipy.stats import chisquare

from fedpeft.serving.sampling import Sampler, Sampling

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.0])
NUM = 8000


def counts(sampling: Sampling) -> list[int]:
    sampler = Sampler(sampling=sampling)
    drawn = [sampler.draw(LOGITS) for _ in range(NUM)]
    return [drawn.count(token) for token in range(len(LOGITS))]


def pvalue(sampling: Sampling, probs: torch.Tensor) -> float:
    kept = probs > 0
    found = torch.tensor(counts(sampling))
    assert (found[~kept] == 0).all()
    expected = probs[kept] / probs[kept].sum() * NUM
    return float(chisquare(found[kept].double(), expected.double()).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_temperature_divides_logits(temperature: float) -> None:
    sampling = Sampling(max_tokens=1, temperature=temperature, seed=1)
    assert pvalue(sampling, (LOGITS.double() / temperature).softmax(0)) > 1e-3
    for wrong in (temperature * 2 / 3, temperature * 3 / 2):
        assert pvalue(sampling, (LOGITS.double() / wrong).softmax(0)) < 1e-9


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    probs = LOGITS.double().softmax(0)
    order = probs.argsort(descending=True)
    for num_kept in (1, 2, 4):
        kept = torch.zeros_like(probs)
        kept[order[:num_kept]] = probs[order[:num_kept]]
        total = float(kept.sum())
        # Just reached, and reached by the last token alone.
        for top_p in (total - 1e-6, total - float(probs[order[num_kept - 1]]) + 1e-6):
            sampling = Sampling(max_tokens=1, top_p=top_p, seed=2)
            if num_kept == 1:
                assert counts(sampling)[int(order[0])] == NUM
            else:
                assert pvalue(sampling, kept) > 1e-3


def test_no_temperature_is_the_likeliest_token() -> None:
    assert counts(Sampling(max_tokens=1, temperature=0))[1] == NUM


def test_a_seed_repeats_and_none_does_not() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(sampling=Sampling(max_tokens=1, seed=seed))
        return [sampler.draw(LOGITS) for _ in range(50)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(-1) == drawn(-1)
    assert drawn(None) != drawn(None)

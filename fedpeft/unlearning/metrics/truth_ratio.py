"""Truth ratios, and what TOFU makes of them (Maini et al., 2024).

Losses are means over an answer's tokens, so that exp(-loss) is its probability with the length
taken out. Legend: N rows, W wrong answers of a row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hmean, ks_2samp

from fedpeft.errors import DataError

Values = NDArray[np.float64]


def truth_ratios(paraphrased_N: Values, wrong_NW: Sequence[Values]) -> Values:
    """Returns the probability of wrong answers over that of the right one in other words, (N,).

    Wrong answers are averaged as in TOFU's own code: the mean of their losses, so the geometric
    mean of probabilities. The paper's text has the arithmetic mean.

    Args:
        paraphrased_N: Loss of the right answer, paraphrased.
        wrong_NW: Losses of the wrong answers; rows may have different numbers of them.

    Raises:
        DataError: If a row has no wrong answer, or a loss is not finite.
    """
    if len(wrong_NW) != len(paraphrased_N) or not all(len(wrong) for wrong in wrong_NW):
        raise DataError("every row needs the loss of its paraphrase and of a wrong answer or more")
    wrong_N = np.array([np.mean(wrong) for wrong in wrong_NW])
    if not (np.isfinite(wrong_N).all() and np.isfinite(paraphrased_N).all()):
        raise DataError("a loss is not finite")
    ratios: Values = np.exp(paraphrased_N - wrong_N)
    return ratios


def forget_quality(ratios: Values, reference: Values) -> float:
    """Returns the p-value of Kolmogorov and Smirnov's test that both are of one distribution.

    Args:
        ratios: Truth ratios on the rows to be forgotten, after unlearning.
        reference: The same of a model that never saw these rows.
    """
    return float(ks_2samp(ratios, reference).pvalue)


def truthfulness(ratios: Values) -> float:
    """Returns the mean of max(0, 1 - ratio): 1 where wrong answers are impossible."""
    return float(np.maximum(0.0, 1.0 - ratios).mean())


def model_utility(parts: Sequence[float]) -> float:
    """Returns the harmonic mean: zero where a part is zero.

    TOFU's parts are probability, ROUGE-L recall and truthfulness, each on rows that stay, on real
    authors and on facts of the world.
    """
    return float(hmean(np.asarray(parts, dtype=np.float64)))
